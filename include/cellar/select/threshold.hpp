#pragma once
#include <ratio>

#include "cellar/select/radix.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The blocks whose score is above the highest one less Alpha, and of these at most the budget, as top_k picks: the highest ones, ties by lowest id.
///
/// Those of the highest score always are, also where it is infinite or Alpha is lost in its rounding; NaN is below every number, and scores that are
/// all NaN are all equal.
///
/// Alpha is a difference of logits: e^-Alpha is the least weight, of the best block's. That fits mean_query (logits) and max_of_softmaxes (logarithms
/// of weights, whose row may differ from block to block). A sum_of_logits is as many times wider as the group has rows: scale Alpha by that.
///
/// Template    Alpha: a std::ratio, above zero
/// Complexity  at most eight readings of the scores
/// Source      InfiniGen, Lee et al., OSDI 2024, whose count is the mean over heads; its scripts use 4 and 5
template <class Alpha = std::ratio<4>>
struct threshold {
  static_assert(Alpha::num > 0, "threshold: Alpha must be above zero");
  static constexpr bool reads_scores = true;
  static constexpr bool takes_highest = true;
  static constexpr float alpha = float(double(Alpha::num) / double(Alpha::den));
  static constexpr i64 shared_bytes = detail::radix_scratch<std::uint32_t>::bytes + detail::cells::bytes;

  i64 k = 0;

  CELLAR_HD threshold with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto const scratch = detail::radix_scratch<std::uint32_t>::of(t);
    i64 const most = max_selected(scores.count);
    if (most == 0) return 0;
    std::uint32_t const top = detail::highest_key(t, scores);
    std::uint32_t const limit = top == 0 ? 0 : ordered_bits(from_ordered_bits(top) - alpha);
    std::uint32_t count = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) {
      std::uint32_t const key = ordered_bits(scores[i]);
      count += key > limit || key == top;
    }
    count = t.reduce(count, plus{});
    return detail::write_highest(t, scores, count < most ? count : most, ids, scratch);
  }
};
static_assert(selector_of_highest<threshold<>> && block_selector<threshold<std::ratio<1, 2>>>);

}  // namespace cellar::select
