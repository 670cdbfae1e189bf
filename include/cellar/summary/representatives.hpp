#pragma once
#include "cellar/summary/mean.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// The mean of a block's Count most attended keys, by the attention that queries of at most Reach tokens after each key paid to them; the first of equals.
///
/// Score   q . mean
/// Bytes   head_dim * sizeof(Scalar) a block
/// Source  InfLLM, Xiao et al., arXiv:2402.04617
template <int Count = 4, i64 Reach = 4096, storage_scalar Scalar = bf16>
struct representatives : mean<Scalar> {
  static_assert(Count > 0 && Reach > 0, "representatives: Count and Reach are positive");
  static constexpr i64 reach = Reach;
  using plain_tiles_of = representatives;

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, row_view<float const> attention, i64 blocks, std::byte* tile, int first_lane) const {
    auto* const to = reinterpret_cast<Scalar*>(tile);  // (channel, block of the tile)
    i64 const tokens = keys.rows / blocks, channels = keys.columns();
    i64 const taken = Count < tokens ? Count : tokens;
    for (i64 b = t.rank(); b < blocks; b += t.size()) {
      i64 chosen[Count];
      float const* const weight = attention.data + b * tokens;
      for (i64 n = 0; n < taken; ++n) {
        i64 best = -1;
        for (i64 r = 0; r < tokens; ++r) {
          bool is_free = best < 0 || weight[r] > weight[best];
          for (i64 k = 0; k < n && is_free; ++k) is_free = chosen[k] != r;
          if (is_free) best = r;
        }
        chosen[n] = best;
      }
      for (i64 c = 0; c < channels; ++c) {
        float s = 0;
        for (i64 n = 0; n < taken; ++n) s += keys(b * tokens + chosen[n], c);
        to[c * mean<Scalar>::tile_blocks + first_lane + b] = from_float<Scalar>(s / float(taken));
      }
    }
  }
};
static_assert(block_summary<representatives<>> && observing_summary<representatives<>>);

}  // namespace cellar::summary
