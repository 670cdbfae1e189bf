#pragma once
#include "cellar/select/concept.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// Every block, whatever the budget: dense attention.
struct all {
  static constexpr bool reads_scores = false;
  static constexpr i64 shared_bytes = 0;
  static constexpr bool is_everything = true;  ///< Drivers need no list of ids.

  CELLAR_HD all with_budget(i64) const { return {}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return blocks; }
  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    for (i64 b = t.rank(); b < scores.count; b += t.size()) ids[b] = logical_block(b);
    t.sync();
    return scores.count;
  }
};
static_assert(block_selector<all>);

}  // namespace cellar::select
