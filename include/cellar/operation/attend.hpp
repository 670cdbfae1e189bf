#pragma once
#include "cellar/attention/softmax_state.hpp"
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Keys and values are taken this many tokens at a time, counted from the first attended one: the split that makes results independent
/// of threads and batch.
inline constexpr i64 attend_tokens = 64;

/// Scratch of `attend` for one KV head, in bytes.
template <offloading_scheme S>
struct attend_workspace {
  i64 rows = 0;  ///< Query rows of a group, at most.

  static constexpr i64 chunk_rows = round_up(attend_tokens, S::block_tokens) + S::block_tokens;
  i64 floats() const { return 2 * chunk_rows * S::head_dim + rows * chunk_rows + rows * S::head_dim + 2 * rows; }
  i64 bytes() const { return round_up(floats() * i64(sizeof(float)), 16) + round_up(chunk_rows * i64(sizeof(i64)), 16); }
};

/// Exact attention of one KV head's query group over some of its keys: softmax(q . k) . v over sinks, chosen far blocks and the tail.
///
/// Parts are visited in ascending position and merged by the softmax state; a far block is decoded as it is met.
///
/// Shapes      queries [tokens * group, head_dim] f32, times the softmax scale, row = token * group + head; out the same shape, written
/// Requires    blocks ascending, below sealed; `every` means all sealed blocks and ignores `blocks`
/// Effects     a body over a team; on_decode(begin) is called around decoding (statistics), and may be empty
/// Complexity  O(rows * attended tokens * head_dim)
template <team Team, offloading_scheme S, class OnDecode>
CELLAR_HD void attend(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, row_view<logical_block const> blocks, bool every,
                      matrix_view<float const, S::head_dim> queries, matrix_view<float, S::head_dim> out, attend_workspace<S> const& sizes,
                      std::byte* workspace, OnDecode&& on_decode) {
  using map = memory_map<S>;
  constexpr int D = S::head_dim;
  constexpr i64 chunk = attend_workspace<S>::chunk_rows;
  i64 const rows = queries.rows, group = rows / step.new_tokens, first_query = step.length - step.new_tokens;
  typename S::attention const variant{};

  auto* const positions = reinterpret_cast<i64*>(workspace);                                        // (token)
  auto* const keys = reinterpret_cast<float*>(workspace + round_up(chunk * i64(sizeof(i64)), 16));  // (token, channel)
  float* const values = keys + chunk * D;                                                           // (token, channel)
  float* const weights = values + chunk * D;                                                        // (row, token)
  float* const sums = weights + sizes.rows * chunk;                                                 // (row, channel)
  auto* const states = reinterpret_cast<attention::softmax_state*>(sums + sizes.rows * D);          // (row)

  for (i64 r = t.rank(); r < rows; r += t.size()) {
    states[r] = {};
    for (int c = 0; c < D; ++c) sums[r * D + c] = 0;
  }
  i64 filled = 0;
  auto const flush = [&] {  // attends the tokens gathered so far
    t.sync();
    for (i64 r = t.rank(); r < rows; r += t.size()) {
      i64 const q_position = first_query + r / group;
      float* const weight = weights + r * chunk;
      float top = -infinity;
      for (i64 i = 0; i < filled; ++i) {
        weight[i] = variant.visible(q_position, positions[i]) ? variant.logit(dot<D>(queries.row(r), keys + i * D), q_position, positions[i]) : -infinity;
        top = maximum{}(top, weight[i]);
      }
      if (top == -infinity) continue;
      float const reference = attention::raise_reference(states[r], top, sums + r * D, D);
      float* const sum = sums + r * D;
      for (i64 i = 0; i < filled; ++i) {
        if (weight[i] == -infinity) continue;
        float const w = exponential(weight[i] - reference);
        states[r].l += w;
        float const* const value = values + i * D;
        for (int c = 0; c < D; ++c) sum[c] += w * value[c];
      }
    }
    t.sync();
    filled = 0;
  };
  auto const gather_near = [&](i64 begin, i64 end) {
    for (i64 p = begin; p < end;) {
      i64 const n = end - p < attend_tokens - filled ? end - p : attend_tokens - filled;
      for (i64 i = t.rank(); i < n; i += t.size()) {
        auto const* const k = from.near_row(head, 0, p + i);
        auto const* const v = from.near_row(head, 1, p + i);
        positions[filled + i] = p + i;
        for (int c = 0; c < D; ++c) keys[(filled + i) * D + c] = to_float(k[c]);
        for (int c = 0; c < D; ++c) values[(filled + i) * D + c] = to_float(v[c]);
      }
      filled += n;
      p += n;
      if (filled >= attend_tokens) flush();
    }
  };

  gather_near(0, step.length < from.map.sinks ? step.length : from.map.sinks);
  i64 const count = every ? step.sealed : blocks.count;
  for (i64 i = 0; i < count;) {
    on_decode(true);
    for (; i < count && filled < attend_tokens; ++i) {
      auto const block = every ? logical_block(i) : blocks[i];
      i64 const position = from.position(number(block));
      from.key_codec(head, position)
          .decode(t, from.template far_rows<std::byte const>(plane::keys, plane::key_scales, block, head),
                  matrix_view<float, D>{keys + filled * D, map::block_tokens});
      from.value_codec(head, position)
          .decode(t, from.template far_rows<std::byte const>(plane::values, plane::value_scales, block, head),
                  matrix_view<float, D>{values + filled * D, map::block_tokens});
      for (i64 j = t.rank(); j < map::block_tokens; j += t.size()) positions[filled + j] = position + j;
      filled += map::block_tokens;
    }
    on_decode(false);
    if (filled >= attend_tokens) flush();
  }
  i64 const tail = from.position(step.sealed);
  gather_near(tail < from.map.sinks ? from.map.sinks : tail, step.length);
  if (filled > 0) flush();

  for (i64 r = t.rank(); r < rows; r += t.size()) {
    float const scale = states[r].l > 0 ? 1.0f / states[r].l : 0.0f;
    for (int c = 0; c < D; ++c) out(r, c) = sums[r * D + c] * scale;
  }
  t.sync();
}

}  // namespace cellar::operation
