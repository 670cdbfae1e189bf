#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Rows as they are, in f32, f16 or bf16: exact for values of that type, else rounded to nearest even.
///
/// Bytes  head_dim * sizeof(Scalar), no scales
template <storage_scalar Scalar>
struct identity : cellar::detail::plain_scorer<Scalar, void> {
  static constexpr bool is_exact = true;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = sizeof(Scalar);
  using plain_rows_of = identity;

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scalar>; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels * i64(sizeof(Scalar)), 0}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    for (i64 r = t.rank(); r < x.rows; r += t.size()) narrow<Scalar>(t, x.row(r), x.columns(), to.codes + r * to.code_stride);
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    for (i64 r = t.rank(); r < y.rows; r += t.size()) widen<Scalar>(t, from.codes + r * from.code_stride, y.columns(), y.row(r));
  }
};
static_assert(plain_codec<identity<float>> && group_code_scorer<identity<f16>> && code_scorer<identity<bf16>>);

}  // namespace cellar::codec
