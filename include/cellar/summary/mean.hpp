#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// The mean key of a block.
///
/// Score   q . mean, the mean of the block's logits
/// Bytes   head_dim * sizeof(Scalar) a block
/// Source  ShadowKV's landmarks, Sun et al., arXiv:2410.21465; MoBA, arXiv:2502.13189
template <storage_scalar Scalar = bf16>
struct mean : cellar::detail::plain_queries {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 16;
  using boxes_of = mean;
  using plain_tiles_of = mean;  ///< A tile is plain scalars, for itself only: what derives from it may score otherwise.
  using tile_scalar = Scalar;
  CELLAR_HD static constexpr int tile_channels(int head_dim) { return head_dim; }  ///< Of a tile, [channel][block].

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scalar> < largest_summand ? cellar::largest<Scalar> : largest_summand; }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return tile_blocks * head_dim * i64(sizeof(Scalar)); }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    auto* const to = reinterpret_cast<Scalar*>(tile);  // (channel, block of the tile)
    i64 const tokens = keys.rows / blocks, channels = keys.columns();
    for (i64 i = t.rank(); i < blocks * channels; i += t.size()) {
      i64 const b = i / channels, c = i % channels;
      float s = 0;
      for (i64 r = 0; r < tokens; ++r) s += keys(b * tokens + r, c);
      to[c * tile_blocks + first_lane + b] = from_float<Scalar>(s / float(tokens));
    }
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    score_lanes<Scalar>(t, reinterpret_cast<float const*>(from.data), D, from.count, D, tile, tile_blocks, scores);
    t.sync();
  }

  template <int D, team Team>
  CELLAR_HD void box_of(Team const&, std::byte const* tile, int lane, float* low, float* high) const {
    for (int c = 0; c < D; ++c) low[c] = high[c] = to_float(reinterpret_cast<Scalar const*>(tile)[c * tile_blocks + lane]);
  }
};
static_assert(boxed_summary<mean<>> && block_summary<mean<>> && block_summary<mean<float>>);

}  // namespace cellar::summary
