#pragma once
#include "cellar/scheme/exact_key.hpp"
#include "cellar/select/reuse.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of highest exact logit in a filter layer serve it and the layers up to the next one. Hao et al., ICLR 2025.
///
/// Template    Layers: from one filter layer to the next
/// Deviations  filter layers follow each other at equal distances after the dense ones (published: a few, chosen for each model), and attend to what they
///             choose (published: to everything); each KV head chooses for itself (published: the heads together); every layer keeps exact keys near
///             (published: filter layers only)
template <int HeadDim, storage_scalar Scalar = bf16, int Layers = 8>
struct omni_kv : exact_key<HeadDim, Scalar> {
  static constexpr budget published{.dense_layers = 2};  // the paper sweeps the budget: the caller states it
  using reuse = cellar::select::reuse_ids<Layers>;
};
static_assert(offloading_scheme<omni_kv<128>>);

}  // namespace cellar::scheme
