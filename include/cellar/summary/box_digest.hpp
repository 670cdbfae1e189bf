#pragma once
#include "cellar/summary/min_max.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// A box around a block's keys, narrowed from their extremes to their spread: centre c = (max + min) / 2 and radius r = mean |k - c| of each channel.
///
/// Score   sum over channels of max(q * (c - r), q * (c + r)): no bound, keys may lie outside
/// Bytes   2 * head_dim * sizeof(Scalar) a block; bounds are rounded to nearest
/// Source  ArkVale, Chen et al., NeurIPS 2024: the digest that its code computes ("cuboid-mean")
template <storage_scalar Scalar = bf16>
struct box_digest {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = min_max<Scalar>::tile_blocks;
  using boxes_of = box_digest;
  using plain_tiles_of = box_digest;  ///< A tile is plain scalars, for itself only: what derives from it may score otherwise.
  using tile_scalar = Scalar;
  CELLAR_HD static constexpr int tile_channels(int head_dim) { return min_max<Scalar>::tile_channels(head_dim); }

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scalar> < largest_summand ? cellar::largest<Scalar> : largest_summand; }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return min_max<Scalar>{}.tile_bytes(head_dim); }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return min_max<Scalar>{}.prepared_bytes(queries, head_dim); }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    min_max<Scalar>{}.prepare(t, queries, to);
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    auto* const to = reinterpret_cast<Scalar*>(tile);  // as min_max lays it out
    i64 const tokens = keys.rows / blocks, channels = keys.columns();
    for (i64 i = t.rank(); i < blocks * channels; i += t.size()) {
      i64 const b = i / channels, c = i % channels;
      float low = infinity, high = -infinity, spread = 0;
      for (i64 r = 0; r < tokens; ++r) {
        float const x = keys(b * tokens + r, c);
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      float const center = (high + low) / 2;
      for (i64 r = 0; r < tokens; ++r) {
        float const x = keys(b * tokens + r, c) - center;
        spread += x < 0 ? -x : x;
      }
      float const radius = spread / float(tokens);
      to[(2 * c) * tile_blocks + first_lane + b] = from_float<Scalar>(center - radius);
      to[(2 * c + 1) * tile_blocks + first_lane + b] = from_float<Scalar>(center + radius);
    }
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    min_max<Scalar>{}.score_tile(t, from, tile, scores);
  }
  template <int D, team Team>
  CELLAR_HD void box_of(Team const& t, std::byte const* tile, int lane, float* low, float* high) const {
    min_max<Scalar>{}.template box_of<D>(t, tile, lane, low, high);
  }
};
static_assert(boxed_summary<box_digest<>> && block_summary<box_digest<>> && block_summary<box_digest<float>>);

}  // namespace cellar::summary
