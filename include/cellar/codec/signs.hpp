#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/codec/hadamard.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// One bit a channel: the signs s of a row after a random rotation P, and one factor f = |x|^2 / |P x|_1, by which x is decoded as f P^T s.
///
/// A query's product with that is the unbiased estimate of its product with x, over rotations: <q, x> ~ f <P q, s>. P is a Walsh-Hadamard transform of random
/// signs, over the largest power of two that divides the channels.
///
/// Template  SignSeed: of the signs; Scale: how f is stored
/// Bytes     C / 8 codes and one f
/// Error     |x|^2 |P^T s|^2 / |P x|_1^2 - 1 of |x|^2, about pi / 2 - 1: what is decoded is longer than x, its part along x is x
/// Source    RaBitQ, Gao and Long, arXiv:2405.12497. Deviation: its rotation is dense, and its query has four bits
template <std::uint32_t SignSeed = 1, storage_scalar Scale = bf16>
struct signs {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;

  /// f is at most |x|, the root of the channels (16 of 256, 24 of 576) times its largest one; what is decoded has channels of up to that root times f.
  CELLAR_HD constexpr float largest(i64 channels) const {
    return (cellar::largest<Scale> < 0x1p120f ? cellar::largest<Scale> : 0x1p120f) / (channels > 256 ? 48 : 32);
  }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / 8, i64(sizeof(Scale))}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_channels : D];
      float const most = largest_magnitude(t, x.row(r), channels);
      float squares = 0, sizes = 0;
      for (int c = 0; c < channels; ++c) {
        float const one = most > 0 ? x(r, c) / most : 0.0f;  // no square overflows or vanishes
        squares += one * one;
        y[c] = one * random_sign(SignSeed, c);
      }
      hadamard_transform(t, y, channels);
      std::byte* const codes = to.codes + r * to.code_stride;
      for (int byte = 0; byte < channels / 8; ++byte) {
        unsigned bits = 0;
        for (int i = 0; i < 8; ++i) {
          float const one = y[byte * 8 + i];
          bits |= unsigned(one >= 0) << i;
          sizes += one < 0 ? -one : one;
        }
        codes[byte] = std::byte(bits);
      }
      float const f = sizes > 0 ? most * (squares / (sizes / std::sqrt(float(rotation_width(channels))))) : 0.0f;
      detail::store(to.scales + r * to.scale_stride, from_float<Scale>(f));
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      std::byte const* const codes = from.codes + r * from.code_stride;
      float* const row = y.row(r);
      for (int c = 0; c < channels; ++c) row[c] = unsigned(codes[c / 8]) >> (c % 8) & 1u ? 1.0f : -1.0f;
      hadamard_transform(t, row, channels);
      float const f = to_float(detail::load<Scale>(from.scales + r * from.scale_stride)) / std::sqrt(float(rotation_width(channels)));
      for (int c = 0; c < channels; ++c) row[c] *= f * random_sign(SignSeed, c);
    }
  }

  /// A prepared query is a table: for each four channels what each of their sixteen patterns of signs sums to.
  CELLAR_HD i64 query_bytes(i64 channels) const { return channels / 4 * 16 * i64(sizeof(float)); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    float rotated[D];  // every member rotates for itself: cheaper than a barrier
    float const unit = 1.0f / std::sqrt(float(rotation_width(D)));
    for (int c = 0; c < D; ++c) rotated[c] = q[c] * random_sign(SignSeed, c) * unit;
    hadamard_transform(t, rotated, D);
    for (int i = int(t.rank()); i < D / 4 * 16; i += int(t.size())) {
      float s = 0;
      for (int k = 0; k < 4; ++k) s += i >> k & 1 ? rotated[i / 16 * 4 + k] : -rotated[i / 16 * 4 + k];
      reinterpret_cast<float*>(prepared)[i] = s;
    }
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    auto const* const table = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      float s = 0;
      for (int byte = 0; byte < D / 8; ++byte) {
        unsigned const bits = unsigned(codes[i64(byte) * lanes + lane]);
        s += table[byte * 32 + int(bits & 15u)] + table[byte * 32 + 16 + int(bits >> 4)];
      }
      scores[lane] = s * to_float(detail::load<Scale>(scales + lane * i64(sizeof(Scale))));
    }
  }
};
static_assert(code_scorer<signs<>> && code_scorer<signs<1, float>>);

}  // namespace cellar::codec
