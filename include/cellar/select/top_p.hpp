#pragma once
#include <ratio>

#include "cellar/select/radix.hpp"

namespace cellar::inline CELLAR_ABI::select {

namespace detail {

/// exp(-x) for x >= 0 (infinity too) as an integer of which 2^32 is one. Integers but for one exact product, so the same on every machine.
///
/// Error  a relative 2^-22 and an absolute 2^-31 of one
CELLAR_HD inline std::uint64_t falling_weight(float x) {
  if (!(x < 23)) return 0;  // below 2^-33
  auto const fixed = std::uint64_t(x * 0x1p24f);
  std::uint64_t const turns = fixed * 6196328019u >> 32;            // x log2(e), 24 bits below the point
  std::uint64_t const z = (turns & 0xffffffu) * 2977044472u >> 24;  // its fraction times log(2), 32 bits below the point
  std::uint64_t const one = std::uint64_t(1) << 32;
  std::uint64_t y = one;  // exp(-z) = 1 - z (1 - z / 2 (1 - z / 3 (...)))
  for (unsigned k = 12; k > 0; --k) y = one - (z * y >> 32) / k;
  return y >> (turns >> 24);
}

}  // namespace detail

/// The fewest blocks of highest score whose softmax weights sum to at least P of all far blocks' weights, and of these at most the budget, as top_k
/// picks: the highest ones, ties by lowest id.
///
/// A weight is exp(score - highest score) as an integer of which 2^32 is one, so that no sum depends on its order and no exponential on the machine:
/// the ids are a function of the scores. A block of a weight below 2^-32 of the best one's has none: n blocks lose at most n 2^-32 of it.
/// A NaN has no weight; beside an infinite score others have none; scores that are all NaN are all equal.
///
/// Softmax is of the scores: for mean_query those of the mean query; for max_of_softmaxes the rows' largest weights, normalised; a sum_of_logits is
/// sharper than any of its rows, and P of it means little. Blocks of several tokens count by their summary's one logit.
///
/// Template    P: a std::ratio in (0, 1], its denominator at most 2^20
/// Complexity  at most thirteen readings of the scores
/// Source      Twilight, Lin et al., arXiv:2502.02770, which takes P of a larger budget's blocks. Deviation: of all far blocks
template <class P = std::ratio<95, 100>>
struct top_p {
  static_assert(P::num > 0 && P::num <= P::den && P::den <= 1 << 20, "top_p: P must be above 0 and at most 1, of a denominator up to 2^20");
  static constexpr bool reads_scores = true;
  static constexpr i64 shared_bytes = detail::radix_scratch<std::uint32_t>::bytes + detail::cells::bytes + detail::radix_scratch<std::uint64_t>::bytes;

  i64 k = 0;

  CELLAR_HD top_p with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto const counts = detail::radix_scratch<std::uint32_t>::of(t);
    auto const sums = detail::radix_scratch<std::uint64_t>::of(t);
    i64 const most = max_selected(scores.count);
    if (most == 0) return 0;
    std::uint32_t const top = detail::highest_key(t, scores);
    float const highest = from_ordered_bits(top);
    auto const weight = [&](i64 i) -> std::uint64_t {
      std::uint32_t const key = ordered_bits(scores[i]);
      if (key == top) return std::uint64_t(1) << 32;
      return key == 0 || !is_finite(highest) ? 0 : detail::falling_weight(highest - scores[i]);
    };
    std::uint64_t sum = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) sum += weight(i);
    sum = t.reduce(sum, plus{});
    std::uint64_t const wanted = sum / P::den * P::num + (sum % P::den * P::num + P::den - 1) / P::den;
    auto const last = detail::radix_search(t, scores, wanted, weight, sums);

    std::uint32_t greater = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) greater += ordered_bits(scores[i]) > last.key;
    greater = t.reduce(greater, plus{});
    std::uint64_t const one = last.key == top ? std::uint64_t(1) << 32 : detail::falling_weight(highest - from_ordered_bits(last.key));
    i64 const needed = greater + i64((last.rest + one - 1) / one);
    if (needed > most) return detail::write_highest(t, scores, most, ids, counts);
    return detail::write_best(t, scores, last.key, std::uint32_t(needed - greater), ids);
  }
};
static_assert(block_selector<top_p<>> && block_selector<top_p<std::ratio<1>>>);

}  // namespace cellar::select
