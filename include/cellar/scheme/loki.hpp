#pragma once
#include "cellar/codec/low_rank.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/mapped.hpp"
#include "cellar/summary/mean.hpp"
#include "cellar/summary/principal_axes.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The leading coordinates of each key near, in the axes of largest variance, to choose tokens by. Singhania et al., arXiv:2406.02542.
///
/// Template    Eigensolver: a library's (interop/lapack.hpp has LAPACK's); Rank: published a quarter of the channels, as the budget is of the tokens
/// Deviations  axes are of the prompt's keys as attended, for each KV head (published: of a calibration set, before or after rotary embedding); one selection
///             per KV head (the maximum of the group's softmaxes)
template <int HeadDim, codec::symmetric_eigensolver Eigensolver, storage_scalar Scalar = bf16, class Rank = codec::rank_share<1, 4>>
struct loki : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.share = 0.25};
  using summary = cellar::summary::mapped<cellar::summary::principal_axes<Rank, Eigensolver>, cellar::summary::mean<Scalar>>;  // of one key: the key
  using select = cellar::select::top_k;
};

}  // namespace cellar::scheme
