#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Symmetric eight-bit integers with one scale a row.
///
/// With s = max |x| / 127, rounded up to a Scale:  code = round(x / s) in [-127, 127],  decoded  x = s * code.  A zero row has s = 0.
///
/// Template  Scale: how s is stored
/// Bytes     C codes and one Scale a row
/// Error     at most s / 2 a channel; 2^-142 where f32 underflows
template <storage_scalar Scale = bf16>
struct int8 : cellar::detail::plain_scorer<std::int8_t, Scale> {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;
  using plain_rows_of = int8;

  /// Half of what f32 and the scale hold: s is rounded up, and 127 s must be finite.
  CELLAR_HD constexpr float largest(i64) const {
    return cellar::largest<Scale> < cellar::largest<float> / 127 ? cellar::largest<Scale> * 63 : cellar::largest<float> / 2;
  }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels, sizeof(Scale)}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      Scale const stored = rounded_up<Scale>(largest_magnitude(t, x.row(r), x.columns()) / 127);
      detail::store(to.scales + r * to.scale_stride, stored);
      quantize<std::int8_t>(t, x.row(r), x.columns(), to_float(stored), to.codes + r * to.code_stride);  // saturates only where s is a subnormal f32
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float const s = to_float(detail::load<Scale>(from.scales + r * from.scale_stride));
      std::byte const* const codes = from.codes + r * from.code_stride;
      widen<std::int8_t>(t, codes, y.columns(), y.row(r));
      for (i64 c = 0; c < y.columns(); ++c) y(r, c) *= s;
    }
  }
};
static_assert(plain_codec<int8<>> && group_code_scorer<int8<>> && code_scorer<int8<float>>);

}  // namespace cellar::codec
