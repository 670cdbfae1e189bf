#pragma once
#include "cellar/scheme/loki.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/reuse.hpp"
#include "cellar/select/threshold.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// A fifth of each key's coordinates near, to choose the tokens whose logit is within 4 of the highest one, at most a fifth of the prompt's, by a query that is
/// guessed a layer ahead: call cache::select with it (and cache::prefetch) before the layer appends. Lee et al., OSDI 2024.
///
/// Template    Eigensolver: a library's; Rank: published 0.2 of the channels; Alpha: published 4 and 5
/// Deviations  coordinates are in the axes of largest variance of the prompt's keys (published: the largest columns of weights that are skewed by queries); a
///             query is the caller's guess (published: the layer's input before, by part of this layer's weights); each KV head has a count of its own
///             (published: the mean over heads); a step that nothing was selected for selects for itself and the next
template <int HeadDim, codec::symmetric_eigensolver Eigensolver, storage_scalar Scalar = bf16, class Rank = codec::rank_share<1, 5>,
          class Alpha = std::ratio<4>>
struct infini_gen : loki<HeadDim, Eigensolver, Scalar, Rank> {
  static constexpr budget published{.share = 0.2};
  using select = cellar::select::threshold<Alpha>;
  using reuse = cellar::select::reuse_ids<1, 2>;
};

}  // namespace cellar::scheme
