#pragma once
#include "cellar/codec/in_keys.hpp"
#include "cellar/scheme/dense.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// A scheme for latent attention: what Base does with keys; values are the first ValueDim channels of the keys, and take no memory.
///
/// A DeepSeek model is latent<Base<576>, 512> with one KV head: its queries are projected to the latent channels, its outputs from them, by the engine.
///
/// Source  multi-head latent attention, DeepSeek-V2, arXiv:2405.04434
template <offloading_scheme Base, int ValueDim>
struct latent : Base {
  static constexpr int value_dim = ValueDim;
  using value_codec = cellar::codec::in_keys;
};
static_assert(offloading_scheme<latent<dense<576>, 512>>);

}  // namespace cellar::scheme
