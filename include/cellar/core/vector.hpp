#pragma once
#include "cellar/core/team.hpp"
#include "cellar/core/types.hpp"
#include "cellar/core/view.hpp"

/// The inner loops of a step, as functions over a team: the generic body here is the specification; a serial team that carries vector_kernels runs those
/// (host/vector_level.hpp has them for each instruction set).
///
/// Laws
///   a kernel computes what the generic body computes, up to the rounding of another order of summation
///   one result depends on its own operands only: not on which other rows, lanes or queries the same call computes
namespace cellar::inline CELLAR_ABI {

/// Addresses of stored rows, nothing need be aligned, and of those that will be read next, of next_bytes each: prefetched, as far as there are rows beside
/// them; null for none.
struct row_pointers {
  std::byte const* const* rows = nullptr;
  i64 count = 0;
  std::byte const* const* next = nullptr;
  i64 next_count = 0;
  i64 next_bytes = 0;
};

/// Kernels over rows stored as T: float, f16, bf16, std::int8_t or e4m3.
template <class T>
struct row_kernels {
  void (*dot_rows)(float const* queries, i64 query_stride, i64 queries_count, int channels, row_pointers keys, float* out, i64 out_stride);
  void (*add_weighted_rows)(float const* weights, i64 weight_stride, i64 rows, int channels, row_pointers values, float* sums, i64 sum_stride);
  void (*score_lanes)(float const* queries, i64 query_stride, i64 queries_count, i64 channels, std::byte const* tile, int tile_lanes, float* out,
                      i64 out_stride);
  void (*widen)(std::byte const* from, i64 count, float* to);
};

/// Kernels over scalars of a type that numbers are rounded to: float, f16 or bf16.
template <class T>
struct scalar_kernels {
  void (*narrow)(float const* from, i64 count, std::byte* to);
  bool (*are_within)(std::byte const* from, i64 count, float most);
};

/// One instruction set's inner loops.
struct vector_kernels {
  row_kernels<float> f32;
  row_kernels<f16> half;
  row_kernels<bf16> brain;
  row_kernels<std::int8_t> bytes;
  row_kernels<e4m3> fp8;  ///< A code that is no number is read as 480: codecs store none.
  scalar_kernels<float> f32_scalars;
  scalar_kernels<f16> half_scalars;
  scalar_kernels<bf16> brain_scalars;
  void (*multiply)(float* x, float const* by, i64 count);
  float (*exponentials)(float* x, i64 count, float reference);
  float (*largest)(float const* x, i64 count);
  float (*largest_magnitude)(float const* x, i64 count);
  void (*quantize_bytes)(float const* x, i64 count, float scale, std::byte* codes);
  void (*quantize_fp8)(float const* x, i64 count, float scale, std::byte* codes);
  float (*sum_of_exponentials)(float const* x, i64 count, float reference);
  void (*raise)(float* to, float const* x, i64 count, float less);
  void (*hadamard)(float* x, int width);  ///< Of a width of 8 or more.
  void (*nearest_points)(float const* y, int count, int dimension, float const* by_coordinate, int points, std::uint8_t* codes);
  void (*grid_points)(std::uint8_t const* codes, int count, int dimension, float const* grid, float scale, float* to);
  void (*nibble_values)(std::byte const* codes, i64 count, float const* table, float* to);
  void (*score_codes)(float const* table, int group, int points, std::byte const* codes, int bytes, i64 code_stride, float const* scales, int lanes, float* out,
                      i64 out_stride);
  void (*turn)(float const* x, i64 half, float const* fine, float const* coarse, bool is_back, float* y);
  void (*write_highest)(float const* x, i64 count, i64 take, logical_block* ids);

