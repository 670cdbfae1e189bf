#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// For codecs that can store codes as they are, without a scale.
struct unscaled {};

/// FP8 E4M3 (OCP: bias 7, largest 448, no infinity), rounded to nearest even, with one scale a row.
///
/// With s = max |x| / 448, rounded up to a Scale:  code = E4M3(x / s),  decoded  x = s * code.  A zero row has s = 0. Unscaled: s = 1, and what
/// is above 448 saturates.
///
/// Template  Scale: how s is stored, or unscaled
/// Bytes     C codes and one Scale a row
/// Error     at most max(|x| / 16, s / 1024) a channel; 2^-140 where f32 underflows
/// Source    Micikevicius et al., arXiv:2209.05433; unscaled keys and values: arXiv:2604.08426, serving path
template <class Scale = bf16>
  requires(storage_scalar<Scale> || std::is_same_v<Scale, unscaled>)
struct fp8_e4m3 : cellar::detail::plain_scorer<e4m3, std::conditional_t<std::is_same_v<Scale, unscaled>, void, Scale>> {
  static constexpr bool is_scaled = !std::is_same_v<Scale, unscaled>;
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;
  using plain_rows_of = fp8_e4m3;

  /// Half of what f32 and the scale hold: s is rounded up, and 448 s must be finite.
  CELLAR_HD constexpr float largest(i64) const {
    if constexpr (is_scaled)
      return cellar::largest<Scale> < cellar::largest<float> / 448 ? cellar::largest<Scale> * 224 : cellar::largest<float> / 2;
    else
      return largest_e4m3;
  }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels, scale_bytes}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float s = 1;
      if constexpr (is_scaled) {
        Scale const stored = rounded_up<Scale>(largest_magnitude(t, x.row(r), x.columns()) / largest_e4m3);
        detail::store(to.scales + r * to.scale_stride, stored);
        s = to_float(stored);
      }
      quantize<e4m3>(t, x.row(r), x.columns(), s, to.codes + r * to.code_stride);
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float const s = scale(from.scales + r * from.scale_stride);
      std::byte const* const codes = from.codes + r * from.code_stride;
      widen<e4m3>(t, codes, y.columns(), y.row(r));
      for (i64 c = 0; c < y.columns(); ++c) y(r, c) *= s;
    }
  }

 private:
  static constexpr i64 scale_bytes = is_scaled ? i64(sizeof(Scale)) : 0;

  CELLAR_HD static float scale(std::byte const* from) {
    if constexpr (is_scaled)
      return to_float(detail::load<Scale>(from));
    else
      return 1;
  }
};
static_assert(plain_codec<fp8_e4m3<>> && group_code_scorer<fp8_e4m3<>> && code_scorer<fp8_e4m3<float>> && code_scorer<fp8_e4m3<unscaled>>);

}  // namespace cellar::codec
