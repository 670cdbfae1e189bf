#pragma once
#include "cellar/codec/cluster_codes.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of the clusters whose centroids have the highest logits, whole clusters until the budget, of the last one as many as fit. Near are a number a
/// token and the centroids, means of keys that are clustered by their cosine. Liu et al., arXiv:2412.03213.
///
/// Budget      1024 tokens with 16 sinks, published 1024 to 2048 for prompts of 32k; two dense layers; 400 clusters there
/// Template    Clusters: at most; as many as make 80 tokens each
/// Deviations  generated tokens stay near for good (published: each 320 are clustered anew); sinks and window take part in the clustering; initial centroids
///             are evenly spaced keys, not random ones; one selection per KV head; tokens lie in the order of their positions, so a fetch is of tokens, not
///             of clusters, and the near pool of a tier holds tokens
template <int HeadDim, storage_scalar Scalar = bf16, int Clusters = 512>
struct cluster_kv : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.tokens = 1008, .sinks = 16, .dense_layers = 2};
  using summary = cellar::summary::quantized_key<cellar::codec::cluster_codes<Clusters, 80>>;
  using select = cellar::select::top_k;
};
static_assert(block_summary<cluster_kv<128>::summary> && classifies_blocks<cluster_kv<128>::summary>);
static_assert(offloading_scheme<cluster_kv<128>>);

}  // namespace cellar::scheme
