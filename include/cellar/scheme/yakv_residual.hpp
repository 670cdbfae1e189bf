#pragma once
#include "cellar/scheme/yakv.hpp"
#include "cellar/summary/residual.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// yakv with residual landmarks: the mean key of each 32 tokens in 4 bits a channel, each key's difference from it in 2. arXiv:2604.08426 v1.
///
/// Deviation  the published residual code has half a bit a channel (a grid of 16 dimensions)
template <int HeadDim, storage_scalar Scalar = bf16>
struct yakv_residual : yakv<HeadDim, Scalar> {
  using summary = cellar::summary::residual<cellar::codec::higgs<2, 256>, cellar::codec::higgs<4, 256>, 32>;
};
static_assert(offloading_scheme<yakv_residual<128>>);

}  // namespace cellar::scheme
