#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/most_attended.hpp"
#include "cellar/select/none.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The last 512 tokens and the 512 others that were attended to most so far; all else is evicted, token by token. Zhang et al., arXiv:2306.14048.
///
/// Requires    queries at finish_prompt: of the whole prompt, as published, or of as many last tokens as an engine has kept
/// Deviations  one choice for each KV head, by the sum over its query heads (published: multi-head attention); two halves of a budget that does not depend on
///             the prompt (published: two of 10 % of it each); a token that leaves the window in a step is attended to in that step, and evicted before the
///             next
template <int HeadDim, storage_scalar Scalar = bf16>
struct h2o : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.window = 512, .outliers = 512};
  using select = cellar::select::none;
  using outliers = cellar::select::heavy_hitters;
};
static_assert(offloading_scheme<h2o<128>>);

}  // namespace cellar::scheme
