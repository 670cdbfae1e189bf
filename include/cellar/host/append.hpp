#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>

#include "cellar/host/executor.hpp"
#include "cellar/operation/evict.hpp"
#include "cellar/operation/seal.hpp"
#include "cellar/operation/workspace.hpp"
#include "cellar/select/top_k.hpp"

namespace cellar::inline CELLAR_ABI::host {

namespace detail {

/// Calls f(first, last) over runs of tokens, in parallel where there are many.
template <class F>
void for_runs(executor const& on, i64 tokens, F const& f) {
  constexpr i64 run = 64;
  on.for_each(ceil_div(tokens, run), [&](i64 item, int) { f(item * run, std::min(tokens, (item + 1) * run)); });
}

/// What every driver requires of a step's sequences: each line is a mistake that would read or write outside the engine's memory.
template <offloading_scheme S>
void check_steps(memory_map<S> const& map, row_view<sequence_step const> steps, i64 rows) {
  for (sequence_step const& step : steps) {
    expects(step.new_tokens > 0 && step.new_tokens <= step.length && step.first_row >= 0 && step.first_row + step.new_tokens <= rows,
            "sequence_step: first_row and new_tokens lie outside the rows given, or new_tokens exceeds the length");
    expects(step.sealed_before >= 0 && step.sealed_before <= step.sealed && (map.discards_far || step.sealed <= step.pages.count * memory_map<S>::page_blocks),
            "sequence_step: sealed must be at least sealed_before, and the page table must name a page for every sealed block");
    expects(step.sealed == 0 || map.sinks + step.sealed * S::block_tokens <= step.length - step.new_tokens,
            "sequence_step: a sealed block holds tokens of the step itself; they must stay near for their own queries");
    expects(step.length - map.sinks - step.sealed_before * S::block_tokens <= map.tail_rows,
            "sequence_step: memory_map::tail_rows is too small for the tokens from the sealed blocks to the length");
  }
}

}  // namespace detail

/// Bytes of a cache's workspace, and floats of seal_prompt's scratch, for all workers.
template <offloading_scheme S>
i64 step_workspace_bytes(executor const& on, model_shape const& shape, limits const& l, budget const& b) {
  return operation::workspace_bytes<S>(shape, l, b, on.workers());
}
template <offloading_scheme S>
i64 prompt_floats(executor const& on, model_shape const& shape, i64 tokens, scalar_type type, i64 observed = 0) {
  return on.workers() * operation::prompt_scratch_floats<S>(shape, tokens, type, observed);
}

/// Whether every element is a number of at most that magnitude; false for NaN.
template <storage_scalar T>
bool are_storable(executor const& on, heads_view<T const> x, float most) {
  std::atomic<bool> all = true;
  detail::for_runs(on, x.tokens, [&](i64 first, i64 last) {
    serial_team const t(nullptr, 0, on.kernels());
    bool mine = true;
    for (i64 i = first; i < last; ++i)
      for (int h = 0; h < x.heads; ++h) mine &= are_within<T>(t, reinterpret_cast<std::byte const*>(x.row(i, h)), x.head_dim, most);
    if (!mine) all.store(false, std::memory_order_relaxed);
  });
  return all;
}

/// Copies rows to the rows from `first` on.
template <storage_scalar T>
void copy_rows(executor const& on, heads_view<T const> from, heads_view<T> to, i64 first) {
  detail::for_runs(on, from.tokens, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i)
      for (int h = 0; h < from.heads; ++h) std::copy_n(from.row(i, h), from.head_dim, to.row(first + i, h));
  });
}

