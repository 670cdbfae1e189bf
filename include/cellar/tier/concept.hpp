#pragma once
#include <concepts>
#include <cstddef>

#include "cellar/core/types.hpp"
#include "cellar/layout/concept.hpp"

/// Who owns far bytes.
///
/// A readable tier hands out one arena per layer, addressed by the scheme's layout; all planes of a block lie in it, and a fetch is a view.
/// A stored tier moves runs: a head's planes of one block (block_geometry::slice_bytes), or its shared planes (head = heads, shared_bytes).
///
/// Laws
///   is_device_reachable: a device may read what data() gives (the CUDA half will ask; the host does not)
///   construction makes room for all of it, as far as the system lets it, or throws and keeps nothing
///   bytes written are read back, in any order, until the tier is destroyed; a run that was never stored may read as anything
///   store and fetch may be called by several threads at a time, for different runs; they return when done, or throw: a failed or damaged transfer is
///   never a success, and its run may be stored again
namespace cellar::inline CELLAR_ABI {

template <class T>
concept readable_tier = T::is_directly_readable && std::constructible_from<T, int, i64> && requires(T& t, T const& far, int layer) {
  { far.bytes() } -> std::same_as<i64>;  // a layer
  { t.data(layer) } -> std::same_as<std::byte*>;
};

/// What a tier is told at construction beyond sizes: T::options where it has that type, else nothing.
struct no_options {};
template <class T>
struct tier_options_type {
  using type = no_options;
};
template <class T>
  requires requires { typename T::options; }
struct tier_options_type<T> {
  using type = typename T::options;
};
template <class T>
using tier_options_of = typename tier_options_type<T>::type;

template <class T>
concept stored_tier = (!T::is_directly_readable) && std::constructible_from<T, int, block_geometry const&, i64, tier_options_of<T> const&>&& requires(
                                                        T& t, int layer, physical_block block, int head, row_view<std::byte const> from,
                                                        row_view<std::byte> to) {
  { t.store(layer, block, head, from) } -> std::same_as<void>;
  { t.fetch(layer, block, head, to) } -> std::same_as<void>;
};

template <class T>
concept block_tier = std::movable<T> && requires {
  { T::is_directly_readable } -> std::convertible_to<bool>;
  { T::is_device_reachable } -> std::convertible_to<bool>;
} &&(readable_tier<T> || stored_tier<T>);

}  // namespace cellar
