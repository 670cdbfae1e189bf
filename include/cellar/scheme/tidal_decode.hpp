#pragma once
#include "cellar/scheme/exact_key.hpp"
#include "cellar/select/reuse.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Two dense layers, then the tokens of highest exact logit in a selection layer, for it and those up to the layer that corrects them.
/// Yang et al., arXiv:2410.05076.
///
/// Template    Layers: from a selection to the next; 11 corrects in layer 13, published for Llama 3 8B (for other models 9: Layers = 7)
/// Deviations  corrections go on at equal distances (published: one); layers that select attend to what they choose (published: to everything); every layer
///             keeps exact keys near
template <int HeadDim, storage_scalar Scalar = bf16, int Layers = 11>
struct tidal_decode : exact_key<HeadDim, Scalar> {
  static constexpr budget published{.tokens = 256, .dense_layers = 2};
  using reuse = cellar::select::reuse_ids<Layers>;
};
static_assert(offloading_scheme<tidal_decode<128>>);

}  // namespace cellar::scheme
