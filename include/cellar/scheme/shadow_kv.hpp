#pragma once
#include "cellar/codec/low_rank.hpp"
#include "cellar/scheme/mean_landmark.hpp"
#include "cellar/select/outliers.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Chunks of 8 tokens with mean landmarks, keys of low rank before rotary embedding, the chunks that their landmark describes worst kept exact.
/// Sun et al., arXiv:2410.21465.
///
/// A small model has few key channels: rank 160 of 1024 and 48 outliers for a budget of 2048 tokens are what the paper has; scale both with the model.
///
/// Template    Rank: published 160 of 1024 channels, codec::rank_share<160, 1024>; Eigensolver: a library's (interop/lapack.hpp has LAPACK's)
/// Deviations  coefficients of keys are stored with the values, far (published: near the processor); landmarks and outliers' keys in Scalar
template <int HeadDim, codec::symmetric_eigensolver Eigensolver, storage_scalar Scalar = bf16, class Rank = codec::fixed_rank<160>>
struct shadow_kv : mean_landmark<HeadDim, Scalar> {
  static constexpr budget published{.share = 0.015625, .window = 32, .outliers = 48};
  using key_codec = cellar::codec::low_rank<Rank, Eigensolver, Scalar>;
  using outliers = cellar::select::least_cosine;
};

}  // namespace cellar::scheme
