#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/mean.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Blocks of 512 tokens, scored by their mean key: the best two beside the query's own, which is the window. Lu et al., arXiv:2502.13189.
///
/// A model that was trained so attends so; others lose more than by smaller blocks.
///
/// Template    BlockTokens: published 512 with 3 blocks a query; 4096 with 12 for a million tokens (then budget::tokens = 11 * 4096)
/// Deviations  one selection per KV head (the maximum of the group's softmaxes), not per query head; the window is 512 tokens and what has not filled a
///             block (published: of the query's own block, those before it)
template <int HeadDim, storage_scalar Scalar = bf16, int BlockTokens = 512>
struct moba : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = BlockTokens;
  static constexpr budget published{.tokens = 2 * BlockTokens, .window = BlockTokens};
  using summary = cellar::summary::mean<Scalar>;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<moba<128>>);

}  // namespace cellar::scheme
