#pragma once
#include "cellar/attention/softmax_state.hpp"
#include "cellar/operation/score.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/summary/quantized_key.hpp"

/// Scores of quantized keys whose bytes stand for points of a table: looked up in f16, and multiplied with the queries by matrix instructions. For teams
/// whose warps have 32 lanes; what summary::quantized_key does is the specification.
///
///   a tile     [code byte][32 lanes], [32 scales]        a lane takes a word: one byte of four tokens = four points, rows of two matrices
///   a query    in f16 as a number and what that loses, beside each other: the eight columns of the other matrix serve four queries
namespace cellar::inline CELLAR_ABI::operation {

namespace detail {
template <class Summary>
inline constexpr bool is_quantized_by_points = false;
template <point_codec Codec>
inline constexpr bool is_quantized_by_points<summary::quantized_key<Codec>> = scope_of<Codec> == scope::one_head&& Codec{}.bytes(64).scales == 2;
}  // namespace detail

/// Whether a scheme's scores are formed so.
template <offloading_scheme S>
inline constexpr bool scores_points = detail::is_quantized_by_points<typename S::summary>&& S::head_dim % 16 == 0 && S::select::reads_scores;

/// What the queries of one KV head become, in groups of four rows: fragments [group][k step][lane][2] of f16 pairs, and a factor for each row.
template <int HeadDim>
struct point_queries {
  static constexpr int steps = HeadDim / 16;  ///< Of 16 channels.
  f16_pair* fragments = nullptr;
  float* factors = nullptr;

