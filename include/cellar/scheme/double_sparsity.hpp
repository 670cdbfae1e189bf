#pragma once
#include "cellar/codec/int4.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/label_channels.hpp"
#include "cellar/summary/mapped.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// A sixteenth of each key's channels near, in 4 bits, to choose a sixteenth of the tokens by. Yang et al., arXiv:2408.07092.
///
/// Template    Channels: published one of 16
/// Deviations  channels are those of the largest keys of the prompt, for each KV head (published: by a calibration set, of keys, queries or their products);
///             one selection per KV head (the maximum of the group's softmaxes)
template <int HeadDim, storage_scalar Scalar = bf16, class Channels = codec::rank_share<1, 16>>
struct double_sparsity : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.share = 0.0625};
  using summary = cellar::summary::mapped<cellar::summary::label_channels<Channels>, cellar::summary::quantized_key<cellar::codec::int4<HeadDim>>>;
  using select = cellar::select::top_k;
};
static_assert(key_map<summary::label_channels<codec::rank_share<1, 16>>> && block_summary<double_sparsity<128>::summary>);
static_assert(offloading_scheme<double_sparsity<128>>);

}  // namespace cellar::scheme
