#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/min_max.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Pages of 16 tokens, bounded by the smallest and largest value of each key channel. Tang et al., arXiv:2406.10774.
///
/// Deviation  one selection per KV head (the maximum of the group's softmaxes), not per query head
template <int HeadDim, storage_scalar Scalar = bf16>
struct quest : scheme_defaults<HeadDim, Scalar> {
  static constexpr budget published{.tokens = 1024, .dense_layers = 2};
  using summary = cellar::summary::min_max<Scalar>;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<quest<128>>);

}  // namespace cellar::scheme
