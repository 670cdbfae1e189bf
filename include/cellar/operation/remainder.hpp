#pragma once
#include "cellar/attention/softmax_state.hpp"
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// The softmax state of the far blocks that are neither chosen nor outliers, by their summaries' logits, for every query row.
///
/// Shapes   logits [rows, blocks]; chosen ascending; to [rows]
/// Effects  a body over a team
template <team Team, offloading_scheme S>
CELLAR_HD void estimate_remainder(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, matrix_view<float const> logits,
                                  row_view<logical_block const> chosen, attention::softmax_state* to) {
  auto const outliers = from.outliers(head);
  typename S::attention const variant{};
  i64 const blocks = step.sealed, group = logits.rows / step.new_tokens;
  for (i64 r = 0; r < logits.rows; ++r) {
    float const* const row = logits.row(r);
    i64 const q_position = step.length - step.new_tokens + r / group;
    auto const for_rest = [&](auto const& f) {  // a member's blocks ascend, and so do its places in both lists
      i64 next_chosen = 0, next_outlier = 0;
      for (i64 b = t.rank(); b < blocks; b += t.size()) {
        while (next_chosen < chosen.count && number(chosen[next_chosen]) < b) ++next_chosen;
        while (next_outlier < outliers.count && number(outliers[next_outlier]) < b) ++next_outlier;
        bool const is_chosen = next_chosen < chosen.count && number(chosen[next_chosen]) == b;
        bool const is_outlier = next_outlier < outliers.count && number(outliers[next_outlier]) == b;
        if (!is_chosen && !is_outlier && is_finite(row[b])) f(variant.logit(row[b], q_position, from.position(b)));
      }
    };
    attention::softmax_state rest;
    for_rest([&](float x) { rest.m = maximum{}(rest.m, x); });
    rest.m = t.reduce(rest.m, maximum{});
    for_rest([&](float x) { rest.l += float(S::block_tokens) * exponential(x - rest.m); });
    rest.l = t.reduce(rest.l, plus{});
    if (t.rank() == 0) to[r] = rest;
  }
  t.sync();
}

}  // namespace cellar::operation
