#pragma once
#include "cellar/select/concept.hpp"

/// How the query rows of a group (its heads, times its query tokens) become one score per block.
namespace cellar::inline CELLAR_ABI::select {

/// score = max over rows of softmax(row), ranked in the log domain in f32: no weight underflows and none ties by rounding.
///
/// A NaN logit has no part in its row's softmax, and the block is ranked by the other rows; +infinity takes the whole weight of its row.
///
/// Source  ShadowKV (arXiv:2410.21465) and arXiv:2604.08426, accuracy path, which rounds the softmax to bf16 before ranking
struct max_of_softmaxes {
  static constexpr bool acts_on_queries = false;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    for (i64 h = 0; h < rows.rows; ++h) {
      float const* const row = rows.row(h);
      float top = -infinity;
      for (i64 b = t.rank(); b < out.count; b += t.size()) top = maximum{}(top, row[b]);
      top = t.reduce(top, maximum{});
      float sum = 0;
      bool const plain = is_finite(top);  // else infinity - infinity would be NaN
      for (i64 b = t.rank(); b < out.count; b += t.size())
        if (row[b] == row[b]) sum += plain ? exponential(row[b] - top) : float(row[b] == top);
      sum = t.reduce(sum, plus{});
      float const log_sum = plain ? top + std::log(sum) : std::log(sum);
      for (i64 b = t.rank(); b < out.count; b += t.size()) {
        float const x = plain || row[b] != row[b] ? row[b] - log_sum : row[b] == top ? -log_sum : -infinity;
        out[b] = h == 0 || x > out[b] || out[b] != out[b] ? x : out[b];
      }
    }
    t.sync();
  }
};
static_assert(group_reduction<max_of_softmaxes>);

/// score = sum of the rows' logits.
///
/// Source  PQCache sums over the group, arXiv:2407.12820
struct sum_of_logits {
  static constexpr bool acts_on_queries = false;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    for (i64 b = t.rank(); b < out.count; b += t.size()) {
      float s = 0;
      for (i64 h = 0; h < rows.rows; ++h) s += rows(h, b);
      out[b] = s;
    }
    t.sync();
  }
};
static_assert(group_reduction<sum_of_logits>);

/// score = logit of the mean query: the group is scored once.
///
/// Source  arXiv:2604.08426, serving path
struct mean_query {
  static constexpr bool acts_on_queries = true;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    for (i64 c = t.rank(); c < out.count; c += t.size()) {
      float s = 0;
      for (i64 h = 0; h < rows.rows; ++h) s += rows(h, c);
      out[c] = s / float(rows.rows);
    }
    t.sync();
  }
};
static_assert(group_reduction<mean_query>);

}  // namespace cellar::select
