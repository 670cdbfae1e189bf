#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "cellar/cuda/device.hpp"
#include "cellar/operation/convert.hpp"
#include "cellar/operation/resolve.hpp"
#include "cellar/operation/workspace.hpp"

/// The near pools of a cache on a device: selected runs stay there from step to step, and only those that are not there are read far.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

/// All pools of a layer.
template <offloading_scheme S>
struct layer_pools {
  memory_map<S> map;
  std::byte *bookkeeping = nullptr, *runs = nullptr;
  i64 blocks = 0, slots = 0;

  CELLAR_HD operation::run_pool pool(i64 sequence_slot, int head) const {
    i64 const at = sequence_slot * map.shape.kv_heads + head, bytes = map.geometry().slice_bytes();
    return operation::run_pool::at(bookkeeping + at * operation::run_pool::head_bytes(blocks, slots), runs + at * round_up(slots * bytes, 16), blocks, slots,
                                   bytes);
  }
};

template <offloading_scheme S>
struct forget_kernel {
  layer_pools<S> pools;
  i64 slot, first;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    operation::forget_runs(t, pools.pool(slot, int(at.x)), first);
  }
};

/// Names runs of one KV head that are to be brought. They travel in the launch's parameters: the caller's list may be gone when it runs.
struct name_runs_kernel {
  static constexpr i64 most = 256;
  logical_block named[most];
  i64 count, first, all;  // these are `first` and on, of `all`
  i64 head, heads, width;
  sequence_step step;
  logical_block* ids;    // [heads, width]
  i64* counts;           // [heads]
  sequence_step* steps;  // one

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place) const {
    for (i64 i = t.rank(); i < count; i += t.size()) ids[head * width + first + i] = named[i];
    for (i64 h = t.rank(); h < heads; h += t.size()) counts[h] = h == head ? all : 0;
    if (t.rank() == 0) *steps = step;
  }
};

/// What resolve gives for each (sequence, KV head).
struct resolved {
  std::int32_t *slot_of = nullptr, *misses = nullptr, *missing = nullptr;  // [items, selected], [items, selected], [items]
  logical_block* victims = nullptr;                                        // [items, selected]
  resident_runs* resident = nullptr;                                       // [items, selected], in the order in which they are attended to
  logical_block* order = nullptr;                                          // those blocks, where it is another one than the selection's
  unsigned long long* counted = nullptr;                                   // hits, misses
};

template <offloading_scheme S>
struct resolve_kernel {
  layer_pools<S> pools;
  sequence_step const* steps;
  logical_block const* ids;
  i64 const* counts;
  i64 selected;
  resolved to;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.y];
    i64 const item = i64{at.y} * pools.map.shape.kv_heads + at.x, first = item * selected, count = step.new_tokens > 0 ? counts[item] : 0;
    i64 missing = 0;
    if (count > 0) {
      auto const pool = pools.pool(step.slot, int(at.x));
      missing = operation::resolve(t, row_view<logical_block const>{ids + first, count}, pool, step.number, to.slot_of + first, to.misses + first,
                                   to.victims + first);
      for (i64 i = t.rank(); i < count; i += t.size()) {
        i64 place = i;
        if constexpr (!S::is_reproducible) {  // what is there goes first
          std::int32_t const* const misses = to.misses + first;
          i64 before = 0;  // misses among what comes first in the selection
          for (i64 some = missing; some > 0;) {
            i64 const half = some / 2;
            if (misses[before + half] < i) {
              before += half + 1;
              some -= half + 1;
            } else {
              some = half;
            }
          }
          place = before < missing && misses[before] == i ? count - missing + before : i - before;
          to.order[first + place] = ids[first + i];
        }
        to.resident[first + place] = {pool.run(to.slot_of[first + i]), nullptr};
      }
    }
    if (t.rank() == 0) {
      to.missing[item] = std::int32_t(missing);
      t.atomic_add(&to.counted[0], static_cast<unsigned long long>(count - missing));
      t.atomic_add(&to.counted[1], static_cast<unsigned long long>(missing));
    }
  }
};

