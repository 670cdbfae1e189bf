#pragma once
#include <utility>
#include <vector>

#include "cellar/cuda/attend.hpp"

/// Selections that serve several layers or steps, kept in device memory, so that a captured step finds out by itself whether it selects anew.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

/// Kept selections of all selecting layers, [layer][sequence] and, ids and counts, [kv_head].
struct kept_memory {
  logical_block* ids = nullptr;
  i64 *counts = nullptr, *made_in = nullptr;
  i64 layers = 0, sequences = 0, heads = 0, selected = 0;
};

struct forget_selections_kernel {
  kept_memory kept;
  i64 slot;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place) const {
    for (i64 i = t.rank(); i < kept.layers; i += t.size()) kept.made_in[i * kept.sequences + slot] = 0;
  }
};

struct drop_selected_kernel {
  kept_memory kept;
  i64 slot, sealed;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    i64 const item = (i64{at.y} * kept.sequences + slot) * kept.heads + at.x, n = kept.counts[item];
    logical_block const* const ids = kept.ids + item * kept.selected;
    t.sync();
    for (i64 i = t.rank(); i < n; i += t.size())  // ids ascend: one member finds the end of what stays
      if (number(ids[i]) >= sealed && (i == 0 || number(ids[i - 1]) < sealed)) kept.counts[item] = i;
  }
};

/// The step as its selection sees it: those that do not select are empty.
template <offloading_scheme S>
struct selecting_steps_kernel {
  kept_memory kept;
  sequence_step const* steps;
  sequence_step* to;
  i64 count, source;
  bool is_ahead, is_appended;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place) const {
    for (i64 i = t.rank(); i < count; i += t.size()) {
      sequence_step step = steps[i];
      if (step.new_tokens > 0 && !is_ahead && !operation::is_selection_due<S>(kept.made_in[source * kept.sequences + step.slot], step.number))
        step.new_tokens = 0;
      if (!is_appended) step.sealed = step.sealed_before;
      to[i] = step;
    }
  }
};

/// Keeps what was selected, and gives the others what is kept; nothing where that is another layer's to select first.
template <offloading_scheme S>
struct keep_kernel {
  kept_memory kept;
  sequence_step const *steps, *selecting;  // selecting null: none does
  logical_block* ids;
  i64* counts;
  i64 source;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.y];
    if (step.new_tokens == 0) return;
    i64 const from = source * kept.sequences + step.slot, mine = from * kept.heads + at.x, item = i64{at.y} * kept.heads + at.x;
    logical_block *const stored = kept.ids + mine * kept.selected, *const chosen = ids + item * kept.selected;
    if (selecting && selecting[at.y].new_tokens > 0) {
      for (i64 i = t.rank(); i < kept.selected; i += t.size()) stored[i] = chosen[i];
      if (t.rank() == 0) kept.counts[mine] = counts[item];
      if (t.rank() == 0 && at.x == 0) kept.made_in[from] = step.number;
    } else {
      i64 const n = operation::is_selection_due<S>(kept.made_in[from], step.number) ? 0 : kept.counts[mine];
      for (i64 i = t.rank(); i < kept.selected; i += t.size()) chosen[i] = i < n ? stored[i] : logical_block{-1};
      if (t.rank() == 0) counts[item] = n;
    }
  }
};

}  // namespace detail

/// Ids that serve several layers or steps. What host::kept_selections does, but that a layer which shares a selection that is not there attends to no far
/// block: nothing is read back.
template <offloading_scheme S, class On>
class kept_selections {
 public:
  kept_selections(On const& on, memory_map<S> const& map, limits const& l, budget const& b, operation::decode_workspace<S> const& sizes) {
    if constexpr (operation::keeps_selections<S>) {
      i64 const heads = map.shape.kv_heads, layers = operation::selecting_layers<S>(map.shape, b), slots = layers * l.sequences;
      dense_layers_ = b.dense_layers;
      ids_ = on.template allocate<logical_block>(slots * heads * sizes.selected);
      counts_ = on.template allocate<i64>(slots * heads + slots);
      kept_ = {ids_.data(), counts_.data(), counts_.data() + slots * heads, layers, l.sequences, heads, sizes.selected};
      selecting_ = on.template allocate<sequence_step>(2 * l.step_sequences);
      ids_ahead_ = on.template allocate<logical_block>(l.step_sequences * heads * sizes.selected);
      counts_ahead_ = on.template allocate<i64>(l.step_sequences * heads);
      workspace_ahead_ = on.template allocate<std::byte>(step_workspace_bytes<S>(on, map.shape, l, b) + 64);
      is_forgotten_.resize(std::size_t(l.sequences));
    }
  }

