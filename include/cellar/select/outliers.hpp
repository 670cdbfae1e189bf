#pragma once
#include <concepts>

#include "cellar/core/math.hpp"
#include "cellar/core/team.hpp"
#include "cellar/core/view.hpp"

/// Which of a prompt's blocks stay near and exact for good, and are never scored: those that their summary describes badly, or those that are attended to most.
namespace cellar::inline CELLAR_ABI {

/// Laws  the lower the value, the worse the summary; finite for finite keys
template <class R, int HeadDim = 128>
concept key_outlier_rule = requires(R const& r, serial_team& t, matrix_view<float const, HeadDim> keys) {
  { r(t, keys) } -> std::same_as<float>;  // keys [block_tokens, head_dim]; the same on every member
};
/// Ranks by the attention that a prompt's tokens had from its queries: finish_prompt is to be given these.
///
/// Laws  the higher the value, the sooner a block stays; of finite attention
template <class R>
concept attention_outlier_rule = requires(R const& r, serial_team& t, row_view<float const> attention, i64 block_tokens, row_view<float> values) {
  { R::observed } -> std::convertible_to<i64>;  // last tokens of a prompt whose queries count, at most
  { R::reach } -> std::convertible_to<i64>;     // a query observes keys of fewer tokens before it, its own being 0
  { R::evicts } -> std::convertible_to<bool>;   // what stays changes as attention goes on: tokens that leave the window replace the least attended
  { r.rank(t, attention, block_tokens, values) } -> std::same_as<void>;  // [blocks * block_tokens] -> [blocks]
};
template <class R, int HeadDim = 128>
concept outlier_rule = std::semiregular<R> && requires {
  { R::keeps_outliers } -> std::convertible_to<bool>;  // false: budget::outliers must be 0
} &&(key_outlier_rule<R, HeadDim> || attention_outlier_rule<R>);

/// Whether a rule goes on evicting while decoding.
template <class R>
inline constexpr bool evicts_by = false;
template <attention_outlier_rule R>
inline constexpr bool evicts_by<R> = R::evicts;

/// Observed attention reaches every key before a query.
inline constexpr i64 any_distance = i64{1} << 62;

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
