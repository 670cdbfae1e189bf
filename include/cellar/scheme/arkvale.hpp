#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/box_digest.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Pages of 32 tokens, digested by a box around their mean: 32 pages a step beside 2 pages of sinks and 2 of window. ArkVale, NeurIPS 2024.
///
/// Deviation  one selection per KV head (the maximum of the group's softmaxes), not per query head; its page pool is the near pool of a cache over a tier
///            that is not read in place (limits::pool_runs: 128 pages published)
template <int HeadDim, storage_scalar Scalar = bf16>
struct arkvale : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 32;
  static constexpr budget published{.tokens = 1024, .sinks = 64, .window = 64};
  using summary = cellar::summary::box_digest<Scalar>;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<arkvale<128>>);

}  // namespace cellar::scheme
