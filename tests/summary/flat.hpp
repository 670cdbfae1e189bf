#pragma once
#include "cellar/codec/concept.hpp"

/// The fine level alone: what a summary of two levels does where nobody asks for its groups.
template <class Summary>
struct flat_summary : Summary {
  void score_group() = delete;
  CELLAR_HD flat_summary bind(std::byte const* state) const requires cellar::trained<Summary> { return {Summary::bind(state)}; }
};
template <class Scheme>
struct flat : Scheme {
  using summary = flat_summary<typename Scheme::summary>;
};
