#pragma once
#include "cellar/codec/balanced.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/scheme/yakv_centred.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Ours: yakv_centred with landmarks of half the coordinates, 1 bit a channel, in axes balanced between a prompt's keys and queries; four sinks; and the mean
/// value in place of what was not chosen. Needs `rotary` in the model's shape.
///
/// Requires    queries at finish_prompt: of the whole prompt, or of its last tokens
/// Template    Eigensolver: a library's; Rank: coordinates of a landmark
template <int HeadDim, codec::symmetric_eigensolver Eigensolver, storage_scalar Scalar = bf16, class Rank = codec::rank_share<1, 2>>
struct yakv_balanced : yakv_centred<HeadDim, Scalar> {
  static constexpr budget published{.share = 0.03125, .sinks = 4, .window = 64};
  using summary = cellar::summary::quantized_key<
      cellar::codec::centred<cellar::codec::balanced<cellar::codec::higgs<4, 256, 1>, Rank, Eigensolver>, cellar::codec::rotated_mean>>;
  using remainder = cellar::attention::mean_value;
};

}  // namespace cellar::scheme
