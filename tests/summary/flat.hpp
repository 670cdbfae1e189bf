#pragma once

/// The fine level alone: what a summary of two levels does where nobody asks for its groups.
template <class Summary>
struct flat_summary : Summary {
  void score_group() = delete;
};
template <class Scheme>
struct flat : Scheme {
  using summary = flat_summary<typename Scheme::summary>;
};
