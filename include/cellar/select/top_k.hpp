#pragma once
#include "cellar/select/radix.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The k blocks of highest score, exactly: ties go to the lowest id, NaN ranks lowest.
///
/// A radix search finds the k-th key, eight bits a pass; a second walk writes the ids in ascending order.
///
/// Complexity  at most six readings of the scores
struct top_k {
  static constexpr bool reads_scores = true;
  static constexpr bool takes_highest = true;
  static constexpr i64 shared_bytes = detail::radix_scratch<std::uint32_t>::bytes + detail::cells::bytes;

  i64 k = 0;

  CELLAR_HD top_k with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto const scratch = detail::radix_scratch<std::uint32_t>::of(t);
    i64 const take = max_selected(scores.count);
    return take == 0 ? 0 : detail::write_highest(t, scores, take, ids, scratch);
  }
};
static_assert(selector_of_highest<top_k>);

}  // namespace cellar::select
