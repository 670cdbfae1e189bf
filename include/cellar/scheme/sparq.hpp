#pragma once
#include "cellar/scheme/exact_key.hpp"
#include "cellar/summary/by_largest_channels.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of highest approximate logit, by the 32 largest channels of the query; the mean value stands for the rest, by the weight that the approximate
/// logits give it. Ribar et al., arXiv:2312.04985.
///
/// Template    Channels: of a query; published 32 of 128, and 16 and 64
/// Deviations  the copy of the keys is read whole; the chosen tokens are weighed by exact logits against the rest (published: by approximate ones); the mean
///             is of the prompt's values; a query head has channels of its own, a KV head one selection
template <int HeadDim, storage_scalar Scalar = bf16, int Channels = 32>
struct sparq : exact_key<HeadDim, Scalar> {
  static constexpr budget published{.tokens = 128};
  using summary = cellar::summary::by_largest_channels<Channels, cellar::summary::mean<Scalar>>;
  using remainder = cellar::attention::mean_value;
};
static_assert(block_summary<sparq<128>::summary>);
static_assert(offloading_scheme<sparq<128>>);

}  // namespace cellar::scheme
