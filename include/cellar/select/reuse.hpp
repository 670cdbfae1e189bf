#pragma once
#include <concepts>

#include "cellar/core/math.hpp"

namespace cellar::inline CELLAR_ABI {

/// How often ids are selected anew: layers and steps in between take those of the last selection that is theirs.
template <class R>
concept selection_reuse = std::semiregular<R> && requires {
  { R::layers } -> std::convertible_to<int>;  // 1: every layer selects
  { R::steps } -> std::convertible_to<i64>;   // 1: every step selects
};

namespace select {

/// One selection for `Layers` consecutive layers (after the dense ones) and `Steps` consecutive steps of a sequence.
///
/// The first of the layers selects; attend it before the others. Blocks that seal in between wait for the next selection. A selection counts from the step
/// that it was made in, by attend where none is left, or ahead of it by cache::select: with Steps = 2, a call of that after each attend has every step
/// attend to what the query before it chose.
///
/// Source  OmniKV and TidalDecode (arXiv:2410.05076) share ids among layers, HShare among layers and steps
template <int Layers = 1, i64 Steps = 1>
struct reuse_ids {
  static_assert(Layers >= 1 && Steps >= 1, "reuse_ids: one selection serves at least one layer and one step");
  static constexpr int layers = Layers;
  static constexpr i64 steps = Steps;
};
static_assert(selection_reuse<reuse_ids<>>);

}  // namespace select
}  // namespace cellar
