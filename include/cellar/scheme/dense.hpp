#pragma once
#include "cellar/scheme/defaults.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Every key and value, exact: the reference of the others.
template <int HeadDim, storage_scalar Scalar = bf16>
struct dense : scheme_defaults<HeadDim, Scalar> {};
static_assert(offloading_scheme<dense<128>>);

}  // namespace cellar::scheme
