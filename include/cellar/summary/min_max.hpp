#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// The smallest and the largest value of each channel over a block: a box around its keys.
///
/// Score   sum over channels of max(q * low, q * high): no key of the block has a larger logit
/// Bytes   2 * head_dim * sizeof(Scalar) a block; bounds are rounded outwards, so that they hold in any Scalar
/// Source  Quest, Tang et al., arXiv:2406.10774, Alg. 1
template <storage_scalar Scalar = bf16>
struct min_max {
  static constexpr bool is_upper_bound = true;
  static constexpr int tile_blocks = 16;

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scalar>; }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return 2 * tile_blocks * head_dim * i64(sizeof(Scalar)); }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * head_dim * i64(sizeof(float)); }

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
      to[(2 * c) * tile_blocks + first_lane + b] = below(low);
      to[(2 * c + 1) * tile_blocks + first_lane + b] = above(high);
    }
  }
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const q = reinterpret_cast<float*>(to.data);  // (query, channel)
    i64 const channels = queries.columns();
    for (i64 i = t.rank(); i < queries.rows * channels; i += t.size()) q[i] = queries(i / channels, i % channels);
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    auto const* const q = reinterpret_cast<float const*>(from.data);
    auto const* const box = reinterpret_cast<Scalar const*>(tile);
    for (i64 b = t.rank(); b < tile_blocks; b += t.size())
      for (i64 h = 0; h < from.count; ++h) {
        float s = 0;
        for (int c = 0; c < D; ++c) {
          float const x = q[h * D + c];
          s += x * to_float(box[(2 * c + (x > 0)) * tile_blocks + b]);
        }
        scores(h, b) = s;
      }
    t.sync();
  }

 private:
  CELLAR_HD static Scalar below(float x) {
    Scalar const y = from_float<Scalar>(x);
    return to_float(y) <= x ? y : neighbour(y, -1);
  }
  CELLAR_HD static Scalar above(float x) {
    Scalar const y = from_float<Scalar>(x);
    return to_float(y) >= x ? y : neighbour(y, +1);
  }
  /// The next representable value in a direction; sign and magnitude, so away from zero is one more.
  CELLAR_HD static Scalar neighbour(Scalar y, int direction) {
    if constexpr (std::is_same_v<Scalar, float>) {
      return y;
    } else {
      bool const negative = y.bits >> 15;
      if ((y.bits & 0x7fffu) == 0) return Scalar{std::uint16_t(direction < 0 ? 0x8001u : 0x0001u)};
      return Scalar{std::uint16_t(y.bits + (negative == (direction < 0) ? 1 : -1))};
    }
  }
};
static_assert(block_summary<min_max<>> && block_summary<min_max<float>>);

}  // namespace cellar::summary