  template <class T>
  CELLAR_HD constexpr row_kernels<T> const& of() const {
    if constexpr (std::is_same_v<T, float>)
      return f32;
    else if constexpr (std::is_same_v<T, f16>)
      return half;
    else if constexpr (std::is_same_v<T, bf16>)
      return brain;
    else if constexpr (std::is_same_v<T, std::int8_t>)
      return bytes;
    else
      return fp8;
  }
  template <storage_scalar T>
  CELLAR_HD constexpr scalar_kernels<T> const& scalars() const {
    if constexpr (std::is_same_v<T, float>)
      return f32_scalars;
    else if constexpr (std::is_same_v<T, f16>)
      return half_scalars;
    else
      return brain_scalars;
  }
};

namespace detail {

/// The kernels that a team carries; null for all but serial teams, and on a device.
template <team Team>
CELLAR_HD vector_kernels const* kernels_of(Team const& t) {
  if constexpr (std::is_same_v<Team, serial_team> && !is_device_pass)
    return t.kernels();
  else
    return nullptr;
}

/// A team of one for a member's own work, with what `t` carries.
template <team Team>
CELLAR_HD serial_team alone_in(Team const& t) {
  return serial_team{nullptr, 0, kernels_of(t)};
}

template <class T>
CELLAR_HD float load_float(std::byte const* from) {
  T x;
  memcpy(&x, from, sizeof x);
  if constexpr (std::is_same_v<T, std::int8_t>)
    return float(x);
  else
    return to_float(x);
}

}  // namespace detail

/// out(r, i) = queries(r) . row i, of rows stored as T. A member computes the query rows rank, rank + size, ...
///
/// Shapes  out [queries.rows, keys.count], row r at out + r * stride
template <class T, int D, team Team>
CELLAR_HD void dot_rows(Team& t, matrix_view<float const, D> queries, row_pointers const& keys, float* out, i64 stride) {
  if (auto const* const k = detail::kernels_of(t)) return k->template of<T>().dot_rows(queries.data, queries.stride, queries.rows, D, keys, out, stride);
  for (i64 r = t.rank(); r < queries.rows; r += t.size())
    for (i64 i = 0; i < keys.count; ++i) {
      float s[8] = {};
      for (int c = 0; c < D; c += 8)
        for (int j = 0; j < 8; ++j) s[j] += queries(r, c + j) * detail::load_float<T>(keys.rows[i] + (c + j) * int(sizeof(T)));
      out[r * stride + i] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    }
}

/// sums(r) += sum over i of weights(r, i) * row i, of rows stored as T, in order. A member computes the rows rank, rank + size, ...
///
/// Shapes  weights [rows, values.count], row r at weights + r * stride; sums [rows, D]
template <class T, int D, team Team>
CELLAR_HD void add_weighted_rows(Team& t, float const* weights, i64 stride, row_pointers const& values, matrix_view<float, D> sums) {
  if (auto const* const k = detail::kernels_of(t)) return k->template of<T>().add_weighted_rows(weights, stride, sums.rows, D, values, sums.data, sums.stride);
  for (i64 r = t.rank(); r < sums.rows; r += t.size())
    for (i64 i = 0; i < values.count; ++i)
      for (int c = 0; c < D; ++c) sums(r, c) += weights[r * stride + i] * detail::load_float<T>(values.rows[i] + c * int(sizeof(T)));
}

/// out(r, b) = sum over c of queries(r, c) * tile[c][b]: rows that lie interleaved, [channels][lanes] of T. A member computes the lanes rank, rank + size, ...
///
/// Shapes  queries [count, channels], row r at queries + r * query_stride; out [count, lanes]
template <class T, team Team>
CELLAR_HD void score_lanes(Team& t, float const* queries, i64 query_stride, i64 count, i64 channels, std::byte const* tile, int lanes, matrix_view<float> out) {
  if (auto const* const k = detail::kernels_of(t))
    return k->template of<T>().score_lanes(queries, query_stride, count, channels, tile, lanes, out.data, out.stride);
  for (i64 b = t.rank(); b < lanes; b += t.size())
    for (i64 r = 0; r < count; ++r) {
      float s = 0;
      for (i64 c = 0; c < channels; ++c) s += queries[r * query_stride + c] * detail::load_float<T>(tile + (c * lanes + b) * i64(sizeof(T)));
      out(r, b) = s;
    }
}

/// to[i] = the i-th of `count` scalars stored as T: one member's work.
template <class T, team Team>
CELLAR_HD void widen(Team const& t, std::byte const* from, i64 count, float* to) {
  if (auto const* const k = detail::kernels_of(t)) return k->template of<T>().widen(from, count, to);
  for (i64 i = 0; i < count; ++i) to[i] = detail::load_float<T>(from + i * i64(sizeof(T)));
}

/// The i-th of `count` scalars stored as T = from[i], rounded to nearest, ties to even: one member's work.
template <class T, team Team>
CELLAR_HD void narrow(Team const& t, float const* from, i64 count, std::byte* to) {
  if (auto const* const k = detail::kernels_of(t)) return k->template scalars<T>().narrow(from, count, to);
  for (i64 i = 0; i < count; ++i) {
    T const x = from_float<T>(from[i]);
    memcpy(to + i * i64(sizeof(T)), &x, sizeof x);
  }
}

/// Whether `count` scalars stored as T are numbers of at most that magnitude: one member's work.
template <class T, team Team>
CELLAR_HD bool are_within(Team const& t, std::byte const* from, i64 count, float most) {
  if (auto const* const k = detail::kernels_of(t)) return k->template scalars<T>().are_within(from, count, most);
  bool all = true;
  for (i64 i = 0; i < count; ++i) {
    float const x = detail::load_float<T>(from + i * i64(sizeof(T)));
    all &= (x < 0 ? -x : x) <= most;
  }
  return all;
}

/// x[i] *= by[i]: one member's work.
template <team Team>
CELLAR_HD void multiply(Team const& t, float* x, float const* by, i64 count) {
  if (auto const* const k = detail::kernels_of(t)) return k->multiply(x, by, count);
  for (i64 i = 0; i < count; ++i) x[i] *= by[i];
}

/// x[i] = exp(x[i] - reference) for x[i] <= reference; 0 for -infinity. Returns their sum. One member's work.
///
/// Error  at most 2 ulp, down to exp(-87); results below the smallest normal number lose bits, and are 0 from -104 on
template <team Team>
CELLAR_HD float exponentials(Team const& t, float* x, i64 count, float reference) {
  if (auto const* const k = detail::kernels_of(t)) return k->exponentials(x, count, reference);
  float sum = 0;
  for (i64 i = 0; i < count; ++i) {
    x[i] = x[i] == -infinity ? 0.0f : exponential(x[i] - reference);
    sum += x[i];
  }
  return sum;
}

/// The largest of x, NaN passed over; -infinity of none. Members take the elements rank, rank + size, ..., each its own part.
template <team Team>
CELLAR_HD float largest_of(Team const& t, float const* x, i64 count) {
  if (auto const* const k = detail::kernels_of(t)) return k->largest(x, count);
  float top = -infinity;
  for (i64 i = t.rank(); i < count; i += t.size()) top = maximum{}(top, x[i]);
  return top;
}

/// The largest |x[i]|; 0 of none. One member's work, of numbers.
template <team Team>
CELLAR_HD float largest_magnitude(Team const& t, float const* x, i64 count) {
  if (auto const* const k = detail::kernels_of(t)) return k->largest_magnitude(x, count);
  float most = 0;
  for (i64 i = 0; i < count; ++i) most = maximum{}(most, x[i] < 0 ? -x[i] : x[i]);
  return most;
}

/// codes[i] = x[i] / scale as T, std::int8_t within 127 to each side or e4m3, rounded to nearest, ties to even, and saturated; 0 for a scale of 0. One
/// member's work, of numbers.
template <class T, team Team>
CELLAR_HD void quantize(Team const& t, float const* x, i64 count, float scale, std::byte* codes) {
  static_assert(std::is_same_v<T, std::int8_t> || std::is_same_v<T, e4m3>);
  if (auto const* const k = detail::kernels_of(t)) return (std::is_same_v<T, e4m3> ? k->quantize_fp8 : k->quantize_bytes)(x, count, scale, codes);
  for (i64 i = 0; i < count; ++i) {
    float const y = scale > 0 ? x[i] / scale : 0.0f;
    if constexpr (std::is_same_v<T, e4m3>)
      codes[i] = std::byte(to_e4m3(y).bits);
    else
      codes[i] = std::byte(std::uint8_t(nearest_integer(y > 127 ? 127 : y < -127 ? -127 : y)));
  }
}

/// The sum of exp(x[i] - reference), for x[i] <= reference; NaN adds nothing. Members sum the elements rank, rank + size, ..., each its own part.
template <team Team>
CELLAR_HD float sum_of_exponentials(Team const& t, float const* x, i64 count, float reference) {
  if (auto const* const k = detail::kernels_of(t)) return k->sum_of_exponentials(x, count, reference);
  float sum = 0;
  for (i64 i = t.rank(); i < count; i += t.size())
    if (x[i] == x[i]) sum += exponential(x[i] - reference);
  return sum;
}

/// to[i] = the larger of to[i] and x[i] - less; a NaN gives way. Members take the elements rank, rank + size, ...
template <team Team>
CELLAR_HD void raise(Team const& t, float* to, float const* x, i64 count, float less) {
  if (auto const* const k = detail::kernels_of(t)) return k->raise(to, x, count, less);
  for (i64 i = t.rank(); i < count; i += t.size()) {
    float const y = x[i] - less;
    if (y > to[i] || to[i] != to[i]) to[i] = y;
  }
}

/// codes[k] = the nearest of the grid's points to y's k-th run of Dimension numbers, ties to the lowest. One member's work.
///
/// Shapes  y [count * Dimension], by_coordinate [Dimension][Points], then half the square of each point, [Points]
template <int Dimension, int Points, team Team>
CELLAR_HD void nearest_points(Team const& t, float const* y, int count, float const* by_coordinate, std::uint8_t* codes) {
  if (auto const* const k = detail::kernels_of(t)) return k->nearest_points(y, count, Dimension, by_coordinate, Points, codes);
  if constexpr (is_device_pass) {  // the same, without an array
    for (int k = 0; k < count; ++k) {
      float best = infinity;
      int found = 0;
      for (int p = 0; p < Points; ++p) {
        float d = 0;
        for (int i = 0; i < Dimension; ++i) {
          float const e = y[k * Dimension + i] - by_coordinate[i * Points + p];
          d += e * e;
        }
        found = d < best ? p : found;
        best = d < best ? d : best;
      }
      codes[k] = std::uint8_t(found);
    }
  } else
    for (int k = 0; k < count; ++k) {
      std::uint32_t distance[Points];  // squares are not negative, so their bits compare as integers: a minimum that compilers vectorize
      for (int p = 0; p < Points; ++p) {
        float d = 0;
        for (int i = 0; i < Dimension; ++i) {
          float const e = y[k * Dimension + i] - by_coordinate[i * Points + p];
          d += e * e;
        }
        distance[p] = bit_cast<std::uint32_t>(d);
      }
      std::uint32_t best = distance[0];
      for (int p = 1; p < Points; ++p) best = distance[p] < best ? distance[p] : best;
      unsigned p = 0;
      while (distance[p] != best) ++p;
      codes[k] = std::uint8_t(p);
    }
}

/// to = the grid's points of these codes, times `scale`. One member's work.
///
/// Shapes  to [count * Dimension], grid [points][Dimension]
template <int Dimension, team Team>
CELLAR_HD void grid_points(Team const& t, std::uint8_t const* codes, int count, float const* grid, float scale, float* to) {
  if (auto const* const k = detail::kernels_of(t)) return k->grid_points(codes, count, Dimension, grid, scale, to);
  for (int k = 0; k < count; ++k)
    for (int i = 0; i < Dimension; ++i) to[k * Dimension + i] = grid[codes[k] * Dimension + i] * scale;
}

/// to[i] = table[code i] of four-bit codes, two a byte, the even one in the low half. One member's work.
///
/// Shapes  codes [ceil(count / 2)], table [16]
template <team Team>
CELLAR_HD void nibble_values(Team const& t, std::byte const* codes, i64 count, float const* table, float* to) {
  if (auto const* const k = detail::kernels_of(t)) return k->nibble_values(codes, count, table, to);
  for (i64 i = 0; i < count; ++i) to[i] = table[unsigned(codes[i / 2]) >> (4 * (i % 2)) & 15u];
}

/// out(g, lane) = a lane's scale times the sum of its table entries for query g: Points is 256, a code a byte, or 16, two of them, the low four bits first.
/// Members take the lanes rank, rank + size, ...
///
/// Shapes    table [codes][256][group] or [codes][group][16], codes [bytes][lanes], scales [lanes] of Scale, out [group, lanes]
/// Requires  a group of 1 to 4; behind a table of 256 points and three queries, one number more that may be read
template <int Points, class Scale, team Team>
CELLAR_HD void score_codes(Team const& t, float const* table, int group, std::byte const* codes, int bytes, std::byte const* scales, int lanes,
                           matrix_view<float> out) {
  if (auto const* const k = detail::kernels_of(t)) {
    constexpr int run = 64;
    float wide[run];
    for (int first = 0; first < lanes; first += run) {
      int const some = lanes - first < run ? lanes - first : run;
      widen<Scale>(t, scales + first * i64(sizeof(Scale)), some, wide);
      k->score_codes(table, group, Points, codes + first, bytes, lanes, wide, some, out.data + first, out.stride);
    }
    return;
  }
  for (int lane = int(t.rank()); lane < lanes; lane += int(t.size()))
    for (int g = 0; g < group; ++g) {
      float s = 0;
      for (int byte = 0; byte < bytes; ++byte) {
        auto const code = int(codes[i64(byte) * lanes + lane]);
        if constexpr (Points == 256)
          s += table[(byte * Points + code) * group + g];
        else
          s += table[(2 * byte * group + g) * 16 + (code & 15)] + table[((2 * byte + 1) * group + g) * 16 + (code >> 4)];
      }
      out(g, lane) = s * detail::load_float<Scale>(scales + lane * i64(sizeof(Scale)));
    }
}

/// x = its unnormalised Walsh-Hadamard transform, whose square is width * identity. Every number is the same tree of sums wherever it is computed. One member's
/// work.
///
/// Requires  width: a power of two
template <team Team>
CELLAR_HD void hadamard(Team const& t, float* x, int width) {
  if (auto const* const k = detail::kernels_of(t); k && width >= 8) return k->hadamard(x, width);
  for (int half = 1; half < width; half *= 2)
    for (int base = 0; base < width; base += 2 * half)
      for (int i = base; i < base + half; ++i) {
        float const a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
}

/// Asks for memory that will be read soon, into the second-level cache. Any address is allowed.
template <team Team>
CELLAR_HD void prefetch(Team const&, [[maybe_unused]] std::byte const* from, [[maybe_unused]] i64 bytes) {
  if constexpr (std::is_same_v<Team, serial_team> && !is_device_pass)
    for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace cellar
