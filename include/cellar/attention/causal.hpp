#pragma once
#include "cellar/attention/concept.hpp"

namespace cellar::inline CELLAR_ABI::attention {

/// A query sees the keys up to its own position.
struct causal {
  using plain_past_of = causal;

  CELLAR_HD float logit(float x, i64, i64) const { return x; }
  CELLAR_HD constexpr bool visible(i64 q_position, i64 k_position) const { return k_position <= q_position; }
};
static_assert(attention_variant<causal>);

}  // namespace cellar::attention
