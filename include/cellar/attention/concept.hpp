#pragma once
#include <concepts>

#include "cellar/core/types.hpp"

/// What one logit goes through, and the mergeable state of a softmax.
///
/// Laws
///   logit and visible are pure; positions are absolute, logits come times the softmax scale
namespace cellar::inline CELLAR_ABI {

template <class A>
concept attention_variant = std::semiregular<A> && requires(A const& a, float logit, i64 q_position, i64 k_position) {
  { a.logit(logit, q_position, k_position) } -> std::same_as<float>;
  { a.visible(q_position, k_position) } -> std::same_as<bool>;
};

}  // namespace cellar
