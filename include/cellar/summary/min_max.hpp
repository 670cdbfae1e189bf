#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// The smallest and the largest value of each channel over a block: a box around its keys.
///
/// Score   sum over channels of max(q * low, q * high): no key of the block has a larger logit
/// Bytes   2 * head_dim * sizeof(Scalar) a block; bounds are rounded outwards, so that they hold in any Scalar. Beyond its largest number they are infinite,
///         and the block's score may be NaN
/// Source  Quest, Tang et al., arXiv:2406.10774, Alg. 1
template <storage_scalar Scalar = bf16>
struct min_max {
  static constexpr bool is_upper_bound = true;
  static constexpr int tile_blocks = 16;
  using boxes_of = min_max;
  using plain_tiles_of = min_max;  ///< A tile is plain scalars, for itself only: what derives from it may score otherwise.
  using tile_scalar = Scalar;
  CELLAR_HD static constexpr int tile_channels(int head_dim) { return 2 * head_dim; }  ///< Of a tile, [channel][block]: low and high bounds by turns.

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scalar>; }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return 2 * tile_blocks * head_dim * i64(sizeof(Scalar)); }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * 2 * head_dim * i64(sizeof(float)); }

  /// (query, channel, what meets the low and what meets the high bound): min(q, 0) and max(q, 0), so that a score is one product of twice the length.
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const q = reinterpret_cast<float*>(to.data);
    for (i64 i = t.rank(); i < queries.rows * D; i += t.size()) {
      float const x = queries(i / D, i % D);
      q[2 * i] = x > 0 ? 0.0f : x;
      q[2 * i + 1] = x > 0 ? x : 0.0f;
    }
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    auto* const to = reinterpret_cast<Scalar*>(tile);  // (channel, low or high, block of the tile)
    i64 const tokens = keys.rows / blocks, channels = keys.columns();
    for (i64 i = t.rank(); i < blocks * channels; i += t.size()) {
      i64 const b = i / channels, c = i % channels;
      float low = infinity, high = -infinity;
      for (i64 r = 0; r < tokens; ++r) {
        float const x = keys(b * tokens + r, c);
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      to[(2 * c) * tile_blocks + first_lane + b] = rounded_down<Scalar>(low);
      to[(2 * c + 1) * tile_blocks + first_lane + b] = rounded_up<Scalar>(high);
    }
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    score_lanes<Scalar>(t, reinterpret_cast<float const*>(from.data), 2 * D, from.count, 2 * D, tile, tile_blocks, scores);
    t.sync();
  }

  template <int D, team Team>
  CELLAR_HD void box_of(Team const&, std::byte const* tile, int lane, float* low, float* high) const {
    auto const* const from = reinterpret_cast<Scalar const*>(tile);
    for (int c = 0; c < D; ++c) {
      low[c] = to_float(from[2 * c * tile_blocks + lane]);
      high[c] = to_float(from[(2 * c + 1) * tile_blocks + lane]);
    }
  }
  /// Bounds are widened by a share of themselves for the rounding of a score, whose terms they are, and by slack, which times |q|_1 is at least slack |q|.
  template <int D, team Team>
  CELLAR_HD void cover(Team const&, float const* low, float const* high, float slack, std::byte* tile, int lane, bool is_first) const {
    constexpr float share = cellar::detail::score_rounding(D);
    auto* const to = reinterpret_cast<Scalar*>(tile);
    for (int c = 0; c < D; ++c) {
      Scalar *const below = to + 2 * c * tile_blocks + lane, *const above = to + (2 * c + 1) * tile_blocks + lane;
      float const a = low[c] - slack - share * (low[c] < 0 ? -low[c] : low[c]), b = high[c] + slack + share * (high[c] < 0 ? -high[c] : high[c]);
      if (is_first || a < to_float(*below)) *below = rounded_down<Scalar>(a);
      if (is_first || b > to_float(*above)) *above = rounded_up<Scalar>(b);
    }
  }
};
static_assert(boxed_summary<min_max<>> && covering_summary<min_max<>> && block_summary<min_max<>> && block_summary<min_max<float>>);

}  // namespace cellar::summary