namespace detail {

/// Seals blocks first, first + 1, ... from rows in f32, wherever the tier keeps them. Codes of the first `kept` tokens of the first block stay.
///
/// Requires  record: block_geometry::block_bytes of scratch where the tier is not read in place
/// Errors    those of the tier; the blocks may then be sealed again
template <offloading_scheme S, int Columns>
void seal_blocks(serial_team t, sequence_view<S> const& to, int head, i64 first, i64 blocks, operation::sealed_rows<S, Columns> const& rows, i64 kept,
                 std::byte* record) {
  if constexpr (S::tier::is_directly_readable) {
    operation::seal(t, to, head, first, blocks, rows, kept);
  } else {
    operation::summarize(t, to, head, first, blocks, rows);
    auto const geometry = to.map.geometry();
    i64 const bytes = head < geometry.heads ? geometry.slice_bytes() : geometry.shared_bytes();
    for (i64 b = 0; b < blocks && bytes > 0; ++b) {
      i64 const stays = b == 0 ? kept : 0;
      auto const at = to.far_layout().resolve(logical_block(first + b));
      if (stays > 0) to.memory.tier->fetch(to.memory.layer, at, head, {record, bytes});
      operation::encode_block(t, to, head, first + b, rows.some(b * S::block_tokens, S::block_tokens), stays, block_of_runs(geometry, record, record));
      to.memory.tier->store(to.memory.layer, at, head, {record, bytes});
    }
  }
}

/// Near rows [begin, end) of a KV head, or of all heads where head is their number, in f32, as sealed_rows::at finds them.
template <offloading_scheme S>
void gather_near(serial_team const& t, sequence_view<S> const& from, int head, i64 begin, i64 end, float* scratch) {
  using map = memory_map<S>;
  int const heads = from.map.shape.kv_heads, first = head < heads ? head : 0, last = head < heads ? head + 1 : heads;
  for (int side = 0; side < map::sides; ++side) {
    int const dim = map::side_dim(side);
    float* to = scratch;
    for (i64 p = begin; p < end; ++p)
      for (int h = first; h < last; ++h, to += dim) widen<typename S::near_scalar>(t, reinterpret_cast<std::byte const*>(from.near_row(h, side, p)), dim, to);
    scratch += i64{map::page_tokens} * (last - first) * dim;
  }
}

/// Rows [first, last) of the heads [first_head, last_head) in f32, packed.
inline void read_rows(vector_kernels const* kernels, any_heads_view const& from, i64 first, i64 last, int first_head, int last_head, float* to) {
  serial_team const t(nullptr, 0, kernels);
  from.visit([&]<class T>(heads_view<T const> const& x) {
    for (i64 i = first; i < last; ++i)
      for (int h = first_head; h < last_head; ++h, to += x.head_dim) widen<T>(t, reinterpret_cast<std::byte const*>(x.row(i, h)), x.head_dim, to);
  });
}

/// The attention of a prompt's last queries to each of its tokens, for one KV head.
///
/// Shapes   to [length]; queries of `layer` [observed, query_heads, head_dim], keys [length, kv_heads, head_dim]
/// Requires scratch: observed_rows * head_dim floats, and observation::bytes, 16-byte aligned
template <offloading_scheme S>
void observe_prompt(vector_kernels const* kernels, model_shape const& shape, prompt_layer<S> const& layer, int head, i64 length, float* to, float* scratch) {
  constexpr int D = S::head_dim;
  int const group = shape.group();
  serial_team t(nullptr, 0, kernels);
  auto const s = operation::observation::at(reinterpret_cast<std::byte*>(scratch + operation::observed_rows * D));
  constexpr i64 reach = operation::observed_reach<S>();
  std::fill_n(to, length, 0.0f);
  layer.keys.visit([&]<class T>(heads_view<T const> const& keys) {
    for (i64 r = 0; r < layer.queries.tokens * group; r += operation::observed_rows) {
      i64 const rows = std::min(operation::observed_rows, layer.queries.tokens * group - r);
      for (i64 i = 0; i < rows; ++i) {
        int const q_head = head * group + int((r + i) % group);
        read_rows(kernels, layer.queries, (r + i) / group, (r + i) / group + 1, q_head, q_head + 1, scratch + i * D);
        for (int c = 0; c < D; ++c) scratch[i * D + c] *= shape.scale();
      }
      operation::observing_queries<D> const queries{{scratch, rows}, r, group, length - layer.queries.tokens, reach};
      i64 const begin = std::max<i64>(0, queries.position(0) - (reach - 1)), end = queries.position(rows - 1) + 1;
      auto const key_at = [&](i64 i) { return operation::observed_key{reinterpret_cast<std::byte const*>(keys.row(begin + i, head)), begin + i}; };
      operation::observe_states<T, typename S::attention>(t, end - begin, key_at, queries, s);
      operation::add_attention<T, typename S::attention>(t, 0, end - begin, key_at, queries, s, [&](i64 i, float x) { to[begin + i] += x; });
    }
  });
}

/// Chooses a prompt's outliers of one KV head, those of the lowest value by the scheme's rule or of the highest by attention, ties by lowest id, and has
/// keep(block, i) store each.
///
/// Requires  scratch: sealed floats and a block's rows; attention, where the rule ranks by it, of the far tokens
template <offloading_scheme S, class Keys, class Keep>
void keep_outliers(vector_kernels const* kernels, sequence_view<S> const& to, int head, i64 sealed, Keys const& keys_of,
                   [[maybe_unused]] float const* attention, float* scratch, Keep const& keep) {
  i64 const n = std::min(to.map.outliers - to.map.spare_outliers, sealed);
  auto* const ids = reinterpret_cast<logical_block*>(to.outlier_record(head));
  std::fill_n(ids, to.map.outliers, logical_block{-1});
  if (n == 0) return;
  float* const badness = scratch + i64{S::block_tokens} * S::head_dim;  // the higher, the sooner a block stays
  std::byte shared[select::top_k::shared_bytes];
  serial_team t(shared, sizeof shared, kernels);
  if constexpr (attention_outlier_rule<typename S::outliers>)
    typename S::outliers{}.rank(t, row_view<float const>{attention, sealed * S::block_tokens}, S::block_tokens, row_view<float>{badness, sealed});
  else
    for (i64 b = 0; b < sealed; ++b) badness[b] = -typename S::outliers{}(t, keys_of(b, scratch));
  select::top_k{n}(t, row_view<float const>{badness, sealed}, row_view<logical_block>{ids, n});
  for (i64 i = 0; i < n; ++i) keep(number(ids[i]), i);
}

}  // namespace detail