  CELLAR_HD static constexpr i64 groups(i64 rows) { return ceil_div(rows, 4); }
  CELLAR_HD static constexpr i64 bytes(i64 rows) { return groups(rows) * (steps * 32 * 2 * 4 + 16); }
  CELLAR_HD static point_queries at(std::byte* memory, i64 rows) {
    auto* const fragments = reinterpret_cast<f16_pair*>(memory);
    return {fragments, reinterpret_cast<float*>(fragments + groups(rows) * steps * 64)};
  }
};

/// Shared memory of prepare_points and of score_points.
template <offloading_scheme S>
inline constexpr i64 prepare_points_bytes = i64{4} * S::head_dim * 4 + 4 * 16;
inline constexpr i64 point_copies = 16;  ///< Of each point, each in two banks: half a warp looks up without conflicts.
inline constexpr i64 score_points_bytes = 256 * point_copies * 8;

/// Rotates the queries of one KV head and lays them out.
///
/// Shapes   query(row, channel) of `rows` rows, times the softmax scale; written: `to`, of that many rows
/// Effects  a body over a team
template <team Team, offloading_scheme S, class Query>
CELLAR_HD void prepare_points(Team& t, sequence_view<S> const& from, int head, i64 rows, Query const& query, point_queries<S::head_dim> const& to) {
  constexpr int D = S::head_dim, steps = point_queries<D>::steps;
  float* const rotated = shared_array<float>(t, 4 * D);
  float* const tops = shared_array<float>(t, 4);
  auto const codec = from.summary(head, from.position(0)).codec;
  auto w = t.warp();
  for (i64 group = 0; group < point_queries<D>::groups(rows); ++group) {
    t.sync();
    for (int i = int(t.rank()); i < 4 * D; i += int(t.size())) rotated[i] = group * 4 + i / D < rows ? query(group * 4 + i / D, i % D) : 0.0f;
    codec.rotate(t, matrix_view<float, D>{rotated, 4});
    t.sync();
    for (int r = int(w.index()); r < 4; r += int(w.count())) {
      float top = 0;
      for (int c = int(w.lane()); c < D; c += int(w.width)) top = maximum{}(top, rotated[r * D + c] < 0 ? -rotated[r * D + c] : rotated[r * D + c]);
      top = w.reduce(top, maximum{});
      if (w.lane() == 0) tops[r] = top;
    }
    t.sync();
    for (int i = int(t.rank()); i < steps * 32; i += int(t.size())) {
      int const lane = i % 32, g = lane / 4, pair = lane % 4, r = g % 4, channel = i / 32 * 16 + pair * 4;
      float const unit = tops[r] > 0 ? 1.0f / tops[r] : 0.0f;
      auto const part = [&](int c) {  // the number in f16, or what it loses
        float const x = rotated[r * D + c] * unit;
        f16 const high = from_float<f16>(x);
        return g < 4 ? high : from_float<f16>(x - to_float(high));
      };
      f16_pair* const fragment = to.fragments + ((group * steps) * 32 + i) * 2;
      fragment[0] = {part(channel), part(channel + 1)};
      fragment[1] = {part(channel + 2), part(channel + 3)};
    }
    for (int r = int(t.rank()); r < 4; r += int(t.size())) to.factors[group * 4 + r] = tops[r] / std::sqrt(float(D));
  }
}

/// Logits of one group of four query rows for the blocks of a run of tiles, and the softmax state of each row over them.
///
/// Shapes    scores: row r of the group at scores + r * stride, for r < rows, written for whole tiles; states: row r at states[r * state_stride]
/// Requires  first a multiple of a tile; shared memory of score_points_bytes; the same group for all warps of the team, a run for each: warp i takes the tiles
///           first_tile + i, first_tile + i + warps, ..., below last_tile
/// Error     a point is rounded to f16: 2^-11 of each |q point| product, and f32's rounding
/// Effects   a body over a team; states of blocks below `blocks` only
template <team Team, offloading_scheme S>
CELLAR_HD void score_points(Team& t, sequence_view<S> const& from, int head, point_queries<S::head_dim> const& queries, i64 group, int rows, i64 first_tile,
                            i64 last_tile, i64 blocks, float* scores, i64 stride, attention::softmax_state* states, i64 state_stride) {
  using codec = typename S::summary::base_codec;
  constexpr int D = S::head_dim, steps = point_queries<D>::steps, codes = D / 4, lanes = S::summary::tile_blocks;
  static_assert(lanes == 32);
  auto* const table = shared_array<f16_pair>(t, 256 * point_copies * 2);  // (point, copy, first or second half)
  for (int i = int(t.rank()); i < 256; i += int(t.size())) {
    float point[4];
    codec::point_of(i, point);
    f16_pair const low{from_float<f16>(point[0]), from_float<f16>(point[1])}, high{from_float<f16>(point[2]), from_float<f16>(point[3])};
    for (int k = 0; k < int(point_copies); ++k) {  // members start at different banks
      int const at = (i * int(point_copies) + (k + i) % int(point_copies)) * 2;
      table[at] = low;
      table[at + 1] = high;
    }
  }
  t.sync();
  auto w = t.warp();
  int const lane = int(w.lane()), g = lane / 4, pair = lane % 4, copy = lane % int(point_copies);
  f16_pair right[steps][2];
  for (int s = 0; s < steps; ++s)
    for (int i = 0; i < 2; ++i) right[s][i] = queries.fragments[((group * steps + s) * 32 + lane) * 2 + i];
  // After both halves of a sum have met, lanes 0, 2, 1, 3 of a group of four have the rows 0, 1, 2, 3.
  int const row = pair % 2 * 2 + pair / 2;
  float const factor = queries.factors[group * 4 + row];
  attention::softmax_state state;
  loaded_bytes<4> next[steps];  // words of the tile after this one: read a tile ahead
  loaded_bytes<8> next_scales;
  auto const read = [&](i64 tile) {
    if (tile >= last_tile) return;
    std::byte const* const at = from.tile(tile * lanes, head);
    for (int s = 0; s < steps; ++s) next[s] = load_aligned<4>(at + (4 * s + pair) * lanes + 4 * g);  // tiles are multiples of 64 bytes
    next_scales = load_aligned<8>(at + codes * lanes + 8 * g);
  };
  read(first_tile + w.index());
  for (i64 tile = first_tile + w.index(); tile < last_tile; tile += w.count()) {
    float d[2][4] = {};
    loaded_bytes<4> words[steps];
    for (int s = 0; s < steps; ++s) words[s] = next[s];
    auto const scale_bytes = next_scales;
    read(tile + w.count());
    for (int s = 0; s < steps; ++s) {
      f16_pair points[4][2];
      for (int j = 0; j < 4; ++j) {
        auto const both = load_aligned<8>(table + (int(words[s].byte(j)) * int(point_copies) + copy) * 2);
        points[j][0] = bit_cast<f16_pair>(both.words[0]);
        points[j][1] = bit_cast<f16_pair>(both.words[1]);
      }
      for (int half = 0; half < 2; ++half) {
        f16_pair const left[4] = {points[2 * half][0], points[2 * half + 1][0], points[2 * half][1], points[2 * half + 1][1]};
        w.multiply_add(d[half], left, right[s]);
      }
    }
    float mine[4];
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) d[half][i] += w.shuffle(d[half][i], unsigned(lane ^ 2));
    for (int j = 0; j < 4; ++j) {  // token 4 g + j: of d's row pair j % 2, the first or second column
      float const even = d[j / 2][j % 2 * 2], odd = d[j / 2][j % 2 * 2 + 1];
      mine[j] = (pair / 2 == 0 ? even : odd) * factor * codec::scale_in(scale_bytes, j);
    }
    if (row < rows) {
      i64 const block = tile * lanes + 4 * g;
      float* const to = scores + row * stride + block;
      store_four(to, mine[0], mine[1], mine[2], mine[3]);
      float top = state.m;
      for (int j = 0; j < 4; ++j)
        if (block + j < blocks) top = maximum{}(top, mine[j]);
      if (top > state.m) {
        state.l *= exponential(state.m - top);
        state.m = top;
      }
      for (int j = 0; j < 4; ++j)
        if (block + j < blocks && mine[j] == mine[j]) state.l += exponential(mine[j] - state.m);
    }
  }
  for (unsigned distance = 4; distance < 32; distance *= 2) {  // lanes of the same row
    attention::softmax_state const other{w.shuffle(state.m, unsigned(lane) ^ distance), w.shuffle(state.l, unsigned(lane) ^ distance)};
    float const top = maximum{}(state.m, other.m);
    if (top > -infinity) {
      state.l = state.l * exponential(state.m - top) + other.l * exponential(other.m - top);
      state.m = top;
    }
  }
  auto* const all = reinterpret_cast<attention::softmax_state*>(table);  // of warps and rows, over the table
  t.sync();
  if (g == 0) all[w.index() * 4 + unsigned(row)] = state;
  t.sync();
  for (int r = int(t.rank()); r < rows; r += int(t.size())) {
    attention::softmax_state whole;
    for (unsigned i = 0; i < w.count(); ++i) whole.m = maximum{}(whole.m, all[i * 4 + unsigned(r)].m);
    for (unsigned i = 0; i < w.count(); ++i)
      if (all[i * 4 + unsigned(r)].l > 0) whole.l += all[i * 4 + unsigned(r)].l * exponential(all[i * 4 + unsigned(r)].m - whole.m);
    states[r * state_stride] = whole;
  }
}

}  // namespace cellar::operation
