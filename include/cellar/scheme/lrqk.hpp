#pragma once
#include "cellar/codec/low_rank.hpp"
#include "cellar/scheme/exact_key.hpp"
#include "cellar/summary/joint_factors.hpp"
#include "cellar/summary/mapped.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Each key's coordinates in a joint low-rank decomposition of keys and queries near, to choose 2048 tokens beside the last 64. Li et al., arXiv:2510.23649.
///
/// Requires    queries at finish_prompt: of the whole prompt, as published, or of its last tokens
/// Template    Rank: published 16 and 32
/// Deviations  a KV head's group is decomposed together, and selects once (published: each query head); coordinates of a step's key and query are by the maps
///             of the prompt (published: solved for over the tokens chosen before); the decomposition starts from channels, not from random factors
template <int HeadDim, storage_scalar Scalar = bf16, int Rank = 32>
struct lrqk : exact_key<HeadDim, Scalar> {
  static constexpr budget published{.tokens = 2048, .window = 64};
  using summary = cellar::summary::mapped<cellar::summary::joint_factors<cellar::codec::fixed_rank<Rank>>, cellar::summary::mean<Scalar>>;
};
static_assert(key_map<cellar::summary::joint_factors<cellar::codec::fixed_rank<32>>>);
static_assert(block_summary<lrqk<128>::summary> && query_trained<lrqk<128>::summary> && offloading_scheme<lrqk<128>>);

}  // namespace cellar::scheme