/// Writes the step's keys and values near, and seals the blocks that leave the window.
///
/// Shapes      rows of the step's tokens; a sequence's start at its first_row
/// Requires    page ids within the memory; finite rows; workspace of append_workspace_bytes a worker
/// Effects     writes near memory, tiles and far planes of these sequences in this layer; allocates nothing
/// Errors      precondition_error, before anything is written, for a step that its memory cannot hold; those of a tier that is not read in place, after
///             which the same call may be made again (a run with kept codes that a failed store has damaged stays damaged: truncate before its block)
/// Complexity  O(new tokens), and O(block) for each block that seals
template <offloading_scheme S, storage_scalar T>
void append_tokens(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, token_rows<T> const& rows,
                   std::byte* workspace) {
  using sizes = memory_map<S>;
  int const heads = map.shape.kv_heads, groups = map.groups();
  i64 const workspace_bytes = operation::append_workspace_bytes<S>(map.shape);
  for (int side = 0; side < sizes::sides; ++side)
    if (sizes::has_side(side)) {
      detail::check_steps(map, steps, rows.rows(side).tokens);
      expects(is_rows_of(rows.rows(side), heads, sizes::side_dim(side)),
              "append_tokens: keys and values must be [step tokens, kv_heads, head_dim], values of value_dim, index keys of index_dim");
    }
  expects((!sizes::values_in_keys || !rows.values.data) && (sizes::is_indexed || !rows.index_keys.data),
          "append_tokens: the scheme does not store such rows: leave values that are in keys, and index keys of other summaries, empty");
  if constexpr (evicts_by<typename S::outliers>)
    for (sequence_step const& step : steps)
      expects(map.outliers == 0 || step.sealed - step.sealed_before <= std::min(map.spare_outliers, map.outliers),
              "append_tokens: more blocks leave the window than memory_map::spare_outliers has room for");
  on.for_each(steps.count * groups, [&](i64 item, int worker) {
    sequence_step const& step = steps[item / groups];
    int const head = int(item % groups);
    sequence_view<S> const to{map, memory, step.slot, step.pages};
    using near_scalar = typename S::near_scalar;
    serial_team t(nullptr, 0, on.kernels());
    if (head < heads)
      for (i64 i = 0; i < step.new_tokens; ++i) {
        i64 const position = step.length - step.new_tokens + i;
        for (int side = 0; side < sizes::sides; ++side) {
          if (!sizes::has_side(side)) continue;
          float row[sizes::widest_side];
          widen<T>(t, reinterpret_cast<std::byte const*>(rows.rows(side).row(step.first_row + i, head)), sizes::side_dim(side), row);
          narrow<near_scalar>(t, row, sizes::side_dim(side), reinterpret_cast<std::byte*>(to.near_row(head, side, position)));
        }
      }
    if constexpr (evicts_by<typename S::outliers>)
      if (head < heads) operation::evict(t, to, head, step);
    auto* const page = reinterpret_cast<float*>(workspace + worker * workspace_bytes);
    auto* const record = reinterpret_cast<std::byte*>(page + map.page_floats());
    for (i64 b = step.sealed_before; b < step.sealed && !map.discards_far;) {
      i64 const blocks = std::min<i64>(step.sealed - b, sizes::page_blocks), tokens = blocks * S::block_tokens;
      detail::gather_near(t, to, head, to.position(b), to.position(b) + tokens, page);
      i64 const kept = b == step.sealed_before ? step.kept_tokens : 0;
      if (head < heads)
        detail::seal_blocks(t, to, head, b, blocks, operation::sealed_rows<S, S::head_dim>::at(page, tokens, sizes::page_tokens, 1), kept, record);
      else if constexpr (sizes::has_shared)
        detail::seal_blocks(t, to, head, b, blocks, operation::sealed_rows<S, dynamic>::at(page, tokens, sizes::page_tokens, heads), kept, record);
      b += blocks;
    }
  });
}

