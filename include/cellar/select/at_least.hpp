#pragma once
#include <ratio>

#include "cellar/select/radix.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The blocks whose score is at least Bound, however many or few, and of these at most the budget, as top_k picks: the highest ones, ties by lowest id. NaN is
/// below every number.
///
/// For scores that mean the same in every step, such as collisions of hashes. A budget that is too small cuts what a sampled remainder counts on:
/// statistics::lost_samples says how much.
///
/// Template    Bound: a std::ratio
/// Complexity  three readings of the scores, at most seven where the budget cuts
template <class Bound>
struct at_least {
  static constexpr bool reads_scores = true;
  static constexpr float bound = float(double(Bound::num) / double(Bound::den));
  static constexpr i64 shared_bytes = detail::radix_scratch<std::uint32_t>::bytes + detail::cells::bytes;

  i64 k = 0;

  CELLAR_HD at_least with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto const scratch = detail::radix_scratch<std::uint32_t>::of(t);
    i64 const most = max_selected(scores.count);
    if (most == 0) return 0;
    std::uint32_t const limit = ordered_bits(bound) - 1;
    std::uint32_t count = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) count += ordered_bits(scores[i]) > limit;
    count = t.reduce(count, plus{});
    if (count > most) return detail::write_highest(t, scores, most, ids, scratch);
    return detail::write_best(t, scores, limit, 0, ids);
  }
};
static_assert(block_selector<at_least<std::ratio<2>>>);

}  // namespace cellar::select
