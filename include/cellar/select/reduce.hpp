#pragma once
#include "cellar/core/vector.hpp"
#include "cellar/select/concept.hpp"

/// How the query rows of a group (its heads, times its query tokens) become one score per block.
namespace cellar::inline CELLAR_ABI::select {

namespace detail {

/// Raises out to the logs of weights of which the elements that equal `whole` have all, each as much, and the others none.
template <team Team>
CELLAR_HD void raise_to_shares_of(Team& t, float whole, float const* row, row_view<float> out) {
  float sum = 0;
  for (i64 b = t.rank(); b < out.count; b += t.size()) sum += float(row[b] == whole);
  float const log_sum = std::log(t.reduce(sum, plus{}));
  for (i64 b = t.rank(); b < out.count; b += t.size()) {
    float const x = row[b] != row[b] ? undefined : row[b] == whole ? -log_sum : -infinity;
    if (x > out[b] || out[b] != out[b]) out[b] = x;
  }
}

}  // namespace detail

/// score = max over rows of softmax(row), ranked in the log domain in f32: no weight underflows and none ties by rounding.
///
/// A NaN logit has no part in its row's softmax, and the block is ranked by the other rows; +infinity takes the whole weight of its row.
///
/// Source  ShadowKV (arXiv:2410.21465) and arXiv:2604.08426, accuracy path, which rounds the softmax to bf16 before ranking
struct max_of_softmaxes {
  static constexpr bool acts_on_queries = false;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    for (i64 b = t.rank(); b < out.count; b += t.size()) out[b] = undefined;
    for (i64 h = 0; h < rows.rows; ++h) {
      float const* const row = rows.row(h);
      float const top = t.reduce(largest_of(t, row, out.count), maximum{});
      if (is_finite(top)) {
        float const sum = t.reduce(sum_of_exponentials(t, row, out.count, top), plus{});
        raise(t, out.data, row, out.count, top + std::log(sum));
      } else {  // infinity - infinity would be NaN
        detail::raise_to_shares_of(t, top, row, out);
      }
    }
    t.sync();
  }
};
static_assert(group_reduction<max_of_softmaxes>);

/// score = mean over rows of softmax(row), ranked in the log domain in f32, as max_of_softmaxes ranks.
///
/// A NaN logit counts as no weight in its row, and a block whose logits are all NaN stays NaN; +infinity takes the whole weight of its row.
///
/// Source  FreeKV, Liu et al., arXiv:2505.13109, which pools a group's softmaxed weights by their mean
struct mean_of_softmaxes {
  static constexpr bool acts_on_queries = false;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    float const log_rows = std::log(float(rows.rows));
    for (i64 b = t.rank(); b < out.count; b += t.size()) out[b] = undefined;
    for (i64 h = 0; h < rows.rows; ++h) {
      float const* const row = rows.row(h);
      float const top = t.reduce(largest_of(t, row, out.count), maximum{});
      float sum = 0;
      if (is_finite(top))
        sum = sum_of_exponentials(t, row, out.count, top);
      else  // infinity - infinity would be NaN
        for (i64 b = t.rank(); b < out.count; b += t.size()) sum += float(row[b] == top);
      float const log_sum = std::log(t.reduce(sum, plus{})) + log_rows;
      for (i64 b = t.rank(); b < out.count; b += t.size()) {
        if (row[b] != row[b]) continue;
        float const x = row[b] == top ? -log_sum : is_finite(top) ? row[b] - top - log_sum : -infinity, so_far = out[b];
        if (so_far != so_far || so_far == -infinity)
          out[b] = x;
        else if (x > -infinity)
          out[b] = x > so_far ? x + std::log1p(exponential(so_far - x)) : so_far + std::log1p(exponential(x - so_far));
      }
    }
    t.sync();
  }
};
static_assert(group_reduction<mean_of_softmaxes>);

/// score = max over rows of the log of the block's share of the row's attention, near and far: as max_of_softmaxes, whose softmaxes are of far blocks alone.
///
/// A NaN logit has no part in its row's attention, and the block is ranked by the other rows; +infinity takes the whole of its row.
struct max_of_attention {
  static constexpr bool acts_on_queries = false;
  static constexpr bool reads_near = true;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out, near_attention const& near = {}) const {
    float const log_tokens = std::log(near.block_tokens);
    for (i64 b = t.rank(); b < out.count; b += t.size()) out[b] = undefined;
    for (i64 h = 0; h < rows.rows; ++h) {
      float const* const row = rows.row(h);
      float const top = t.reduce(largest_of(t, row, out.count), maximum{});
      if (is_finite(top)) {
        float const far = top + log_tokens + std::log(t.reduce(sum_of_exponentials(t, row, out.count, top), plus{}));
        float const beside = near.log_sums ? near.log_sums[h] : -infinity, more = maximum{}(far, beside), less = far < beside ? far : beside;
        raise(t, out.data, row, out.count, more + std::log1p(exponential(less - more)) - log_tokens);
      } else {  // infinity - infinity would be NaN
        detail::raise_to_shares_of(t, infinity, row, out);
      }
    }
    t.sync();
  }
};
static_assert(group_reduction<max_of_attention> && reduction_beside_near<max_of_attention>);

/// score = sum of the rows' logits.
///
/// Source  PQCache sums over the group, arXiv:2407.12820
struct sum_of_logits {
  static constexpr bool acts_on_queries = false;
  static constexpr bool is_blockwise = true;

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
static_assert(blockwise_reduction<sum_of_logits>);

/// score = largest of the rows' logits. A NaN gives way; a block whose logits are all NaN stays NaN.
///
/// Not comparable between heads whose queries differ in length, as max_of_softmaxes is: what its normaliser costs is that no block is scored by itself. For
/// scores that are no logits of a softmax, such as collisions of hashes, a block is at or above a bound where one of the rows is.
struct max_of_logits {
  static constexpr bool acts_on_queries = false;
  static constexpr bool is_blockwise = true;

  template <team Team>
  CELLAR_HD void operator()(Team& t, matrix_view<float const> rows, row_view<float> out) const {
    for (i64 b = t.rank(); b < out.count; b += t.size()) out[b] = undefined;
    for (i64 h = 0; h < rows.rows; ++h) raise(t, out.data, rows.row(h), out.count, 0.0f);
    t.sync();
  }
};
static_assert(blockwise_reduction<max_of_logits>);

/// score = logit of the mean query: the group is scored once.
///
/// Source  arXiv:2604.08426, serving path
struct mean_query {
  static constexpr bool acts_on_queries = true;
  static constexpr bool is_blockwise = true;

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
static_assert(blockwise_reduction<mean_query>);

}  // namespace cellar::select
