#pragma once
#include "cellar/codec/before_rotary.hpp"
#include "cellar/scheme/yakv.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// yakv as its accuracy runs have it: keys coded before rotary embedding, one rotation and scale over all heads for keys and for values; landmarks of one
/// head, of the keys as attended. arXiv:2604.08426. Needs `rotary` in the model's shape.
///
/// Deviation  landmarks are of the exact keys (published: of the decoded ones); softmaxes are ranked in f32
template <int HeadDim, storage_scalar Scalar = bf16>
struct yakv_before_rotary : yakv<HeadDim, Scalar> {
  using key_codec = cellar::codec::before_rotary<cellar::codec::higgs<2, 256, 0, bf16, scope::all_heads>>;
  using value_codec = cellar::codec::higgs<2, 256, 0, bf16, scope::all_heads>;
};
static_assert(offloading_scheme<yakv_before_rotary<128>>);

}  // namespace cellar::scheme
