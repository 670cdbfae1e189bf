#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/codec/hadamard.hpp"
#include "cellar/codec/higgs_grids.hpp"
#include "cellar/codec/nearest_in_plane.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// The cells of a plane grid, made at the first call in a program.
template <int Points>
nearest_in_plane const& nearest_on_grid() {
  static nearest_in_plane const nearest(higgs_grid<2, Points>::points, Points);
  return nearest;
}

/// HIGGS: a Hadamard rotation, one scale a row, and the nearest point of a grid optimal for the normal distribution.
///
/// With C channels and rotation width r:  s = ||x||,  y = sqrt(C/r) H (signs * x) / s  has unit variance a channel, each `Dimension`
/// channels of y become the index of their nearest grid point c;  decoded  x = signs * H (s sqrt(r/C) c) / r.  A zero row has s = 0.
///
/// Template  Dimension, Points: the grid (log2(Points) / Dimension bits a channel); SignSeed: random signs before the rotation, 0 for
///           none (as published); Scale: how s is stored; Scope: one rotation and scale a head, or over all heads (as published)
/// Bytes     C * log2(Points) / (8 * Dimension) codes and one Scale a row
/// Error     mean squared error a channel, for normal rows of unit variance: (4, 256) 0.0964, (2, 16) 0.1078, (2, 256) 0.0078
/// The first code of a plane grid in a program takes a few milliseconds more, on the host: it makes the grid's cells (nearest_on_grid).
/// Over all heads, one head is decoded at the cost of all, and a query's table is as wide as all.
///
/// Source    Malinovskii et al., arXiv:2411.17525; the KV-cache form: arXiv:2604.08426. Deviation: one rotation a head by default
template <int Dimension, int Points, std::uint32_t SignSeed = 0, storage_scalar Scale = bf16, scope Scope = scope::one_head>
struct higgs : bound_head<Scope> {
  static_assert(Points == 16 || Points == 256, "higgs: grids of 16 or 256 points are supported (codes of 4 or 8 bits)");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = Scope;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;
  using rotates_as = higgs;
  static constexpr int codes_per_byte = Points == 16 ? 2 : 1;

