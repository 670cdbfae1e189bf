#pragma once
#include <algorithm>

#include "cellar/host/executor.hpp"
#include "cellar/operation/seal.hpp"
#include "cellar/operation/workspace.hpp"

namespace cellar::host {

/// Writes the step's keys and values near, and seals the blocks that leave the window.
///
/// Shapes      k, v [step tokens, kv_heads, head_dim]; a sequence's rows start at its first_row
/// Requires    steps as planned: pages hold `sealed` blocks, the ring holds everything from sealed_before to length
/// Effects     writes near memory, tiles and far planes of these sequences in this layer; allocates nothing
/// Complexity  O(new tokens), and O(block) for each block that seals
template <offloading_scheme S, storage_scalar T>
void append_tokens(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> k,
                   heads_view<T const> v, std::byte* workspace) {
  int const heads = map.shape.kv_heads;
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

/// Seals a prompt in one layer: trains what learns, seals `sealed` blocks, and copies sinks and tail near.
///
/// Shapes      k, v [length, kv_heads, head_dim], the whole prompt, keys as attended
/// Effects     writes near memory, state, tiles and far planes of that sequence in this layer; allocates two f32 copies of a head's rows a worker
/// Complexity  O(length)
template <offloading_scheme S, storage_scalar T>
void seal_prompt(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, sequence_step const& step, heads_view<T const> k,
                 heads_view<T const> v, row_view<float> scratch) {
  i64 const each = step.length * S::head_dim;
  on.for_each(map.shape.kv_heads, [&](i64 item, int worker) {
    int const head = int(item);
    sequence_view<S> const to{map, memory, step.slot, step.pages};
    float* const keys = scratch.data + worker * 2 * each;
    float* const values = keys + each;
    for (i64 i = 0; i < step.length; ++i)
      for (int c = 0; c < S::head_dim; ++c) {
        keys[i * S::head_dim + c] = to_float(k.row(i, head)[c]);
        values[i * S::head_dim + c] = to_float(v.row(i, head)[c]);
      }
    serial_team t;
    matrix_view<float const, S::head_dim> const all_keys{keys, step.length}, all_values{values, step.length};
    operation::train(t, to, head, all_keys, all_values);
    i64 const first = map.sinks * S::head_dim, tokens = step.sealed * S::block_tokens;
    operation::seal(t, to, head, 0, step.sealed, matrix_view<float const, S::head_dim>{keys + first, tokens},
                    matrix_view<float const, S::head_dim>{values + first, tokens});
    for (i64 p = 0; p < step.length; ++p) {
      if (p >= map.sinks && p < to.position(step.sealed)) continue;
      for (int side = 0; side < 2; ++side)
        for (int c = 0; c < S::head_dim; ++c)
          to.near_row(head, side, p)[c] = from_float<typename S::near_scalar>((side == 0 ? keys : values)[p * S::head_dim + c]);
    }
  });
}

}  // namespace cellar::host
