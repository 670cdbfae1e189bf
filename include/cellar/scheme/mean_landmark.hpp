#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/mean.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Chunks of 8 tokens with their mean key as landmark, exact keys and values: ShadowKV's selection (arXiv:2410.21465) without its low-rank
/// keys and outliers, which isolates what chunk landmarks cost.
template <int HeadDim, storage_scalar Scalar = bf16>
struct mean_landmark : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 8;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.share = 0.015625, .window = 32};
  using summary = cellar::summary::mean<Scalar>;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<mean_landmark<128>>);

}  // namespace cellar::scheme
