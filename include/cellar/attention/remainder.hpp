#pragma once
#include <concepts>

#include "cellar/core/math.hpp"

/// What stands for the far blocks that were not chosen.
namespace cellar::inline CELLAR_ABI {

template <class R>
concept attention_remainder = std::semiregular<R> && requires {
  { R::estimates } -> std::convertible_to<bool>;  // true: the mean value, weighted by what the scores say
};

namespace attention {

/// Nothing: softmax is over what was attended.
struct no_remainder {
  static constexpr bool estimates = false;
};
static_assert(attention_remainder<no_remainder>);

/// The mean value of the prompt's far tokens, with the weight that the chosen blocks left: sum of block_tokens * exp(logit of the block's summary), for each
/// query. Merged as one more part of the softmax.
///
/// Requires  a selection by scores of query heads (not of their mean), of a summary that estimates logits: an upper bound would weigh too much
/// State     the mean, [head_dim] f32, per (layer, sequence, KV head); fixed by finish_prompt. A prompt without far tokens has none, and no remainder
/// Source    SparQ, Ribar et al., arXiv:2312.04985, which weighs by the approximate scores' mass in the same way
struct mean_value {
  static constexpr bool estimates = true;
};
static_assert(attention_remainder<mean_value>);

}  // namespace attention
}  // namespace cellar
