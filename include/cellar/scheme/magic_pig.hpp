#pragma once
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/at_least.hpp"
#include "cellar/summary/hash_tables.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Tokens sampled by locality-sensitive hashes of query and key, each weighed by the inverse of its chance: an estimate of attention to all tokens, where
/// others attend to those of the highest scores. Chen et al., arXiv:2410.16179.
///
/// Template    K, L: published 10 and 150 (2 % of the tokens), 8 and 75, 9 and 120, 10 and 170, 11 and 300
/// Deviations  as summary::hash_tables; sampled tokens come to the processor that attends (published: their attention is computed on the CPU, and merged); a KV
///             head's heads sample at most a quarter of the tokens together (published: no limit); the first layer is dense (published: 0, 16, 32, 48); every
///             hash is compared (published: looked up in buckets)
template <int HeadDim, storage_scalar Scalar = bf16, int K = 10, int L = 150>
struct magic_pig : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr bool keeps_generated = true;
  static constexpr budget published{.share = 0.25, .sinks = 4, .window = 64, .dense_layers = 1};
  using summary = cellar::summary::hash_tables<K, L>;
  using reduce = cellar::select::max_of_logits;
  using select = cellar::select::at_least<std::ratio<2>>;
  using remainder = cellar::attention::sampled<>;
};
static_assert(offloading_scheme<magic_pig<128>>);

}  // namespace cellar::scheme
