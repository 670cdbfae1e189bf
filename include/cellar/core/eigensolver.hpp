#pragma once
#include <concepts>

#include "cellar/core/team.hpp"

/// The leading directions of rows, by a library's eigensolver.
namespace cellar::inline CELLAR_ABI {

/// A library's eigensolver, called while a prompt is finished.
///
/// Laws  on return, vectors[i], i < count, are orthonormal eigenvectors of the `count` largest eigenvalues, in descending order; true. False if the
///       library failed. matrix is symmetric, [n, n], and may be overwritten
template <class E>
concept symmetric_eigensolver = std::semiregular<E> && requires(E const& e, double* matrix, int n, int count, double* vectors) {
  { e(matrix, n, count, vectors) } -> std::same_as<bool>;
};

/// Doubles of scratch for leading_directions.
constexpr i64 leading_directions_doubles(i64 n, i64 directions) { return (n + directions + 1) * n; }

/// The leading eigenvectors of the rows' second moments, which are summed in double: null where the eigensolver failed.
///
/// Shapes   row_of(r, to) writes row r, [n] of Number: one member calls it; returned [directions, n], in scratch
/// Effects  on the host; a body over a team, with a barrier at its end
template <symmetric_eigensolver Eigensolver, class Number, team Team, class RowOf>
double const* leading_directions(Team& t, i64 rows, i64 n, i64 directions, RowOf const& row_of, double* scratch) {
  double* const moments = scratch;                                        // (channel, channel)
  double* const vectors = moments + n * n;                                // (direction, channel)
  auto* const row = reinterpret_cast<Number*>(vectors + directions * n);  // (channel)
  for (i64 i = t.rank(); i < n * n; i += t.size()) moments[i] = 0;
  for (i64 r = 0; r < rows; ++r) {
    t.sync();
    if (t.rank() == 0) row_of(r, row);
    t.sync();
    for (i64 i = t.rank(); i < n; i += t.size())
      for (i64 j = 0; j <= i; ++j) moments[i * n + j] += double(row[i]) * double(row[j]);
  }
  t.sync();
  for (i64 i = t.rank(); i < n; i += t.size())
    for (i64 j = 0; j < i; ++j) moments[j * n + i] = moments[i * n + j];
  t.sync();
  float is_found = 0;
  if (t.rank() == 0) is_found = float(Eigensolver{}(moments, int(n), int(directions), vectors));
  return t.reduce(is_found, plus{}) > 0 ? vectors : nullptr;
}

}  // namespace cellar
