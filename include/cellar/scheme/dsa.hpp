#pragma once
#include "cellar/codec/fp8.hpp"
#include "cellar/scheme/latent.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/index_keys.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// DeepSeek Sparse Attention: the 2048 tokens of highest index score, by index keys, index queries and weights of the model's own, which the engine supplies.
///
/// Template  Base: what is attended to, and how it is stored; IndexHeads and IndexDim: the indexer's
/// Source    DeepSeek-V3.2, arXiv:2512.02556. Deviations: those of index_keys; the tokens of a step are attended to beside the chosen ones; several query
///           tokens of a step choose together, by the sum of their scores
template <offloading_scheme Base = latent<dense<576>, 512>, int IndexHeads = 64, int IndexDim = 128>
struct dsa : Base {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.tokens = 2048};
  using summary = cellar::summary::index_keys<IndexHeads, IndexDim, cellar::codec::fp8_e4m3<float>>;
  using reduce = cellar::select::sum_of_logits;
  using select = cellar::select::top_k;
};
static_assert(offloading_scheme<dsa<>> && indexed_summary<dsa<>::summary>);

}  // namespace cellar::scheme
