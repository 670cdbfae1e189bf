#pragma once
#include <array>

#include "cellar/codec/concept.hpp"
#include "cellar/codec/hadamard.hpp"
#include "cellar/codec/higgs_grids.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// HIGGS: a Hadamard rotation, one scale a row, and the nearest point of a grid optimal for the normal distribution.
///
/// With C channels and rotation width r:  s = ||x||,  y = sqrt(C/r) H (signs * x) / s  has unit variance a channel, each `Dimension`
/// channels of y become the index of their nearest grid point c;  decoded  x = signs * H (s sqrt(r/C) c) / r.  A zero row has s = 0.
///
/// Template  Dimension, Points: the grid (log2(Points) / Dimension bits a channel); SignSeed: random signs before the rotation, 0 for
///           none (as published); Scale: how s is stored
/// Bytes     C * log2(Points) / (8 * Dimension) codes and one Scale a row
/// Error     mean squared error a channel, for normal rows of unit variance: (4, 256) 0.0964, (2, 16) 0.1078, (2, 256) 0.0078
/// Source    Malinovskii et al., arXiv:2411.17525; the KV-cache form: arXiv:2604.08426. Deviation: one rotation a head
template <int Dimension, int Points, std::uint32_t SignSeed = 0, storage_scalar Scale = bf16>
struct higgs {
  static_assert(Points == 16 || Points == 256, "higgs: grids of 16 or 256 points are supported (codes of 4 or 8 bits)");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;
  static constexpr int codes_per_byte = Points == 16 ? 2 : 1;

  /// The norm of a row must be a finite Scale, and its square a finite f32. No channel needs the exact root: 16 >= sqrt(256).
  CELLAR_HD constexpr float largest(i64) const { return (cellar::largest<Scale> < 0x1p63f ? cellar::largest<Scale> : 0x1p63f) / 16; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / Dimension / codes_per_byte, sizeof(Scale)}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_channels : D];
      float square = 0;
      for (int c = 0; c < channels; ++c) square += x(r, c) * x(r, c);
      Scale const stored = from_float<Scale>(std::sqrt(square));
      detail::store(to.scales + r * to.scale_stride, stored);
      float const norm = to_float(stored);
      float const unit = norm > 0 ? std::sqrt(float(channels) / float(rotation_width(channels))) / norm : 0.0f;
      for (int c = 0; c < channels; ++c) y[c] = x(r, c) * random_sign(SignSeed, c) * unit;
      hadamard_transform(y, channels);
      std::byte* const codes = to.codes + r * to.code_stride;
      for (int byte = 0; byte < channels / Dimension / codes_per_byte; ++byte) {
        unsigned code = 0;
        for (int i = 0; i < codes_per_byte; ++i) code |= nearest(y + (byte * codes_per_byte + i) * Dimension) << (4 * i);
        codes[byte] = std::byte(code);
      }
    }
  }

  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns()), width = rotation_width(channels);
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float* const out = y.row(r);
      std::byte const* const codes = from.codes + r * from.code_stride;
      float const unit = to_float(detail::load<Scale>(from.scales + r * from.scale_stride)) / std::sqrt(float(width) * float(channels));
      for (int sub = 0; sub < channels / Dimension; ++sub)
        for (int i = 0; i < Dimension; ++i) out[sub * Dimension + i] = grid::points[code_at(codes, sub) * Dimension + i] * unit;
      hadamard_transform(out, channels);
      if constexpr (SignSeed != 0)
        for (int c = 0; c < channels; ++c) out[c] *= random_sign(SignSeed, c);
    }
  }

  /// A prepared query is a table of partial scores, [channels / Dimension][Points]: scoring a row is look-ups and one product.
  CELLAR_HD i64 query_bytes(i64 channels) const { return channels / Dimension * Points * i64(sizeof(float)); }

  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    auto* const table = reinterpret_cast<float*>(prepared);
    float rotated[D];  // every member rotates for itself: cheaper than a barrier
    for (int c = 0; c < D; ++c) rotated[c] = q[c] * random_sign(SignSeed, c);
    hadamard_transform(rotated, D);
    float const unit = 1.0f / std::sqrt(float(rotation_width(D)) * float(D));
    for (int entry = int(t.rank()); entry < D / Dimension * Points; entry += int(t.size())) {
      int const sub = entry / Points, point = entry % Points;
      float s = 0;
      for (int i = 0; i < Dimension; ++i) s += rotated[sub * Dimension + i] * grid::points[point * Dimension + i];
      table[entry] = s * unit;
    }
  }

  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    auto const* const table = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      float s = 0;
      for (int byte = 0; byte < D / Dimension / codes_per_byte; ++byte) {
        auto const code = unsigned(codes[byte * lanes + lane]);
        if constexpr (codes_per_byte == 1)
          s += table[byte * Points + int(code)];
        else
          s += table[2 * byte * Points + int(code & 15u)] + table[(2 * byte + 1) * Points + int(code >> 4)];
      }
      scores[lane] = s * to_float(detail::load<Scale>(scales + lane * i64(sizeof(Scale))));
    }
  }

 private:
  using grid = higgs_grid<Dimension, Points>;

  /// Points as [coordinate][point], so that the search runs over neighbouring numbers.
  static constexpr auto by_coordinate = [] {
    std::array<float, std::size_t(Dimension * Points)> a{};
    for (int p = 0; p < Points; ++p)
      for (int i = 0; i < Dimension; ++i) a[std::size_t(i * Points + p)] = grid::points[p * Dimension + i];
    return a;
  }();

  CELLAR_HD static int code_at(std::byte const* codes, int sub) {
    if constexpr (codes_per_byte == 1)
      return int(codes[sub]);
    else
      return int(codes[sub / 2]) >> (4 * (sub % 2)) & 15;
  }

  /// Index of the nearest grid point, ties to the lowest. Squared distances are not negative, so their bits compare as integers,
  /// which is a minimum that compilers vectorise.
  CELLAR_HD static unsigned nearest(float const* y) {
    std::uint32_t distance[Points];
    for (int p = 0; p < Points; ++p) {
      float d = 0;
      for (int i = 0; i < Dimension; ++i) {
        float const e = y[i] - by_coordinate[std::size_t(i * Points + p)];
        d += e * e;
      }
      distance[p] = bit_cast<std::uint32_t>(d);
    }
    std::uint32_t best = distance[0];
    for (int p = 1; p < Points; ++p) best = distance[p] < best ? distance[p] : best;
    unsigned p = 0;
    while (distance[p] != best) ++p;
    return p;
  }
};
static_assert(code_scorer<higgs<4, 256>> && code_scorer<higgs<2, 16>> && code_scorer<higgs<2, 256, 1>>);

}  // namespace cellar::codec
