#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/core/rotary.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Keys as they were before rotary embedding, by any codec of single rows: turned back to position 0 on the way in, to their position on the way out.
///
/// Both turns are in f32. Needs `rotary` in the model's shape.
///
/// Bytes   those of Codec
/// Error   that of Codec (a turn keeps lengths)
/// Source  arXiv:2604.08426, accuracy path; KVQuant, arXiv:2401.18079
template <class Codec>
struct before_rotary {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope_of<Codec>;
  static constexpr int token_group = 1;
  static_assert(Codec::token_group == 1, "before_rotary: the inner codec must store single rows");

  Codec base;
  rotary embedding;
  i64 position = 0;

  CELLAR_HD before_rotary with(rotary const& r) const { return {base, r, position}; }
  CELLAR_HD before_rotary at(i64 first) const { return {base, embedding, first}; }
  CELLAR_HD before_rotary of_head(int head, int heads) const requires of_all_heads<Codec> { return {base.of_head(head, heads), embedding, position}; }

  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return base.bytes(channels); }
  /// A turned channel is at most sqrt(2) times the largest one.
  CELLAR_HD constexpr float largest(i64 channels) const {
    if constexpr (requires { base.largest(channels); })
      return base.largest(channels) / 2;
    else
      return cellar::largest<float> / 2;
  }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const columns = int(x.columns()), head_dim = int(2 * embedding.inverse_frequencies.count);
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_row_channels : D];
      for (int first = 0; first < columns; first += head_dim) rotate(embedding, x.row(r) + first, -(position + r), y + first, cellar::detail::kernels_of(t));
      serial_team alone = cellar::detail::alone_in(t);
      base.encode(alone, matrix_view<float const, D>{y, 1, columns, columns},
                  {to.codes + r * to.code_stride, to.scales + r * to.scale_stride, to.code_stride, to.scale_stride});
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    i64 const columns = y.columns();
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      serial_team alone = cellar::detail::alone_in(t);
      base.decode(alone, {from.codes + r * from.code_stride, from.scales + r * from.scale_stride, from.code_stride, from.scale_stride},
                  matrix_view<float, D>{y.row(r), 1, columns, columns});
      rotate(embedding, y.row(r), position + r, y.row(r), cellar::detail::kernels_of(t));
    }
  }
};
// That it models row_codec is asserted with the codecs of named schemes: scheme/yakv.hpp.

}  // namespace cellar::codec
