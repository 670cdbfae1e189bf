#pragma once
#include "cellar/codec/higgs.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// A 2-bit landmark per token near, 4-bit keys and values far. arXiv:2604.08426.
///
/// Deviations  one rotation a head (published: keys and values over all heads); keys coded as the engine attends to them (published:
///             before rotary embedding); softmaxes ranked in f32 (published: rounded to bf16)
template <int HeadDim, storage_scalar Scalar = bf16>
struct yakv : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.share = 0.03125, .window = 64};
  using key_codec = cellar::codec::higgs<2, 256>;
  using value_codec = cellar::codec::higgs<2, 256>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256>>;
  using select = cellar::select::top_k;
};
static_assert(block_summary<yakv<128>::summary> && offloading_scheme<yakv<128>>);

}  // namespace cellar::scheme
