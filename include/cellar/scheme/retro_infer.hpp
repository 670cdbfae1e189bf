#pragma once
#include "cellar/codec/cluster_codes.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The wave index: sinks and window, the tokens of the clusters of highest logits, and for all others their clusters' mean values, by the weight that centroids
/// give them. Clusters of about 16 tokens are learnt by spherical k-means of centred keys, in segments of about 8192 tokens. Chen et al., arXiv:2505.02922.
///
/// Template    Clusters: at most, as the paper has for 128k tokens; TokensPerCluster and SegmentTokens as published
/// Deviations  all clusters that are not chosen are estimated (published: the next 23.2 %); 1.8 % of tokens are chosen, of the last cluster a part (published:
///             of clusters, whole ones), ranked by softmaxes over tokens (published: over clusters); generated tokens stay near for good (published: each
///             1024 are clustered anew); sinks and window take part in the clustering, rows stay in their segment, and are assigned once more after the last
///             means; tokens lie in the order of their positions, so a fetch is of tokens, not of a cluster's pages; no cache of blocks beside the near pool
///             of a tier
template <int HeadDim, storage_scalar Scalar = bf16, int Clusters = 8192, int TokensPerCluster = 16, i64 SegmentTokens = 8192>
struct retro_infer : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.share = 0.018, .sinks = 4, .window = 64};
  using summary = cellar::summary::quantized_key<cellar::codec::cluster_codes<Clusters, TokensPerCluster, SegmentTokens, true, 10>>;
  using reduce = cellar::select::mean_of_softmaxes;
  using select = cellar::select::top_k;
  using remainder = cellar::attention::mean_value_by_class;
};
static_assert(block_summary<retro_infer<128>::summary> && classifies_blocks<retro_infer<128>::summary>);
static_assert(offloading_scheme<retro_infer<128>>);

}  // namespace cellar::scheme