/// Brings missing runs up: a warp takes a run.
template <offloading_scheme S>
struct fetch_kernel {
  static constexpr int blocks = 16;  ///< Of a (sequence, KV head).
  layer_pools<S> pools;
  layer_memory<S> memory;
  sequence_step const* steps;
  logical_block const* ids;
  i64 selected;
  resolved of;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.z];
    i64 const item = i64{at.z} * pools.map.shape.kv_heads + at.y, first = item * selected, missing = of.missing[item];
    sequence_view<S> const from{pools.map, memory, step.slot, step.pages};
    auto const pool = pools.pool(step.slot, int(at.y));
    auto const w = t.warp();
    for (i64 m = at.x * w.count() + w.index(); m < missing; m += i64{blocks} * w.count()) {
      i64 const i = of.misses[first + m];
      std::byte const* const far = memory.far + from.far_layout().offset(plane::keys, ids[first + i], int(at.y), 0);
      operation::copy_run(pool.run(of.slot_of[first + i]), far, pool.run_bytes, w.lane(), w.width);
    }
  }
};

}  // namespace detail

/// Where a step's selected runs lie, and which of them are yet to come.
template <offloading_scheme S>
struct near_runs {
  resident_runs const* resident = nullptr;  ///< [sequences, kv_heads, selected]; null: far rows are read where they lie
  logical_block const* order = nullptr;     ///< The blocks beside resident; null: as selected.
  std::int32_t const* missing = nullptr;    ///< [sequences, kv_heads]: so many at the end are brought by `fetch`; null: all are there.
  detail::fetch_kernel<S> fetch{};

  near_runs() = default;
  /// All are there, as selected.
  explicit near_runs(resident_runs const* all) : resident(all) {}
};

/// Pools of every layer, sequence and KV head, as large as a step's selection, or larger where limits::pool_runs asks for more in all.
///
/// Nothing where the scheme has no runs to keep (operation::keeps_runs), or its far memory is the device's own.
template <offloading_scheme S, class On>
class run_pools {
 public:
  static constexpr bool is_used = operation::keeps_runs<S> && !S::tier::is_device_reachable;

  run_pools(On const& on, memory_map<S> const& map, limits const& l, operation::decode_workspace<S> const& sizes) {
    if (!is_used || sizes.selected == 0 || map.discards_far) return;
    int const heads = map.shape.kv_heads;
    i64 const pools = i64{map.shape.layers} * l.sequences * heads, items = l.step_sequences * heads;
    layers_ = map.shape.layers;
    sequences_ = l.sequences;
    selected_ = sizes.selected;
    all_ = {map, nullptr, nullptr, sizes.blocks, std::min(sizes.blocks, std::max(sizes.selected, l.pool_runs / pools))};
    bookkeeping_ = on.template allocate<std::byte>(pools * operation::run_pool::head_bytes(all_.blocks, all_.slots));
    runs_ = on.template allocate<std::byte>(pools * round_up(all_.slots * map.geometry().slice_bytes(), 16));
    counted_ = on.template allocate<unsigned long long>(2);
    i64 const words = result_words(items, selected_);
    words_ = on.template allocate<std::int32_t>(words * steps_at_once);
    resident_ = on.template allocate<resident_runs>(items * selected_ * steps_at_once);
    for (i64 i = 0; i < steps_at_once; ++i) {
      found_[i] = results(words_.data() + i * words, resident_.data() + i * items * selected_, items, selected_);
    }
  }
  i64 bytes() const { return i64(bookkeeping_.size() + runs_.size()); }

