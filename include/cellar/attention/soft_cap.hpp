#pragma once
#include <ratio>

#include "cellar/attention/causal.hpp"

namespace cellar::inline CELLAR_ABI::attention {

/// Logits bent into (-Cap, Cap):  Cap * tanh(logit / Cap), of logits times the softmax scale, before Base masks.
///
/// Rising, so that the order of one row's scores is unchanged; selections by weight (top_p, max_of_softmaxes over several rows) weigh uncapped logits.
///
/// Template  Cap: a std::ratio, above zero; Base: the variant that sees the capped logits
/// Source    Gemma 2, arXiv:2408.00118, whose attention has 50
template <class Cap = std::ratio<50>, attention_variant Base = causal>
struct soft_cap {
  static_assert(Cap::num > 0, "soft_cap: Cap must be above zero");
  static constexpr float cap = float(double(Cap::num) / double(Cap::den));

  Base base;

  CELLAR_HD float logit(float x, i64 q_position, i64 k_position) const { return base.logit(cap * std::tanh(x / cap), q_position, k_position); }
  CELLAR_HD constexpr bool visible(i64 q_position, i64 k_position) const { return base.visible(q_position, k_position); }
};
static_assert(attention_variant<soft_cap<>>);

}  // namespace cellar::attention