/// Seals a prompt in all its layers: trains what learns, seals `sealed` blocks, and copies sinks and tail near.
///
/// Blocks are coded from the rows as given; blocks that seal while decoding (append_tokens) from near memory, that is, rounded to near_scalar.
///
/// Shapes      scratch [workers, prompt_scratch_floats<S>(shape, length, the scalar of keys and values, tokens of queries)]
/// Requires    step: slot, pages, sealed and length; finite rows
/// Effects     writes near memory, state, tiles and far planes of that sequence; layers and KV heads run in parallel; allocates nothing
/// Errors      precondition_error, before anything is written; those of a tier that is not read in place, and of policies that learn
/// Complexity  O(length) for each layer
template <offloading_scheme S>
void seal_prompt(executor const& on, memory_map<S> const& map, row_view<prompt_layer<S> const> layers, sequence_step const& step, row_view<float> scratch) {
  constexpr int D = S::head_dim, V = S::value_dim;
  using sizes = memory_map<S>;
  expects(layers.count > 0, "seal_prompt: there are no layers");
  scalar_type const type = layers[0].keys.type;
  int const heads = map.shape.kv_heads, groups = map.groups();
  i64 const observed = layers[0].queries.tokens, each = operation::prompt_scratch_floats<S>(map.shape, step.length, type, observed), far_begin = map.sinks,
            far_end = map.sinks + step.sealed * S::block_tokens;
  expects(scratch.count >= on.workers() * each, "seal_prompt: scratch is smaller than prompt_scratch_floats for each worker");
  expects(step.sealed >= 0 && (map.discards_far || step.sealed <= step.pages.count * sizes::page_blocks) && (step.sealed == 0 || far_end <= step.length),
          "seal_prompt: the sealed blocks exceed the prompt or its page table");
  expects(step.length - far_end <= map.tail_rows, "seal_prompt: memory_map::tail_rows is too small for the tokens after the sealed blocks");
  for (auto const& layer : layers) {
    for (int side = 0; side < sizes::sides; ++side)
      expects(!sizes::has_side(side) || layer.rows(side).type == type, "seal_prompt: keys and values of all layers must have one scalar type");
    for (int side = 0; side < sizes::sides; ++side)
      expects(!sizes::has_side(side) || (is_rows_of(layer.rows(side), heads, sizes::side_dim(side)) && layer.rows(side).tokens >= step.length),
              "seal_prompt: keys and values must be [length, kv_heads, head_dim], values of value_dim, index keys of index_dim");
    if constexpr (observes_queries<S>)
      expects(
          is_rows_of(layer.queries, map.shape.query_heads, D) && layer.queries.tokens == observed && observed <= step.length,
          "seal_prompt: the scheme learns from a prompt's queries: they must be [observed, query_heads, head_dim], of its last tokens, in all layers alike");
  }
  on.for_each(layers.count * groups, [&](i64 item, int worker) {
    prompt_layer<S> const& layer = layers[item / groups];
    int const head = int(item % groups);
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    float* const mine = scratch.data + worker * each;
    i64 const bytes = map.train_scratch() + (S::tier::is_directly_readable ? 0 : map.geometry().block_bytes());
    auto* const aligned = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(mine + each) - bytes - 15, 16));
    // What the prompt's queries take lies before that.
    [[maybe_unused]] i64 const observation = round_up(operation::observation_floats<S>(map.shape, step.length, observed), 16);
    [[maybe_unused]] auto* const observing =
        reinterpret_cast<float*>(round_up(reinterpret_cast<i64>(mine + each) - (bytes > 0 ? bytes + 64 : 0) - observation * i64(sizeof(float)), 16));
    float const* attention = nullptr;  // to each of the prompt's tokens
    matrix_view<float const, D> queries{};
    if constexpr (operation::observes_attention<S>)
      if (head < heads) {
        detail::observe_prompt(on.kernels(), map.shape, layer, head, step.length, observing, observing + round_up(step.length, 16));
        attention = observing;
      }
    if constexpr (query_trained<typename S::summary>)
      if (head < heads) {
        int const group = map.shape.group();
        float* const to = observing + observation - round_up(observed * group * D, 16);
        detail::read_rows(on.kernels(), layer.queries, 0, observed, head * group, (head + 1) * group, to);
        queries = {to, observed * group};
      }
    auto const seal = [&]<int Columns>(std::integral_constant<int, Columns>) {
      using rows_of = operation::sealed_rows<S, Columns>;
      int const first_head = Columns == dynamic ? 0 : head, last_head = Columns == dynamic ? heads : head + 1;
      // Rows [first, last) in f32: in place where they are, else copied to the worker's scratch (which may be none) from `at` on.
      auto const rows = [&]<int C>(matrix_view<float const, C> const&, any_heads_view const& x, i64 first, i64 last, i64 at) {
        i64 const columns = i64{last_head - first_head} * x.head_dim;
        if (type == scalar_type::f32 && (C != dynamic || x.head_stride == x.head_dim))
          return matrix_view<float const, C>{x.as<float>().row(first, first_head), last - first, x.token_stride, columns};
        detail::read_rows(on.kernels(), x, first, last, first_head, last_head, mine + at);
        return matrix_view<float const, C>{mine + at, last - first, columns, columns};
      };
      rows_of of{};
      constexpr bool learns_keys = (trained<typename S::summary> && operation::is_served<typename S::summary, Columns>) ||
                                   (trained<typename S::key_codec> && operation::is_served<typename S::key_codec, Columns>);
      serial_team t(nullptr, 0, on.kernels());
      if constexpr (learns_keys) {
        if constexpr (Columns != dynamic)
          operation::train_keys(t, to, head, rows(of.keys, layer.keys, 0, step.length, 0), aligned, queries);
        else
          operation::train_keys(t, to, head, rows(of.keys, layer.keys, 0, step.length, 0), aligned);
      }
      if constexpr (trained<typename S::value_codec> && operation::is_served<typename S::value_codec, Columns>)
        operation::train_values(t, to, head, rows(of.values, layer.values, 0, step.length, 0), aligned);
      for (i64 b = 0; b < step.sealed && !map.discards_far; b += sizes::page_blocks) {
        i64 const blocks = std::min<i64>(step.sealed - b, sizes::page_blocks), first = to.position(b), last = to.position(b + blocks);
        of.keys = rows(of.keys, layer.keys, first, last, 0);
        if constexpr (!sizes::values_in_keys) of.values = rows(of.values, layer.values, first, last, i64{sizes::page_tokens} * (last_head - first_head) * D);
        if constexpr (sizes::is_indexed && Columns != dynamic)
          of.index_keys = rows(of.index_keys, layer.index_keys, first, last, i64{sizes::page_tokens} * (sizes::side_dim(0) + sizes::side_dim(1)));
        of.attention = attention ? attention + first : nullptr;
        detail::seal_blocks(t, to, head, b, blocks, of, 0, aligned + map.train_scratch());
      }
    };
    if (head == heads) {
      if constexpr (sizes::has_shared) seal(std::integral_constant<int, dynamic>{});
      return;
    }
    seal(std::integral_constant<int, D>{});
    float row[sizes::widest_side];
    auto const read = [&](int side, i64 p) { detail::read_rows(on.kernels(), layer.rows(side), p, p + 1, head, head + 1, row); };
    [[maybe_unused]] auto const store_near = [&](int side, i64 p, typename S::near_scalar* near) {
      read(side, p);
      narrow<typename S::near_scalar>(serial_team(nullptr, 0, on.kernels()), row, sizes::side_dim(side), reinterpret_cast<std::byte*>(near));
    };
    if constexpr (remainder_by_class<typename S::remainder>) {
      int room[4];
      serial_team t(reinterpret_cast<std::byte*>(room), sizeof room, on.kernels());
      layer.rows(sizes::value_side).visit([&]<class T>(heads_view<T const> const& x) {
        operation::learn_class_values(
            t, to, head, step.sealed, [&](i64 p, int c) { return to_float(x.row(p, head)[c]); }, reinterpret_cast<std::uint32_t*>(mine));
      });
    } else if constexpr (S::remainder::estimates) {
      double sums[V] = {};
      for (i64 p = far_begin; p < far_end; ++p) {
        read(sizes::value_side, p);
        for (int c = 0; c < V; ++c) sums[c] += double(row[c]);
      }
      for (int c = 0; c < V; ++c) to.mean_value(head)[c] = step.sealed > 0 ? float(sums[c] / double(far_end - far_begin)) : undefined;
    }
    if constexpr (S::outliers::keeps_outliers) {
      auto const keys_of = [&](i64 b, float* room) {  // a block's keys in f32
        detail::read_rows(on.kernels(), layer.keys, to.position(b), to.position(b) + S::block_tokens, head, head + 1, room);
        return matrix_view<float const, D>{room, S::block_tokens};
      };
      detail::keep_outliers(on.kernels(), to, head, step.sealed, keys_of, attention ? attention + far_begin : nullptr, mine, [&](i64 b, i64 o) {
        for (i64 i = 0; i < S::block_tokens; ++i)
          for (int side = 0; side < sizes::sides; ++side)
            if (sizes::has_side(side)) store_near(side, to.position(b) + i, to.outlier_row(head, side, o, i));
      });
      if constexpr (evicts_by<typename S::outliers>) operation::begin_eviction(serial_team(nullptr, 0, on.kernels()), to, head, step, attention);
    }
    for (i64 p = 0; p < step.length; ++p) {
      if (p >= far_begin && p < far_end) continue;
      for (int side = 0; side < sizes::sides; ++side)
        if (sizes::has_side(side)) store_near(side, p, to.near_row(head, side, p));
    }
  });
}

}  // namespace cellar::host