  /// The norm of a row must be a finite Scale, and its square a finite f32. The root of the channels is 16 for 256, 24 for 576 and 64 for 4096.
  CELLAR_HD constexpr float largest(i64 channels) const {
    float const root = Scope == scope::all_heads ? 64 : channels > 256 ? 24 : 16;
    return (cellar::largest<Scale> < 0x1p63f ? cellar::largest<Scale> : 0x1p63f) / root;
  }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / Dimension / codes_per_byte, sizeof(Scale)}; }

  CELLAR_HD higgs of_head(int head, int heads) const requires(Scope == scope::all_heads) { return {{head, heads}}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D != dynamic ? D : Scope == scope::one_head ? max_channels : max_row_channels];
      float squares[8] = {};  // partial sums, which compilers may add at once
      for (int c = 0; c < channels; c += 8)
        for (int i = 0; i < 8; ++i) squares[i] += x(r, c + i) * x(r, c + i);
      float const square = ((squares[0] + squares[4]) + (squares[2] + squares[6])) + ((squares[1] + squares[5]) + (squares[3] + squares[7]));
      Scale const stored = from_float<Scale>(std::sqrt(square));
      detail::store(to.scales + r * to.scale_stride, stored);
      float const norm = to_float(stored);
      float const unit = norm > 0 ? std::sqrt(float(channels) / float(rotation_width(channels))) / norm : 0.0f;
      for (int c = 0; c < channels; ++c) y[c] = x(r, c) * sign(c) * unit;
      hadamard_transform(t, y, channels);
      std::byte* const codes = to.codes + r * to.code_stride;
      if constexpr (codes_per_byte == 1) {
        search(t, y, channels / Dimension, reinterpret_cast<std::uint8_t*>(codes));
      } else {
        std::uint8_t indices[(D != dynamic ? D : Scope == scope::one_head ? max_channels : max_row_channels) / Dimension];
        search(t, y, channels / Dimension, indices);
        for (int byte = 0; byte < channels / Dimension / 2; ++byte) codes[byte] = std::byte(indices[2 * byte] | indices[2 * byte + 1] << 4);
      }
    }
  }

  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns()), all = channels * this->head_count(), width = rotation_width(all);
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float whole[Scope == scope::one_head ? 1 : max_row_channels];
      float* const out = Scope == scope::one_head ? y.row(r) : whole;
      points_of(t, from, r, all, std::sqrt(float(width) * float(all)), out);
      hadamard_transform(t, out, all);
      if constexpr (SignSeed != 0)
        for (int c = 0; c < all; ++c) out[c] *= sign(c);
      if constexpr (Scope == scope::all_heads)
        for (int c = 0; c < channels; ++c) y(r, c) = whole[this->head * channels + c];
    }
  }

  template <team Team, int D>
    requires(Scope == scope::one_head)
  CELLAR_HD void decode_rotated(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    for (i64 r = t.rank(); r < y.rows; r += t.size()) points_of(t, from, r, channels, std::sqrt(float(channels)), y.row(r));
  }
  static constexpr int piece_words = 2;
  CELLAR_HD void read_piece(std::byte const* codes, std::byte const* scales, int, int first, std::uint32_t* words) const requires(Scope == scope::one_head) {
    words[0] = load_bytes<8 / Dimension / codes_per_byte>(codes + first / Dimension / codes_per_byte).words[0];
    words[1] = load_bytes<sizeof(Scale)>(scales).words[0];
  }
  CELLAR_HD void decode_piece(std::uint32_t const* words, int channels, int, float* to) const requires(Scope == scope::one_head) {
    constexpr int bits = codes_per_byte == 1 ? 8 : 4;
    float const unit = scalar_of<Scale>(loaded_bytes<4>{{words[1]}}, 0) / std::sqrt(float(channels));
    for (int sub = 0; sub < 8 / Dimension; ++sub) {
      auto const x = load_aligned<4 * Dimension>(points() + (words[0] >> (bits * sub) & ((1u << bits) - 1)) * Dimension);
      for (int i = 0; i < Dimension; ++i) to[sub * Dimension + i] = scalar_of<float>(x, i) * unit;
    }
  }
  template <team Team, int D>
    requires(Scope == scope::one_head)
  CELLAR_HD void rotate(Team& t, matrix_view<float, D> x) const {
    float const unit = 1.0f / std::sqrt(float(rotation_width(x.columns())));
    share_rows(t, x, [&](float* row, int c) { row[c] *= unit * sign(c); });
    hadamard_rows(t, x);
  }
  template <team Team, int D>
    requires(Scope == scope::one_head)
  CELLAR_HD void rotate_back(Team& t, matrix_view<float, D> x) const {
    float const unit = 1.0f / std::sqrt(float(rotation_width(x.columns())));
    hadamard_rows(t, x);
    share_rows(t, x, [&](float* row, int c) { row[c] *= unit * sign(c); });
  }

  static constexpr int byte_channels = Dimension * codes_per_byte;
  CELLAR_HD static void point_of(int byte, float (&point)[byte_channels]) {
    for (int i = 0; i < byte_channels; ++i) point[i] = points()[(codes_per_byte == 1 ? byte : byte >> (i / Dimension * 4) & 15) * Dimension + i % Dimension];
  }
  template <int N>
  CELLAR_HD static float scale_in(loaded_bytes<N> const& scales, int i) {
    return scalar_of<Scale>(scales, i);
  }

  /// A prepared query is a table of partial scores, as cellar::score_codes has it: scoring a row is look-ups and one product.
  CELLAR_HD i64 query_bytes(i64 channels) const {
    i64 const behind = Points == 256 ? 16 : 0;  // score_codes reads a little more
    return this->head_count() * channels / Dimension * Points * i64(sizeof(float)) + behind;
  }

  static constexpr int query_group = 4;

  template <int D, team Team>
  CELLAR_HD void prepare_group(Team& t, matrix_view<float const, D> queries, std::byte* prepared) const {
    auto* const table = reinterpret_cast<float*>(prepared);
    float rotated[Scope == scope::one_head ? D : max_row_channels];  // every member rotates for itself: cheaper than a barrier
    int const all = D * this->head_count(), group = int(queries.rows);
    int first = 0;
    if constexpr (Scope == scope::all_heads) first = this->head * D;  // zero beside the bound head's channels
    float const unit = 1.0f / std::sqrt(float(rotation_width(all)) * float(all));
    for (int g = 0; g < group; ++g) {
      for (int c = 0; c < all; ++c) rotated[c] = c >= first && c < first + D ? queries(g, c - first) * sign(c) * unit : 0.0f;
      hadamard_transform(t, rotated, all);
      for (int sub = int(t.rank()); sub < all / Dimension; sub += int(t.size()))
        for (int p = 0; p < Points; ++p) {
          float s = 0;
          for (int i = 0; i < Dimension; ++i) s += rotated[sub * Dimension + i] * by_coordinate()[i * Points + p];
          table[Points == 16 ? (sub * group + g) * 16 + p : (sub * Points + p) * group + g] = s;
        }
    }
  }
  template <int D, team Team>
  CELLAR_HD void score_group(Team& t, std::byte const* prepared, int count, std::byte const* codes, std::byte const* scales, int lanes,
                             matrix_view<float> scores) const {
    cellar::score_codes<Points, Scale>(t, reinterpret_cast<float const*>(prepared), count, codes, D * this->head_count() / Dimension / codes_per_byte, scales,
                                       lanes, scores);
  }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    prepare_group<D>(t, matrix_view<float const, D>{q, 1}, prepared);
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    score_group<D>(t, prepared, 1, codes, scales, lanes, matrix_view<float>{scores, 1, lanes, lanes});
  }

 private:
  using grid = higgs_grid<Dimension, Points>;

  /// f(row, channel) for every element, by members in turn, after a barrier.
  template <team Team, int D, class F>
  CELLAR_HD static void share_rows(Team& t, matrix_view<float, D> x, F const& f) {
    int const channels = int(x.columns());
    t.sync();
    for (i64 i = t.rank(); i < x.rows * channels; i += t.size()) f(x.row(i / channels), int(i % channels));
  }

  CELLAR_HD static float sign(int c) {
    if constexpr (Scope == scope::one_head) {
      static constexpr auto signs = [] {
        constant_array<float, max_channels> a;
        for (int i = 0; i < max_channels; ++i) a[i] = random_sign(SignSeed, i);
        return a;
      }();
      return signs[c];
    } else {
      return random_sign(SignSeed, c);
    }
  }

  /// [point][coordinate]
  CELLAR_HD static float const* points() {
    static constexpr auto table = [] {
      constant_array<float, Points * Dimension> a;
      for (int i = 0; i < Points * Dimension; ++i) a[i] = grid::points[i];
      return a;
    }();
    return table.values;
  }
  /// Points as [coordinate][point], so that the search runs over neighbouring numbers; then half their squares.
  CELLAR_HD static float const* by_coordinate() {
    static constexpr auto table = [] {
      constant_array<float, (Dimension + 1) * Points> a;
      for (int p = 0; p < Points; ++p)
        for (int i = 0; i < Dimension; ++i) {
          float const x = grid::points[p * Dimension + i];
          a[i * Points + p] = x;
          a[Dimension * Points + p] += x * x / 2;
        }
      return a;
    }();
    return table.values;
  }

  /// The indices of the grid points nearest to `count` runs of y.
  template <team Team>
  CELLAR_HD static void search(Team const& t, float const* y, int count, std::uint8_t* indices) {
    if constexpr (Dimension == 2 && std::is_same_v<Team, serial_team> && !is_device_pass) {
      auto const& nearest = nearest_on_grid<Points>();
      for (int k = 0; k < count; ++k) indices[k] = nearest(y[2 * k], y[2 * k + 1]);
    } else {
      nearest_points<Dimension, Points>(t, y, count, by_coordinate(), indices);
    }
  }

  /// Grid points of row r, times its scale over `divisor`.
  template <team Team>
  CELLAR_HD static void points_of(Team const& t, row_parts<std::byte const> from, i64 r, int channels, float divisor, float* out) {
    std::byte const* const codes = from.codes + r * from.code_stride;
    float const unit = to_float(detail::load<Scale>(from.scales + r * from.scale_stride)) / divisor;
    if constexpr (codes_per_byte == 1)
      grid_points<Dimension>(t, reinterpret_cast<std::uint8_t const*>(codes), channels / Dimension, points(), unit, out);
    else
      for (int sub = 0; sub < channels / Dimension; ++sub)
        for (int i = 0; i < Dimension; ++i) out[sub * Dimension + i] = points()[code_at(codes, sub) * Dimension + i] * unit;
  }

  CELLAR_HD static int code_at(std::byte const* codes, int sub) {
    if constexpr (codes_per_byte == 1)
      return int(codes[sub]);
    else
      return int(codes[sub / 2]) >> (4 * (sub % 2)) & 15;
  }
};
static_assert(point_codec<higgs<4, 256>> && point_codec<higgs<2, 16>> && !point_codec<higgs<2, 256>>);
static_assert(rotating_codec<higgs<2, 256>> && group_code_scorer<higgs<4, 256>> && code_scorer<higgs<2, 16>> && code_scorer<higgs<2, 256, 1>>);
static_assert(code_scorer<higgs<4, 256, 0, bf16, scope::all_heads>> && of_all_heads<higgs<2, 256, 0, bf16, scope::all_heads>>);

}  // namespace cellar::codec
