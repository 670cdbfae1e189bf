#pragma once
#include "cellar/core/math.hpp"

namespace cellar::inline CELLAR_ABI::attention {

/// Softmax-weighted values over some of the keys: with l = sum of exp(logit - m), o = sum of exp(logit - m) * value.
///
/// A monoid: `merge` is associative and commutative up to rounding, the empty state {-inf, 0, 0} is its identity, and merging two empty
/// states is empty (no NaN). Parts computed anywhere add up to the whole: split-KV, overlap, context parallelism.
///
/// Source  Milakov and Gimelshein, arXiv:1805.02867; the name and use of merging as in FlashInfer, arXiv:2501.01005
struct softmax_state {
  float m = -infinity;  ///< Largest logit.
  float l = 0;          ///< Sum of weights.
};

/// Makes `state`, `o` ready for a part whose largest logit is `top`. Returns the new reference, the larger of both.
CELLAR_HD inline float raise_reference(softmax_state& state, float top, float* o, int channels) {
  if (top > state.m) {
    float const shrink = exponential(state.m - top);  // 0 for an empty state
    state.l *= shrink;
    for (int c = 0; c < channels; ++c) o[c] *= shrink;
    state.m = top;
  }
  return state.m;
}

/// The same for a state whose sums are kept in two parts.
CELLAR_HD inline float raise_reference(softmax_state& state, float top, float* o, float* p, int channels) {
  softmax_state before = state;
  raise_reference(before, top, p, channels);
  return raise_reference(state, top, o, channels);
}

/// (state, o) becomes the whole of itself and (other, p).
///
/// Shapes  o, p [channels]
CELLAR_HD inline void merge(softmax_state& state, float* o, softmax_state other, float const* p, int channels) {
  if (other.l == 0) return;
  float const weight = exponential(other.m - raise_reference(state, other.m, o, channels));
  state.l += weight * other.l;
  for (int c = 0; c < channels; ++c) o[c] += weight * p[c];
}

/// The share that a part has of the weights of both; 0 where neither has any.
CELLAR_HD inline float share_of(softmax_state part, softmax_state other) {
  if (!(part.l > 0)) return 0;
  float const top = maximum{}(part.m, other.m), mine = part.l * exponential(part.m - top);
  return mine / (mine + (other.l > 0 ? other.l * exponential(other.m - top) : 0.0f));
}

}  // namespace cellar::attention
