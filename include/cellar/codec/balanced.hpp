#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/core/eigensolver.hpp"
#include "cellar/core/error.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Rows by their leading coordinates in the axes in which a prompt's rows and queries have the same second moments, one for each axis, coded by Base: an error
/// of equal size in every coordinate is then the least that products with queries can have, and what is left out is what adds least to them.
///
///     x = T^-1 y + rest,  y = T x of Rank coordinates,  q . x ~ (T^-t q) . y          T K^t K T^t = T^-t Q^t Q T^-1 = diagonal, descending
///
/// Template    Base: codes y, in blocks of one token; Rank: how many, as Rank::of(channels) (fixed_rank, rank_share), made a multiple of 8
/// Requires    a prompt's queries, at finish_prompt
/// State       T and T^-t, [2, rank, channels] f32, per (layer, sequence, KV head); fixed by a prompt
/// Bytes       Base's of Rank channels
/// Error       Base's, turned back; and the coordinates left out
/// Errors      std::runtime_error from train_with where the eigensolver fails
/// Complexity  train_with: O((rows + queries) * channels^2) and the eigensolver, on the host; a row: O(Rank * channels)
/// Source      ours (docs/design.md); the axes are those of balanced truncation, Moore 1981, with moments in place of Gramians
template <class Base, class Rank, symmetric_eigensolver Eigensolver>
struct balanced {
  static_assert(Base::token_group == 1 && scope_of<Base> == scope::one_head, "balanced: the inner codec must store single rows of one head");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = Base::code_unit;

  float const* maps = nullptr;  // (T or T^-t, coordinate, channel)
  std::byte* scratch = nullptr;

