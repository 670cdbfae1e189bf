#pragma once
#include <concepts>

#include "cellar/core/types.hpp"

/// What one logit goes through, and which keys a query sees.
///
/// Laws
///   logit and visible are pure; positions are absolute, logits come times the softmax scale
///   visible is defined for all positions from 0, far beyond any context; a variant with a window hides key 0 from a query that is far enough
namespace cellar::inline CELLAR_ABI {

template <class A>
concept attention_variant = std::semiregular<A> && requires(A const& a, float logit, i64 q_position, i64 k_position) {
  { a.logit(logit, q_position, k_position) } -> std::same_as<float>;
  { a.visible(q_position, k_position) } -> std::same_as<bool>;
};

/// Every key at or before the query is visible, and its logit stays as it is: spares a pass over the logits. A variant says so for itself by naming itself,
/// so that what derives from it does not inherit the promise.
template <class A>
concept plain_past = attention_variant<A> && requires {
  requires std::same_as<typename A::plain_past_of, A>;
};

}  // namespace cellar
