#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/none.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Attention sinks and recent tokens only; everything between is never read. Xiao et al., arXiv:2309.17453.
///
/// The budget is the window: choose `window` = tokens - 4. Published: 4 sinks, 1020 recent.
template <int HeadDim, storage_scalar Scalar = bf16>
struct sink_window : scheme_defaults<HeadDim, Scalar> {
  static constexpr budget published{.sinks = 4, .window = 1020};
  using select = cellar::select::none;
};
static_assert(offloading_scheme<sink_window<128>>);

}  // namespace cellar::scheme
