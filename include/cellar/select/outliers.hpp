#pragma once
#include <concepts>

#include "cellar/core/math.hpp"
#include "cellar/core/team.hpp"
#include "cellar/core/view.hpp"

/// Blocks that their summary describes badly: a prompt's worst ones stay near and exact for good, and are never scored.
namespace cellar::inline CELLAR_ABI {

/// Laws  the lower the value, the worse the summary; finite for finite keys
template <class R, int HeadDim = 128>
concept outlier_rule = std::semiregular<R> && requires(R const& r, serial_team& t, matrix_view<float const, HeadDim> keys) {
  { R::keeps_outliers } -> std::convertible_to<bool>;  // false: budget::outliers must be 0
  { r(t, keys) } -> std::same_as<float>;               // keys [block_tokens, head_dim]; the same on every member
};

namespace select {

/// No block is an outlier.
struct no_outliers {
  static constexpr bool keeps_outliers = false;

  template <team Team, int D>
  CELLAR_HD float operator()(Team&, matrix_view<float const, D>) const {
    return 0;
  }
};
static_assert(outlier_rule<no_outliers>);

/// The smallest cosine between a block's mean key and its keys. A zero key or mean counts as 0.
///
/// Source  ShadowKV, Sun et al., arXiv:2410.21465
struct least_cosine {
  static constexpr bool keeps_outliers = true;

  template <team Team, int D>
  CELLAR_HD float operator()(Team& t, matrix_view<float const, D> keys) const {
    float mean[D];
    for (int c = 0; c < D; ++c) {  // every member for itself: cheaper than a barrier
      float s = 0;
      for (i64 r = 0; r < keys.rows; ++r) s += keys(r, c) / float(keys.rows);
      mean[c] = s;
    }
    float const length = std::sqrt(dot<D>(mean, mean));
    float least = 1;
    for (i64 r = t.rank(); r < keys.rows; r += t.size()) {
      float const product = length * std::sqrt(dot<D>(keys.row(r), keys.row(r)));
      float const cosine = product > 0 && is_finite(product) ? dot<D>(mean, keys.row(r)) / product : 0;
      least = cosine < least ? cosine : least;
    }
    return -t.reduce(-least, maximum{});
  }
};
static_assert(outlier_rule<least_cosine>);

}  // namespace select
}  // namespace cellar
