#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/most_attended.hpp"
#include "cellar/select/none.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Of a prompt, its last 32 tokens and the 992 that these attended to most, pooled by maxima of seven; all else is lost. Generated tokens stay. Li et al.,
/// arXiv:2404.14469.
///
/// Requires    queries at finish_prompt, of the last 32 tokens or more
/// Template    Pool: published 7 and 5; Observed: published 32, 64 and 16, of which the window is to be one
/// Deviations  one choice for each KV head, by the sum over its query heads (published: for each query head)
template <int HeadDim, storage_scalar Scalar = bf16, int Pool = 7, i64 Observed = 32>
struct snap_kv : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.window = Observed, .outliers = 992};
  using select = cellar::select::none;
  using outliers = cellar::select::most_attended<Pool, Observed>;
};
static_assert(offloading_scheme<snap_kv<128>>);

}  // namespace cellar::scheme
