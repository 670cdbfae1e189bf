#pragma once
#include "cellar/attention/causal.hpp"
#include "cellar/attention/remainder.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/layout/tile_major.hpp"
#include "cellar/scheme/concept.hpp"
#include "cellar/select/all.hpp"
#include "cellar/select/outliers.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/reuse.hpp"
#include "cellar/summary/none.hpp"
#include "cellar/tier/host_memory.hpp"

namespace cellar::inline CELLAR_ABI {

/// What a scheme has unless it says otherwise: everything exact in `Scalar`, 16-token blocks, all of them attended.
///
/// Always qualify policies in a scheme (cellar::summary::mean): `summary::mean` would find the inherited member first.
template <int HeadDim, storage_scalar Scalar = bf16>
struct scheme_defaults {
  static constexpr int head_dim = HeadDim, value_dim = HeadDim;
  static constexpr int block_tokens = 16;
  static constexpr bool keeps_generated = false;
  static constexpr bool is_reproducible = true;
  static constexpr bool estimates_missed = false;
  static constexpr budget published{};
  using near_scalar = Scalar;
  using layout = cellar::layout::tile_major;
  using key_codec = cellar::codec::identity<Scalar>;
  using value_codec = cellar::codec::identity<Scalar>;
  using summary = cellar::summary::none;
  using outliers = cellar::select::no_outliers;
  using reduce = cellar::select::max_of_softmaxes;
  using select = cellar::select::all;
  using reuse = cellar::select::reuse_ids<>;
  using attention = cellar::attention::causal;
  using remainder = cellar::attention::no_remainder;
  using tier = cellar::tier::host_memory;
};

}  // namespace cellar
