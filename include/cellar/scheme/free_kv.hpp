#pragma once
#include "cellar/scheme/quest.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/reuse.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Pages of 32 tokens by the bounds of their channels, of which a step attends to those that the query before it chose, so that they are fetched in
/// between: call cache::select (and cache::prefetch) after each attend. Liu et al., arXiv:2505.13109.
///
/// Deviation  nothing corrects a KV head whose query has turned away from the one before (published: where their cosine is below 0.8 or 0.9): a caller
///            may compare, and call select again before attend, for all heads. A step that nothing was selected for selects for itself and the next
template <int HeadDim, storage_scalar Scalar = bf16>
struct free_kv : quest<HeadDim, Scalar> {
  static constexpr int block_tokens = 32;
  static constexpr budget published{.tokens = 1024, .sinks = 512, .window = 512};
  using reduce = cellar::select::mean_of_softmaxes;
  using reuse = cellar::select::reuse_ids<1, 2>;
};
static_assert(offloading_scheme<free_kv<128>>);

}  // namespace cellar::scheme
