#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// No summary: for selections that look at no score. Scores are zero.
struct none {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 1;

  CELLAR_HD i64 tile_bytes(i64) const { return 0; }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64, i64) const { return 0; }
  template <team Team, int D>
  CELLAR_HD void build(Team&, matrix_view<float const, D>, i64, std::byte*, int) const {}
  template <team Team, int D>
  CELLAR_HD void prepare(Team&, matrix_view<float const, D>, prepared_queries<std::byte, D>) const {}
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const*, matrix_view<float> scores) const {
    for (i64 h = 0; h < from.count; ++h)
      for (i64 b = t.rank(); b < tile_blocks; b += t.size()) scores(h, b) = 0;
    t.sync();
  }
};
static_assert(block_summary<none>);

}  // namespace cellar::summary
