#pragma once
#include "cellar/scheme/exact_key.hpp"
#include "cellar/select/reuse.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of highest exact logit serve several layers, the query heads of a group, and several steps. Wu et al., ICLR 2025.
///
/// Template    Layers, Steps: that share one selection
/// Deviations  what shares is fixed, and the same throughout (published: a greedy choice of layers and heads for each prompt); KV heads do not share; logits
///             are exact (published: approximate)
template <int HeadDim, storage_scalar Scalar = bf16, int Layers = 2, i64 Steps = 2>
struct h_share : exact_key<HeadDim, Scalar> {
  static constexpr budget published{.tokens = 128, .dense_layers = 2};
  using reuse = cellar::select::reuse_ids<Layers, Steps>;
};
static_assert(offloading_scheme<h_share<128>>);

}  // namespace cellar::scheme
