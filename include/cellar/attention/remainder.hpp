#pragma once
#include <concepts>
#include <ratio>

#include "cellar/core/math.hpp"

/// What stands for the far blocks that were not chosen.
namespace cellar::inline CELLAR_ABI {

template <class R>
concept attention_remainder = std::semiregular<R> && requires {
  { R::estimates } -> std::convertible_to<bool>;  // true: a mean value, weighted by what the scores say
};

/// Has a mean value for each class of blocks, as the summary sorts them.
template <class R>
concept remainder_by_class = attention_remainder<R> && requires {
  requires R::is_by_class;
};

/// A sample stands for the rest: a query row weighs the far tokens that it sampled by exp(logit + correction(log_chance)), of the chance that it had to sample
/// them, and no others. What is near is weighed as ever.
///
/// Laws  correction is pure, and finite for finite numbers
template <class R>
concept sampling_remainder = attention_remainder<R> && requires(float log_chance) {
  { R::correction(log_chance) } -> std::same_as<float>;
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
/// State     the mean, [value_dim] f32, per (layer, sequence, KV head); fixed by finish_prompt. A prompt without far tokens has none, and no remainder
/// Source    SparQ, Ribar et al., arXiv:2312.04985, which weighs by the approximate scores' mass in the same way
struct mean_value {
  static constexpr bool estimates = true;
};
static_assert(attention_remainder<mean_value>);

/// A far token that a query row sampled with chance u counts 1 / u times, or 1 / (u + Floor): both sums of the softmax, of weights and of weighted values, are
/// then unbiased estimates, over the draws of the summary, of those over all tokens. Their quotient is consistent, not unbiased.
///
/// Each head of a group weighs what it sampled itself, though its KV head reads what any of them did. Sampled tokens that the selection leaves out are lost:
/// a selection cut short by its budget makes both sums too small. So does a Floor, which bounds a weight by 1 / Floor and with it the variance.
///
/// Template  Floor: a std::ratio, 0 or more, small beside the chances that matter
/// Requires  a summary whose scores are draws (sampling_summary), blocks of one token, a selection anew in every layer and step
/// Source    MagicPIG, Chen et al., arXiv:2410.16179, which has no Floor; its authors' code has 1e-4
template <class Floor = std::ratio<0>>
struct sampled {
  static_assert(Floor::num >= 0, "sampled: Floor must not be negative");
  static constexpr bool estimates = false;
  static constexpr float floor = float(double(Floor::num) / double(Floor::den));

  CELLAR_HD static float correction(float log_chance) {
    if constexpr (Floor::num == 0) {
      return -log_chance;
    } else {
      float const log_floor = std::log(floor), apart = log_chance - log_floor;
      return -maximum{}(log_chance, log_floor) - std::log1p(exponential(apart < 0 ? apart : -apart));
    }
  }
};
static_assert(sampling_remainder<sampled<>> && sampling_remainder<sampled<std::ratio<1, 10000>>>);

/// The mean value of each class of the prompt's far blocks, with the weight that the chosen blocks left of the class: tokens that are not chosen, times
/// exp(the class's logit), for each query. Of one class it is mean_value.
///
/// Requires    as mean_value; a summary that sorts blocks into classes; an attention whose logits do not depend on positions
/// State       the means, [class, value_dim] f32, per (layer, sequence, KV head); fixed by finish_prompt. A class without tokens in the prompt has none,
///             and tokens that join it later have no part in the remainder
/// Complexity  O(far blocks + query rows * classes * value_dim) a step and KV head
/// Source      the estimation zone of RetroInfer, Chen et al., arXiv:2505.02922
struct mean_value_by_class {
  static constexpr bool estimates = true;
  static constexpr bool is_by_class = true;
};
static_assert(remainder_by_class<mean_value_by_class> && !remainder_by_class<mean_value>);

}  // namespace attention
}  // namespace cellar
