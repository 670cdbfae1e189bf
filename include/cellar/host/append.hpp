#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>

#include "cellar/host/executor.hpp"
#include "cellar/operation/seal.hpp"
#include "cellar/operation/workspace.hpp"

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
    expects(step.sealed_before >= 0 && step.sealed_before <= step.sealed && step.sealed <= step.pages.count * memory_map<S>::page_blocks,
            "sequence_step: sealed must be at least sealed_before, and the page table must name a page for every sealed block");
    expects(step.sealed == 0 || map.sinks + step.sealed * S::block_tokens <= step.length - step.new_tokens,
            "sequence_step: a sealed block holds tokens of the step itself; they must stay near for their own queries");
    expects(step.length - map.sinks - step.sealed_before * S::block_tokens <= map.tail_rows,
            "sequence_step: memory_map::tail_rows is too small for the tokens from the sealed blocks to the length");
  }
}

}  // namespace detail

/// Whether every element is a number of at most that magnitude; false for NaN.
template <storage_scalar T>
bool are_storable(executor const& on, heads_view<T const> x, float most) {
  std::atomic<bool> all = true;
  detail::for_runs(on, x.tokens, [&](i64 first, i64 last) {
    bool mine = true;
    for (i64 i = first; i < last; ++i)
      for (int h = 0; h < x.heads; ++h)
        for (int c = 0; c < x.head_dim; ++c) mine &= std::abs(to_float(x.row(i, h)[c])) <= most;
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

/// Writes the step's keys and values near, and seals the blocks that leave the window.
///
/// Shapes      k, v [step tokens, kv_heads, head_dim]; a sequence's rows start at its first_row
/// Requires    page ids within the memory; finite rows; workspace of append_workspace_bytes a worker
/// Effects     writes near memory, tiles and far planes of these sequences in this layer; allocates nothing
/// Errors      precondition_error, before anything is written, for a step that its memory cannot hold
/// Complexity  O(new tokens), and O(block) for each block that seals
template <offloading_scheme S, storage_scalar T>
void append_tokens(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> k,
                   heads_view<T const> v, std::byte* workspace) {
  int const heads = map.shape.kv_heads;
  detail::check_steps(map, steps, std::min(k.tokens, v.tokens));
  expects(is_rows_of(k, heads, S::head_dim) && is_rows_of(v, heads, S::head_dim), "append_tokens: keys and values must be [step tokens, kv_heads, head_dim]");
  on.for_each(steps.count * heads, [&](i64 item, int worker) {
    sequence_step const& step = steps[item / heads];
    int const head = int(item % heads);
    sequence_view<S> const to{map, memory, step.slot, step.pages};
    using near_scalar = typename S::near_scalar;
    for (i64 i = 0; i < step.new_tokens; ++i) {
      i64 const position = step.length - step.new_tokens + i;
      for (int side = 0; side < 2; ++side) {
        T const* const from = (side == 0 ? k : v).row(step.first_row + i, head);
        near_scalar* const row = to.near_row(head, side, position);
        for (int c = 0; c < S::head_dim; ++c) row[c] = from_float<near_scalar>(to_float(from[c]));
      }
    }
    auto* const keys = reinterpret_cast<float*>(workspace + worker * operation::append_workspace_bytes<S>());
    float* const values = keys + memory_map<S>::page_tokens * S::head_dim;
    for (i64 b = step.sealed_before; b < step.sealed;) {
      i64 const blocks = std::min<i64>(step.sealed - b, memory_map<S>::page_blocks);
      i64 const tokens = blocks * S::block_tokens;
      for (i64 i = 0; i < tokens; ++i)
        for (int side = 0; side < 2; ++side) {
          near_scalar const* const row = to.near_row(head, side, to.position(b) + i);
          for (int c = 0; c < S::head_dim; ++c) (side == 0 ? keys : values)[i * S::head_dim + c] = to_float(row[c]);
        }
      serial_team t;
      operation::seal(t, to, head, b, blocks, matrix_view<float const, S::head_dim>{keys, tokens}, matrix_view<float const, S::head_dim>{values, tokens});
      b += blocks;
    }
  });
}

/// Seals a prompt in all its layers: trains what learns, seals `sealed` blocks, and copies sinks and tail near.
///
/// Blocks are coded from the rows as given; blocks that seal while decoding (append_tokens) from near memory, that is, rounded to near_scalar.
///
/// Shapes      scratch [workers, prompt_scratch_floats<S, T>(length)]
/// Requires    step: slot, pages, sealed and length; finite rows
/// Effects     writes near memory, state, tiles and far planes of that sequence; layers and KV heads run in parallel; allocates nothing
/// Errors      precondition_error, before anything is written
/// Complexity  O(length) for each layer
template <offloading_scheme S, storage_scalar T>
void seal_prompt(executor const& on, memory_map<S> const& map, row_view<prompt_layer<S, T> const> layers, sequence_step const& step, row_view<float> scratch) {
  constexpr int D = S::head_dim;
  using rows_view = matrix_view<float const, D>;
  i64 const each = operation::prompt_scratch_floats<S, T>(step.length), far_begin = map.sinks, far_end = map.sinks + step.sealed * S::block_tokens;
  expects(scratch.count >= on.workers() * each, "seal_prompt: scratch is smaller than prompt_scratch_floats for each worker");
  expects(step.sealed >= 0 && step.sealed <= step.pages.count * memory_map<S>::page_blocks && (step.sealed == 0 || far_end <= step.length),
          "seal_prompt: the sealed blocks exceed the prompt or its page table");
  expects(step.length - far_end <= map.tail_rows, "seal_prompt: memory_map::tail_rows is too small for the tokens after the sealed blocks");
  for (auto const& layer : layers)
    expects(is_rows_of(layer.keys, map.shape.kv_heads, D) && is_rows_of(layer.values, map.shape.kv_heads, D) && layer.keys.tokens >= step.length &&
                layer.values.tokens >= step.length,
            "seal_prompt: keys and values must be [length, kv_heads, head_dim]");
  on.for_each(layers.count * map.shape.kv_heads, [&](i64 item, int worker) {
    prompt_layer<S, T> const& layer = layers[item / map.shape.kv_heads];
    int const head = int(item % map.shape.kv_heads);
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    // Rows [first, last) in f32: in place where they are, else copied to `room`.
    auto const rows = [&](heads_view<T const> const& x, i64 first, i64 last, float* room) {
      if constexpr (std::is_same_v<T, float>) {
        return rows_view{x.row(first, head), last - first, x.token_stride};
      } else {
        for (i64 i = first; i < last; ++i)
          for (int c = 0; c < D; ++c) room[(i - first) * D + c] = to_float(x.row(i, head)[c]);
        return rows_view{room, last - first};
      }
    };
    float* const mine = scratch.data + worker * each;
    serial_team t;
    if constexpr (trained<typename S::summary> || trained<typename S::key_codec>) operation::train_keys(t, to, head, rows(layer.keys, 0, step.length, mine));
    if constexpr (trained<typename S::value_codec>) operation::train_values(t, to, head, rows(layer.values, 0, step.length, mine));
    for (i64 b = 0; b < step.sealed; b += memory_map<S>::page_blocks) {
      i64 const blocks = std::min<i64>(step.sealed - b, memory_map<S>::page_blocks), first = to.position(b), last = to.position(b + blocks);
      auto const k = rows(layer.keys, first, last, mine), v = rows(layer.values, first, last, mine + memory_map<S>::page_tokens * D);
      operation::seal(t, to, head, b, blocks, k, v);
    }
    for (i64 p = 0; p < step.length; ++p) {
      if (p >= far_begin && p < far_end) continue;
      for (int side = 0; side < 2; ++side) {
        T const* const from = (side == 0 ? layer.keys : layer.values).row(p, head);
        for (int c = 0; c < D; ++c) to.near_row(head, side, p)[c] = from_float<typename S::near_scalar>(to_float(from[c]));
      }
    }
  });
}

}  // namespace cellar::host
