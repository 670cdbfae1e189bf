#pragma once
#include "cellar/codec/int4.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_p.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// A 4-bit key per token near, and as many tokens as hold 95 % of its softmax, at most a quarter of the prompt. Lin et al., arXiv:2502.02770.
///
/// Template    P: published 0.95, 0.85 for some models
/// Deviations  the share is of all far tokens' weights, not of a base selector's quarter; one selection per KV head (the maximum of the group's softmaxes,
///             normalised)
template <int HeadDim, storage_scalar Scalar = bf16, class P = std::ratio<95, 100>>
struct twilight : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.share = 0.25, .dense_layers = 2};
  using summary = cellar::summary::quantized_key<cellar::codec::int4<HeadDim>>;  // one group a head
  using select = cellar::select::top_p<P>;
};
static_assert(offloading_scheme<twilight<128>>);

}  // namespace cellar::scheme
