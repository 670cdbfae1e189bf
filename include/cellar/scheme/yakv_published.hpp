#pragma once
#include "cellar/codec/fp8.hpp"
#include "cellar/scheme/yakv.hpp"
#include "cellar/select/reduce.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// yakv as its serving path has it: a 2-bit landmark a token over all heads, scored by the mean query of a group without softmax; keys and values as
/// attended, in fp8, beside a prefix and a suffix. arXiv:2604.08426.
///
/// Deviation  sinks and window are token counts: 0.00625 of a prompt of 10k tokens each (published: shares of every prompt)
template <int HeadDim, storage_scalar Scalar = bf16>
struct yakv_published : yakv<HeadDim, Scalar> {
  static constexpr budget published{.share = 0.015625, .sinks = 64, .window = 64};
  using key_codec = cellar::codec::fp8_e4m3<cellar::codec::unscaled>;
  using value_codec = cellar::codec::fp8_e4m3<cellar::codec::unscaled>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256, 0, bf16, scope::all_heads>>;
  using reduce = cellar::select::mean_query;
};
static_assert(offloading_scheme<yakv_published<128>>);

}  // namespace cellar::scheme
