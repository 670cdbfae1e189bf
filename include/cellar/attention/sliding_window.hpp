#pragma once
#include "cellar/attention/causal.hpp"

namespace cellar::inline CELLAR_ABI::attention {

/// A query at p sees the keys in (p - Tokens, p], of those that Base lets it see. Sinks and selected
/// blocks before the window are hidden as well.
///
/// Source  Mistral 7B, arXiv:2310.06825; every second layer of Gemma 2, arXiv:2408.00118
template <i64 Tokens, attention_variant Base = causal>
struct sliding_window {
  static_assert(Tokens > 0, "sliding_window: a query sees at least its own key");

  Base base;

  CELLAR_HD float logit(float x, i64 q_position, i64 k_position) const { return base.logit(x, q_position, k_position); }
  CELLAR_HD constexpr bool visible(i64 q_position, i64 k_position) const {
    return k_position <= q_position && q_position - k_position < Tokens && base.visible(q_position, k_position);
  }
};
static_assert(attention_variant<sliding_window<4096>>);

}  // namespace cellar::attention
