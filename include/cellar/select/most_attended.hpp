#pragma once
#include "cellar/core/math.hpp"
#include "cellar/select/outliers.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The blocks of most attention from the queries of a prompt's last Observed tokens, by the largest sum within Pool tokens around: neighbours of an attended
/// token stay with it.
///
/// Source  SnapKV, Li et al., arXiv:2404.14469, whose published code has maxima and means of 5 and 7 tokens
template <int Pool = 7, i64 Observed = 32>
struct most_attended {
  static_assert(Pool > 0 && Pool % 2 == 1, "most_attended: Pool is an odd number of tokens");
  static constexpr bool keeps_outliers = true;
  static constexpr bool evicts = false;
  static constexpr i64 observed = Observed, reach = any_distance;

  template <team Team>
  CELLAR_HD void rank(Team& t, row_view<float const> attention, i64 block_tokens, row_view<float> values) const {
    for (i64 b = t.rank(); b < values.count; b += t.size()) {
      float sum = 0;
      for (i64 i = b * block_tokens; i < (b + 1) * block_tokens; ++i) {
        float most = 0;
        for (i64 j = i - Pool / 2 < 0 ? 0 : i - Pool / 2; j <= i + Pool / 2 && j < attention.count; ++j) most = maximum{}(most, attention[j]);
        sum += most;
      }
      values[b] = sum;
    }
    t.sync();
  }
};
static_assert(outlier_rule<most_attended<>> && attention_outlier_rule<most_attended<>>);

/// The blocks of most attention so far, from all queries of the prompt that are given and from those of every step: what leaves the window replaces the block
/// of the least, the latest of equals.
///
/// Source  H2O, Zhang et al., arXiv:2306.14048
struct heavy_hitters : most_attended<1, any_distance> {
  static constexpr bool evicts = true;
};
static_assert(outlier_rule<heavy_hitters> && evicts_by<heavy_hitters>);

}  // namespace cellar::select
