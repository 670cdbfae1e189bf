#pragma once
#include "cellar/select/concept.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// No block: only what is near is attended.
struct none {
  static constexpr bool reads_scores = false;
  static constexpr i64 shared_bytes = 0;
  static constexpr bool is_nothing = true;  ///< Far memory is not needed.

  CELLAR_HD none with_budget(i64) const { return {}; }
  CELLAR_HD i64 max_selected(i64) const { return 0; }
  template <team Team>
  CELLAR_HD i64 operator()(Team&, row_view<float const>, row_view<logical_block>) const {
    return 0;
  }
};
static_assert(block_selector<none>);

}  // namespace cellar::select