  /// Whatever was selected for a sequence, from the next begin_step on.
  void forget(i64 slot) {
    if (!is_forgotten_.empty()) is_forgotten_[std::size_t(slot)] = true;
  }
  void begin_step(On const& on) {
    for (std::size_t slot = 0; slot < is_forgotten_.size(); ++slot)
      if (std::exchange(is_forgotten_[slot], char{0})) on.template launch<32>({}, 0, detail::forget_selections_kernel{kept_, i64(slot)});
  }
  /// Ids of blocks from `sealed` on.
  void drop(On const& on, i64 slot, i64 sealed) { on.template launch<32>({kept_.heads, kept_.layers}, 0, detail::drop_selected_kernel{kept_, slot, sealed}); }

  /// The selection of a layer's step: anew where it is due, else the one that is kept.
  template <storage_scalar T>
  void select(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, scoring_queries<S, T> const& q,
              operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics*) {
    int const among = memory.layer - dense_layers_;
    sequence_step* selecting = nullptr;
    if (among % S::reuse::layers == 0) {
      selecting = selecting_.data();
      select_some<T>(on, map, memory, steps, false, true, q, sizes, workspace, selecting, ids, counts);
    }
    keep(on, steps, selecting, among, ids, counts);
  }

  /// What selecting ahead gives: the step that it was for, and each sequence's ids and counts.
  struct selected_ahead {
    row_view<sequence_step const> steps;
    logical_block const* ids;
    i64 const* counts;
  };
  /// A new selection for every sequence of the step. It has memory of its own: other layers may be attended meanwhile, on another stream.
  template <storage_scalar T>
  selected_ahead select_ahead(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, bool is_appended,
                              scoring_queries<S, T> const& q, operation::decode_workspace<S> const& sizes) {
    auto* const selecting = selecting_.data() + i64(selecting_.size()) / 2;
    auto* const workspace = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(workspace_ahead_.data()), 64));
    select_some<T>(on, map, memory, steps, true, is_appended, q, sizes, workspace, selecting, ids_ahead_.data(), counts_ahead_.data());
    keep(on, steps, selecting, memory.layer - dense_layers_, ids_ahead_.data(), counts_ahead_.data());
    return {{selecting, steps.count}, ids_ahead_.data(), counts_ahead_.data()};
  }

 private:
  template <class T>
  void select_some(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, bool is_ahead, bool is_appended,
                   scoring_queries<S, T> const& q, operation::decode_workspace<S> const& sizes, std::byte* workspace, sequence_step* selecting,
                   logical_block* ids, i64* counts) {
    i64 const source = (memory.layer - dense_layers_) / S::reuse::layers;
    on.template launch<32>({}, 0, detail::selecting_steps_kernel<S>{kept_, steps.data, selecting, steps.count, source, is_ahead, is_appended});
    select_blocks<S, T>(on, map, memory, row_view<sequence_step const>{selecting, steps.count}, q, sizes, workspace, ids, counts);
  }
  void keep(On const& on, row_view<sequence_step const> steps, sequence_step const* selecting, int among, logical_block* ids, i64* counts) const {
    on.template launch<128>({kept_.heads, steps.count}, 0, detail::keep_kernel<S>{kept_, steps.data, selecting, ids, counts, among / S::reuse::layers});
  }

  detail::kept_memory kept_;
  typename On::template buffer<logical_block> ids_, ids_ahead_;
  typename On::template buffer<i64> counts_, counts_ahead_;
  typename On::template buffer<sequence_step> selecting_;
  typename On::template buffer<std::byte> workspace_ahead_;
  std::vector<char> is_forgotten_;
  int dense_layers_ = 0;
};

}  // namespace cellar::cuda
