#pragma once
#include <concepts>
#include <vector>

#include "cellar/operation/memory.hpp"

/// What the drivers of this folder ask of a device. Kernels are functors over a team, so that the drivers compile without CUDA and run under emulated blocks
/// too (tests/emulator).
namespace cellar::inline CELLAR_ABI::cuda {

struct grid_size {
  i64 x = 1, y = 1, z = 1;
};
/// A block's place in the grid.
struct grid_place {
  unsigned x = 0, y = 0, z = 0;
};

namespace detail {
struct any_kernel {
  template <class Team>
  CELLAR_HD void operator()(Team&, grid_place) const {}
};
}  // namespace detail

/// Laws  calls take effect in order; launch runs kernel(team, place) in every block of the grid, in any order, at once or not
template <class D>
concept device = !D::is_host && requires(D const& on, std::byte* to, std::byte const* from, i64 n) {
  on.template launch<32>(grid_size{}, n, detail::any_kernel{});
  on.copy(to, from, n);                                               // within device memory
  on.download(static_cast<void*>(to), from, n);                       // to the host; waits
  on.upload(static_cast<void*>(to), from, n);                         // from the host; waits
  { on.template allocate<float>(n).data() } -> std::same_as<float*>;  // owned device memory, zero
  { on.multiprocessors() } -> std::convertible_to<int>;
  { D::grid_side } -> std::convertible_to<i64>;  // blocks in a grid's second and third side, at most
  on.wait();
};

}  // namespace cellar::cuda