  CELLAR_HD static constexpr i64 rank(i64 channels) {
    i64 const n = round_up(Rank::of(channels), 8);
    return n < channels ? n : channels;
  }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return Base{}.bytes(rank(channels)); }
  /// Rows of T are of length 1 at most: a coordinate is at most the row's length, which is up to 24 times its largest channel.
  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = 0x1p58f;
    if constexpr (requires { Base{}.largest(channels); }) most = Base{}.largest(rank(channels)) < most ? Base{}.largest(rank(channels)) : most;
    return most / 24;
  }
  CELLAR_HD i64 state_bytes(i64 channels) const { return 2 * rank(channels) * channels * i64(sizeof(float)); }
  CELLAR_HD balanced bind(std::byte const* state) const { return {reinterpret_cast<float const*>(state), scratch}; }
  balanced with_scratch(std::byte* bytes) const { return {maps, bytes}; }
  i64 train_scratch_bytes(i64 channels) const { return (3 * channels + rank(channels) + 2) * channels * i64(sizeof(double)); }

  template <team Team, int D>
  void train_with(Team& t, matrix_view<float const, D> rows, matrix_view<float const, D> queries, std::byte* state) const {
    learn(
        t, rows.rows,
        [&](i64 r, float* to) {
          for (i64 c = 0; c < rows.columns(); ++c) to[c] = rows(r, c);
        },
        queries, state);
  }
  /// The same of rows that row_of(r, to) writes.
  template <team Team, int D, class RowOf>
  void learn(Team& t, i64 rows, RowOf const& row_of, matrix_view<float const, D> queries, std::byte* state) const {
    i64 const n = queries.columns(), w = rank(n);
    float is_found = 1;
    if (t.rank() == 0) {
      auto* const factor = reinterpret_cast<double*>(scratch);  // of the rows' moments, lower triangle: factor factor^t
      double *const of_queries = factor + n * n, *const product = of_queries + n * n, *const vectors = product + n * n;
      double *const column = vectors + w * n, *const image = column + n;
      second_moments(rows, n, 1e-6, row_of, reinterpret_cast<float*>(column), factor);
      second_moments(
          queries.rows, n, 1e-4,
          [&](i64 r, float* to) {
            for (i64 c = 0; c < n; ++c) to[c] = queries(r, c);
          },
          reinterpret_cast<float*>(column), of_queries);
      for (i64 i = 0; i < n; ++i)  // Cholesky, in place
        for (i64 j = 0; j <= i; ++j) {
          double s = factor[i * n + j];
          for (i64 k = 0; k < j; ++k) s -= factor[i * n + k] * factor[j * n + k];
          factor[i * n + j] = i == j ? std::sqrt(s > 1e-300 ? s : 1e-300) : s / factor[j * n + j];
        }
      for (i64 j = 0; j < n; ++j) {  // factor^t of_queries factor, a column at a time
        for (i64 i = 0; i < n; ++i) {
          double s = 0;
          for (i64 k = j; k < n; ++k) s += of_queries[i * n + k] * factor[k * n + j];
          column[i] = s;
        }
        for (i64 i = 0; i < n; ++i) {
          double s = 0;
          for (i64 k = i; k < n; ++k) s += factor[k * n + i] * column[k];
          product[i * n + j] = s;
        }
      }
      is_found = float(Eigensolver{}(product, int(n), int(w), vectors));
      if (is_found > 0) write_maps(factor, of_queries, vectors, n, w, column, image, reinterpret_cast<float*>(state));
    }
    if (t.reduce(is_found, plus{}) < float(t.size())) cellar::detail::raise(std::runtime_error("codec::balanced: the eigensolver failed on a prompt's keys"));
    t.sync();
  }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    constexpr int W = int(rank(D));
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[W];
      for (int i = 0; i < W; ++i) y[i] = product<D>(maps + i * D, x.row(r));
      serial_team alone = cellar::detail::alone_in(t);
      Base{}.encode(alone, matrix_view<float const, W>{y, 1},
                    row_parts<std::byte>{to.codes + r * to.code_stride, to.scales + r * to.scale_stride, to.code_stride, to.scale_stride});
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> x) const {
    constexpr int W = int(rank(D));
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[W];
      serial_team alone = cellar::detail::alone_in(t);
      Base{}.decode(alone,
                    row_parts<std::byte const>{from.codes + r * from.code_stride, from.scales + r * from.scale_stride, from.code_stride, from.scale_stride},
                    matrix_view<float, W>{y, 1});
      for (int c = 0; c < D; ++c) {
        float s = 0;
        for (int i = 0; i < W; ++i) s += y[i] * maps[(W + i) * D + c];
        x(r, c) = s;
      }
    }
  }

  /// A prepared query is Base's of its coordinates.
  CELLAR_HD i64 query_bytes(i64 channels) const { return Base{}.query_bytes(rank(channels)); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    constexpr int W = int(rank(D));
    float y[W];  // every member for itself: cheaper than a barrier
    for (int i = 0; i < W; ++i) y[i] = product<D>(maps + (W + i) * D, q);
    Base{}.template prepare_query<W>(t, y, prepared);
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    Base{}.template score_codes<int(rank(D))>(t, prepared, codes, scales, lanes, scores);
  }
  static constexpr int query_group = [] {
    if constexpr (requires { Base::query_group; })
      return Base::query_group;
    else
      return 1;
  }();
  template <int D, team Team>
  requires group_code_scorer<Base, int(rank(D))> CELLAR_HD void prepare_group(Team& t, matrix_view<float const, D> queries, std::byte* prepared) const {
    constexpr int W = int(rank(D));
    float y[query_group * W];
    for (i64 g = 0; g < queries.rows; ++g)
      for (int i = 0; i < W; ++i) y[g * W + i] = product<D>(maps + (W + i) * D, queries.row(g));
    Base{}.template prepare_group<W>(t, matrix_view<float const, W>{y, queries.rows}, prepared);
  }
  template <int D, team Team>
  requires group_code_scorer<Base, int(rank(D))> CELLAR_HD void score_group(Team& t, std::byte const* prepared, int count, std::byte const* codes,
                                                                            std::byte const* scales, int lanes, matrix_view<float> scores) const {
    Base{}.template score_group<int(rank(D))>(t, prepared, count, codes, scales, lanes, scores);
  }

 private:
  template <int D>
  CELLAR_HD static float product(float const* a, float const* b) {
    float s = 0;
    for (int c = 0; c < D; ++c) s += a[c] * b[c];
    return s;
  }
  /// The sum of x x^t, plus `ridge` of its diagonal's mean on the diagonal.
  template <class RowOf>
  static void second_moments(i64 rows, i64 n, double ridge, RowOf const& row_of, float* row, double* to) {
    for (i64 i = 0; i < n * n; ++i) to[i] = 0;
    for (i64 r = 0; r < rows; ++r) {
      row_of(r, row);
      for (i64 i = 0; i < n; ++i)
        for (i64 j = 0; j <= i; ++j) to[i * n + j] += double(row[i]) * double(row[j]);
    }
    double trace = 0;
    for (i64 i = 0; i < n; ++i) trace += to[i * n + i];
    for (i64 i = 0; i < n; ++i) {
      to[i * n + i] += ridge * trace / double(n) + 1e-30;
      for (i64 j = 0; j < i; ++j) to[j * n + i] = to[i * n + j];
    }
  }
  /// T's rows are s u^t factor^-1 and T^-t's (factor u)^t / s, of eigenvectors u and s the fourth root of their eigenvalues.
  static void write_maps(double const* factor, double const* of_queries, double const* vectors, i64 n, i64 w, double* solved, double* image, float* to) {
    double longest = 0;
    for (int pass = 0; pass < 2; ++pass)  // the longest row of T, then both maps
      for (i64 i = 0; i < w; ++i) {
        double const* const u = vectors + i * n;
        double value = 0, length = 0;
        for (i64 r = 0; r < n; ++r) {
          double s = 0;
          for (i64 c = 0; c <= r; ++c) s += factor[r * n + c] * u[c];
          image[r] = s;
        }
        for (i64 r = 0; r < n; ++r)
          for (i64 c = 0; c < n; ++c) value += image[r] * of_queries[r * n + c] * image[c];
        for (i64 r = n; r-- > 0;) {
          double s = u[r];
          for (i64 k = r + 1; k < n; ++k) s -= factor[k * n + r] * solved[k];
          solved[r] = s / factor[r * n + r];
        }
        double const root = std::sqrt(std::sqrt(value > 1e-300 ? value : 1e-300));
        for (i64 c = 0; c < n; ++c) length += solved[c] * solved[c];
        length = root * std::sqrt(length);
        if (pass == 0) {
          longest = length > longest ? length : longest;
          continue;
        }
        for (i64 c = 0; c < n; ++c) {
          to[i * n + c] = float(root * solved[c] / longest);
          to[(w + i) * n + c] = float(image[c] / root * longest);
        }
      }
  }
};
// That it models code_scorer is asserted with an eigensolver, in schemes and tests.

}  // namespace cellar::codec
