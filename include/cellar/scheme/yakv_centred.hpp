#pragma once
#include "cellar/codec/centred.hpp"
#include "cellar/scheme/yakv.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Ours: yakv with keys and landmarks coded as differences from the mean key before rotary embedding, turned to each position. For models
/// whose keys carry a bias (Qwen2). Needs `rotary` in the model's shape.
template <int HeadDim, storage_scalar Scalar = bf16>
struct yakv_centred : yakv<HeadDim, Scalar> {
  using key_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::rotated_mean>;
  using value_codec = cellar::codec::higgs<2, 256, 1>;
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::higgs<4, 256, 1>, cellar::codec::rotated_mean>>;
};
static_assert(block_summary<yakv_centred<128>::summary> && offloading_scheme<yakv_centred<128>>);

}  // namespace cellar::scheme
