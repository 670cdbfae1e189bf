#pragma once
#include "cellar/codec/signs.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_p.hpp"
#include "cellar/summary/around_mean.hpp"
#include "cellar/summary/mapped.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// One bit a channel near, of each key's difference from the mean key after a random rotation, to estimate logits without bias; as many tokens as hold a share
/// P of their softmax. Zhang et al., arXiv:2606.31519; the codes are those of RaBitQ, Gao and Long, arXiv:2405.12497.
///
/// Template    P: the caller's; the paper's value is not known to us
/// Deviations  a query is exact (published: in four bits); the rotation is a Walsh-Hadamard transform of random signs; the mean is the prompt's, fixed; one
///             selection per KV head (the maximum of the group's softmaxes, normalised)
template <int HeadDim, storage_scalar Scalar = bf16, class P = std::ratio<95, 100>>
struct rabitq_cache : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.share = 0.25};  // at most: ours
  using summary = cellar::summary::mapped<cellar::summary::around_mean, cellar::summary::quantized_key<cellar::codec::signs<1, Scalar>>>;
  using select = cellar::select::top_p<P>;
};
static_assert(block_summary<rabitq_cache<128>::summary>);
static_assert(offloading_scheme<rabitq_cache<128>>);

}  // namespace cellar::scheme
