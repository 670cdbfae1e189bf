#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Maps keys as attended to their difference from the mean of a prompt's keys, whose product with a query every logit has in common.
///
/// State   the mean, [head_dim] f32, per (layer, sequence, KV head)
/// Source  RaBitQ, Gao and Long, arXiv:2405.12497, whose codes are of differences from a centroid
struct around_mean {
  static constexpr bool adds_common = true, is_shift = true;
  float const* mean = nullptr;  // (channel)

  CELLAR_HD static constexpr i64 width(i64 channels) { return channels; }
  CELLAR_HD constexpr float largest(float most) const { return most / 2; }
  CELLAR_HD i64 state_bytes(i64 channels) const { return channels * i64(sizeof(float)); }
  CELLAR_HD around_mean bind(std::byte const* state) const { return {reinterpret_cast<float const*>(state)}; }

  template <team Team, int D>
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64, std::byte* state) const {
    for (i64 c = t.rank(); c < keys.columns(); c += t.size()) {
      double s = 0;
      for (i64 r = 0; r < keys.rows; ++r) s += double(keys(r, c));
      reinterpret_cast<float*>(state)[c] = keys.rows > 0 ? float(s / double(keys.rows)) : 0.0f;
    }
    t.sync();
  }

  template <int D>
  CELLAR_HD float of_key(float const* x, int i) const {
    return x[i] - mean[i];
  }
  template <int D>
  CELLAR_HD float of_query(float const* q, int i) const {
    return q[i];
  }
  template <int D>
  CELLAR_HD float common(float const* q) const {
    float s = 0;
    for (int c = 0; c < D; ++c) s += q[c] * mean[c];
    return s;
  }
};
static_assert(key_map<around_mean>);

}  // namespace cellar::summary
