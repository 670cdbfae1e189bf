#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/mean.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of highest exact logit: every key has an exact copy near. The best that a choice of tokens can do, and what methods choose by that spare
/// the choosing itself (omni_kv, tidal_decode, h_share).
template <int HeadDim, storage_scalar Scalar = bf16>
struct exact_key : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  using summary = cellar::summary::mean<Scalar>;  // of one key: the key
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<exact_key<128>>);

}  // namespace cellar::scheme