  /// Forgets the blocks of a sequence from `first` on, in all layers.
  void forget(On const& on, i64 slot, i64 first) const {
    for (int layer = 0; layer < layers_; ++layer) on.template launch<256>({all_.map.shape.kv_heads}, 0, detail::forget_kernel<S>{of(layer), slot, first});
  }
  /// Has the selected runs of a step near, or, where the scheme is not reproducible, tells what attend_blocks is to fetch meanwhile. `is_ahead`: for a later
  /// attend, beside the one of another layer.
  near_runs<S> bring(On const& on, layer_memory<S> const& memory, row_view<sequence_step const> steps, logical_block const* ids, i64 const* counts,
                     bool is_ahead = false) const {
    if (layers_ == 0) return {};
    return bring_by(on, memory, steps, ids, counts, selected_, found_[is_ahead ? steps_at_once - 1 : 0], is_ahead);
  }
  /// Has a KV head's runs near: the first ones, as many as the pool has slots. `step`: the sequence and its last step. The first call allocates.
  void prefetch(On const& on, layer_memory<S> const& memory, sequence_step const& step, int head, row_view<logical_block const> ids) {
    if (layers_ == 0) return;
    std::vector<logical_block> first;
    for (logical_block const b : ids)
      if (i64(first.size()) < all_.slots && std::find(first.begin(), first.end(), b) == first.end()) first.push_back(b);
    std::sort(first.begin(), first.end());
    i64 const n = i64(first.size()), heads = all_.map.shape.kv_heads, width = all_.slots;
    if (n == 0) return;
    if (named_.steps.size() == 0) {
      named_.ids = on.template allocate<logical_block>(heads * width);
      named_.counts = on.template allocate<i64>(heads);
      named_.words = on.template allocate<std::int32_t>(result_words(heads, width));
      named_.resident = on.template allocate<resident_runs>(heads * width);
      named_.steps = on.template allocate<sequence_step>(1);  // last: what is there if another allocation failed is replaced
    }
    detail::name_runs_kernel names{{}, 0, 0, n, head, heads, width, step, named_.ids.data(), named_.counts.data(), named_.steps.data()};
    for (; names.first < n; names.first += names.count) {
      names.count = std::min(n - names.first, names.most);
      std::copy_n(first.begin() + names.first, names.count, names.named);
      on.template launch<256>({}, 0, names);
    }
    bring_by(on, memory, row_view<sequence_step const>{named_.steps.data(), 1}, named_.ids.data(), named_.counts.data(), width,
             results(named_.words.data(), named_.resident.data(), heads, width), true);
  }
  /// Selected runs that were near and that were not, since the cache was made. Waits.
  void count(On const& on, i64& hits, i64& misses) const {
    unsigned long long both[2] = {};
    if (layers_ > 0) on.download(both, counted_.data(), sizeof both);
    hits = i64(both[0]);
    misses = i64(both[1]);
  }

 private:
  static i64 result_words(i64 items, i64 selected) { return items * ((S::is_reproducible ? 3 : 4) * selected + 1); }
  /// `words`: result_words of them.
  detail::resolved results(std::int32_t* words, resident_runs* resident, i64 items, i64 selected) const {
    auto* const w = words + 2 * items * selected;
    return {words,
            words + items * selected,
            w,
            reinterpret_cast<logical_block*>(w + items),
            resident,
            S::is_reproducible ? nullptr : reinterpret_cast<logical_block*>(w + items + items * selected),
            const_cast<unsigned long long*>(counted_.data())};
  }
  near_runs<S> bring_by(On const& on, layer_memory<S> const& memory, row_view<sequence_step const> steps, logical_block const* ids, i64 const* counts,
                        i64 selected, detail::resolved const& found, bool brings_all) const {
    auto const pools = of(memory.layer);
    i64 const heads = all_.map.shape.kv_heads;
    on.template launch<256>({heads, steps.count}, operation::resolve_bytes, detail::resolve_kernel<S>{pools, steps.data, ids, counts, selected, found});
    detail::fetch_kernel<S> const fetch{pools, memory, steps.data, ids, selected, found};
    near_runs<S> near(found.resident);
    if constexpr (!S::is_reproducible) {
      near.order = found.order;
      if (!brings_all) {
        near.missing = found.missing;
        near.fetch = fetch;
        return near;
      }
    }
    on.template launch<128>({detail::fetch_kernel<S>::blocks, heads, steps.count}, 0, fetch);
    return near;
  }
  detail::layer_pools<S> of(int layer) const {
    detail::layer_pools<S> pools = all_;
    i64 const at = i64{layer} * sequences_ * all_.map.shape.kv_heads;
    pools.bookkeeping = const_cast<std::byte*>(bookkeeping_.data()) + at * operation::run_pool::head_bytes(all_.blocks, all_.slots);
    pools.runs = const_cast<std::byte*>(runs_.data()) + at * round_up(all_.slots * all_.map.geometry().slice_bytes(), 16);
    return pools;
  }

  detail::layer_pools<S> all_;
  typename On::template buffer<std::byte> bookkeeping_, runs_;
  typename On::template buffer<std::int32_t> words_;
  typename On::template buffer<unsigned long long> counted_;
  typename On::template buffer<resident_runs> resident_;
  // What prefetch was asked for last.
  struct {
    typename On::template buffer<logical_block> ids;
    typename On::template buffer<i64> counts;
    typename On::template buffer<std::int32_t> words;
    typename On::template buffer<resident_runs> resident;
    typename On::template buffer<sequence_step> steps;
  } named_;
  static constexpr i64 steps_at_once = operation::keeps_selections<S> ? 2 : 1;  // one that is attended, one that is selected ahead
  detail::resolved found_[steps_at_once];
  int layers_ = 0;
  i64 sequences_ = 0, selected_ = 0;
};

}  // namespace cellar::cuda
