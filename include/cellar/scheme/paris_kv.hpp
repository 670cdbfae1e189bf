#pragma once
#include "cellar/codec/direction_codes.hpp"
#include "cellar/codec/sphere_centroids.hpp"
#include "cellar/scheme/defaults.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/summary/collisions.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "cellar/summary/two_level.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// The tokens of highest logit by a 4-bit code near, of those candidates whose directions collide most often with the mean query's. Qi et al.,
/// arXiv:2602.07721.
///
/// Template    Candidates, Colliding: shares of the keys, published by their number
/// Budget      sinks, window and tokens are the code's defaults
/// Deviations  a step has candidates however short the context is (published: dense attention below 2000 tokens); generated keys are coded as they leave the
///             window (published: some hundred at a time) and do not change how many keys each centroid has; ties go to the lowest token, of centroids to the
///             lowest; the signs of the rotation are ours
template <int HeadDim, storage_scalar Scalar = bf16, class Candidates = summary::falling_share<50, 25, 20, 10>,
          class Colliding = summary::falling_share<50, 30, 25, 20>>
struct paris_kv : scheme_defaults<HeadDim, Scalar> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.tokens = 100, .sinks = 4, .window = 512};
  using summary = cellar::summary::two_level<cellar::summary::collisions<cellar::codec::sphere_centroids<>, Colliding>,
                                             cellar::summary::quantized_key<cellar::codec::direction_codes<>, 1>, 1, Candidates>;
  using reduce = cellar::select::mean_query;
  using select = cellar::select::top_k;
};
static_assert(two_level_summary<paris_kv<128>::summary> && offloading_scheme<paris_kv<128>>);

}  // namespace cellar::scheme
