#pragma once
#include "cellar/codec/product_codes.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Product codes of each key near, of two parts of six bits, to choose a tenth of the tokens by the sum of the group's logits. Zhang et al., arXiv:2407.12820.
///
/// Template    Parts, Points: published 2 and 64
/// Deviations  the window is a count that the caller states (published: as many recent tokens as are chosen); no cache of blocks beside the near pool of a tier
///             that is not read in place; keys of one prompt alone train the centroids, while the prompt is finished (published: beside the prefill)
template <int HeadDim, storage_scalar Scalar = bf16, int Parts = 2, int Points = 64>
struct pq_cache : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.share = 0.1, .sinks = 32};
  using summary = cellar::summary::quantized_key<cellar::codec::product_codes<Parts, Points>>;
  using reduce = cellar::select::sum_of_logits;
  using select = cellar::select::top_k;
};
static_assert(block_summary<pq_cache<128>::summary> && offloading_scheme<pq_cache<128>>);

}  // namespace cellar::scheme
