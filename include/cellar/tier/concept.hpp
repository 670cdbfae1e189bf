#pragma once
#include <concepts>
#include <cstddef>

#include "cellar/core/types.hpp"

/// Who owns far bytes. A tier hands out one arena per layer, addressed by the scheme's layout; all planes of a block lie in it.
///
/// Laws
///   T(layers, bytes of a layer) allocates all of it, or throws and keeps nothing
///   bytes written are read back, in any order, until the tier is destroyed
///   is_directly_readable: data(layer) can be read in place, so a fetch is a view and copies nothing
namespace cellar::inline CELLAR_ABI {

template <class T>
concept block_tier = std::movable<T> && std::constructible_from<T, int, i64> && requires(T& t, T const& far, int layer) {
  { T::is_directly_readable } -> std::convertible_to<bool>;
  { T::is_device_reachable } -> std::convertible_to<bool>;
  { far.bytes() } -> std::same_as<i64>;  // a layer
  { t.data(layer) } -> std::same_as<std::byte*>;
};

}  // namespace cellar
