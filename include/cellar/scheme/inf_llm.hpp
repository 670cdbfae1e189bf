#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/representatives.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Blocks of 128 tokens, scored by the mean of their four most attended keys: the best 16 beside 128 first and 4096 last tokens. Generated tokens stay. Xiao et
/// al., arXiv:2402.04617.
///
/// Requires    queries at finish_prompt, of the whole prompt as published, or of its last tokens: blocks that none of these reaches are represented by their
///             first keys
/// Template    BlockTokens, Representatives: published 128 and 4
/// Deviations  each KV head selects its own blocks, by the maximum of the group's softmaxes (published: one selection for all heads, by the mean of their
///             scores, for up to 512 queries together); the prompt's own attention is the engine's (published: of the window and retrieved blocks); kept
///             blocks are those of the near pool of a tier that is not read in place
template <int HeadDim, storage_scalar Scalar = bf16, int BlockTokens = 128, int Representatives = 4>
struct inf_llm : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = BlockTokens;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.tokens = 16 * BlockTokens, .sinks = 128, .window = 4096};
  using summary = cellar::summary::representatives<Representatives, 4096, Scalar>;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<inf_llm<128>>);

}  // namespace cellar::scheme
