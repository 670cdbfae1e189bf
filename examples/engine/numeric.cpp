#include "engine/numeric.hpp"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if !defined(OPENBLAS_VERSION) && __has_include(<openblas_config.h>)
#include <openblas_config.h>
#endif

// The programs are built for the plainest processor of their family, but these loops are worth compiling for newer ones too: each body is written once on
// vectors of 16 floats, inlined into one function per instruction set, and the processor is asked once at run time. (The attribute target_clones would write
// the same with less text, but its resolvers run before the sanitizers are ready.)
namespace engine {
namespace {

using lanes [[gnu::vector_size(64)]] = float;
using integer_lanes [[gnu::vector_size(64)]] = std::int32_t;
std::int64_t constexpr width = 16;

enum class instructions { plain, avx2, avx512 };

instructions find_instructions() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return instructions::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return instructions::avx2;
#endif
  return instructions::plain;
}

instructions best_instructions() {
  static instructions const best = find_instructions();
  return best;
}

// exp in place, relative error about 1e-7: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial for exp(r) - 1 - r, and n added to the exponent.
[[gnu::always_inline]] inline void exp_lanes(lanes& x) {
  lanes const low = lanes{} - 87.f, high = lanes{} + 88.f, magic = lanes{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  auto const is_zero = x < low;
  x = is_zero ? low : x;
  x = x > high ? high : x;
  lanes const shifted = x * 1.44269504f + magic;
  integer_lanes n;
  std::memcpy(&n, &shifted, sizeof n);
  n -= 0x4B400000;  // the bits of the magic number
  lanes const count = shifted - magic;
  lanes const r = (x - count * 0.693359375f) - count * -2.12194440e-4f;
  lanes p = lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  lanes const y = p * r * r + r + 1.f;
  integer_lanes bits;
  std::memcpy(&bits, &y, sizeof bits);
  bits += n << 23;
  std::memcpy(&x, &bits, sizeof x);
  x = is_zero ? lanes{} : x;
}

[[gnu::always_inline]] inline float add_up(lanes const& x) {
  float sum = 0;
  for (int i = 0; i < width; ++i) sum += x[i];
  return sum;
}

[[gnu::always_inline]] inline float exponentials_body(float* row, std::int64_t n, float maximum) {
  lanes sum{};
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    lanes x;
    std::memcpy(&x, row + i, sizeof x);
    x -= maximum;
    exp_lanes(x);
    sum += x;
    std::memcpy(row + i, &x, sizeof x);
  }
  if (i < n) {
    lanes x = lanes{} - 1000.f;  // exp is 0 there
    std::memcpy(&x, row + i, (n - i) * sizeof(float));
    for (int c = 0; c < n - i; ++c) x[c] -= maximum;
    exp_lanes(x);
    sum += x;
    std::memcpy(row + i, &x, (n - i) * sizeof(float));
  }
  return add_up(sum);
}

[[gnu::always_inline]] inline float maximum_body(float const* row, std::int64_t n) {
  float best = row[0];
  std::int64_t i = 0;
  if (n >= width) {
    lanes m;
    std::memcpy(&m, row, sizeof m);
    for (i = width; i + width <= n; i += width) {
      lanes x;
      std::memcpy(&x, row + i, sizeof x);
      m = x > m ? x : m;
    }
    for (int c = 0; c < width; ++c) best = std::max<float>(best, m[c]);
  }
  for (; i < n; ++i) best = std::max(best, row[i]);
  return best;
}

// gate = gate * sigmoid(slope(gate)) * up
template <class Slope>
[[gnu::always_inline]] inline void gated_body(float* gate, float const* up, std::int64_t n, Slope const& slope) {
  for (std::int64_t i = 0; i < n; i += width) {
    std::size_t const bytes = std::min(width, n - i) * sizeof(float);
    lanes g{}, u{};
    if (bytes == sizeof g) {
      std::memcpy(&g, gate + i, sizeof g);
      std::memcpy(&u, up + i, sizeof u);
    } else {
      std::memcpy(&g, gate + i, bytes);
      std::memcpy(&u, up + i, bytes);
    }
    lanes e = g;
    slope(e);
    exp_lanes(e);
    g = g / (e + 1.f) * u;
    if (bytes == sizeof g)
      std::memcpy(gate + i, &g, sizeof g);
    else
      std::memcpy(gate + i, &g, bytes);
  }
}
[[gnu::always_inline]] inline void silu_times_body(float* gate, float const* up, std::int64_t n) {
  gated_body(
      gate, up, n, [](lanes & x) __attribute__((always_inline)) { x = -x; });
}
[[gnu::always_inline]] inline void gelu_times_body(float* gate, float const* up, std::int64_t n) {
  // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
  gated_body(
      gate, up, n, [](lanes & x) __attribute__((always_inline)) { x *= -1.5957691216f * (1.f + 0.044715f * x * x); });
}

using narrow_lanes [[gnu::vector_size(16)]] = float;
using half_lanes [[gnu::vector_size(32)]] = float;

[[gnu::always_inline]] inline float add_up_tree(narrow_lanes const& x) { return (x[0] + x[2]) + (x[1] + x[3]); }
template <class Lanes>
[[gnu::always_inline]] inline float add_up_tree(Lanes const& x) {
  std::conditional_t<sizeof(Lanes) == 64, half_lanes, narrow_lanes> low, high;
  std::memcpy(&low, &x, sizeof low);
  std::memcpy(&high, reinterpret_cast<char const*>(&x) + sizeof low, sizeof high);
  low += high;
  return add_up_tree(low);
}

// A Rows x 4 tile of dot products. Loops over the tile are unrolled, or the compiler keeps the sums in memory.
template <class Lanes, int Rows>
[[gnu::always_inline]] inline void dot_tile(float const* x, std::int64_t in, float const* w, float* out, std::int64_t out_stride) {
  std::int64_t constexpr each = sizeof(Lanes) / sizeof(float);
  Lanes sums[Rows][4] = {};
  std::int64_t i = 0;
  for (; i + each <= in; i += each) {
    Lanes weight[4];
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) std::memcpy(&weight[o], w + o * in + i, sizeof(Lanes));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      Lanes input;
      std::memcpy(&input, x + r * in + i, sizeof input);
#pragma GCC unroll 4
      for (int o = 0; o < 4; ++o) sums[r][o] += input * weight[o];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) {
      float sum = add_up_tree(sums[r][o]);
      for (std::int64_t c = i; c < in; ++c) sum += x[r * in + c] * w[o * in + c];
      out[r * out_stride + o] = sum;
    }
}

template <class Lanes, int MostRows>
[[gnu::always_inline]] inline void dot_tile_of(std::int64_t rows, float const* x, std::int64_t in, float const* w, float* out, std::int64_t out_stride) {
  if constexpr (MostRows > 1)
    if (rows < MostRows) return dot_tile_of<Lanes, MostRows - 1>(rows, x, in, w, out, out_stride);
  dot_tile<Lanes, MostRows>(x, in, w, out, out_stride);
}

// The few rows of a decode step: four rows of weights come from memory once, and serve all inputs from the caches. The sums of a tile of MostRows, four weights
// and one input are to fit the registers.
template <class Lanes, int MostRows>
[[gnu::always_inline]] inline void few_rows_body(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t begin, std::int64_t end,
                                                 float* out, std::int64_t out_width) {
  std::int64_t const tiles = (rows + MostRows - 1) / MostRows;  // of nearly equal heights
  std::int64_t o = begin;
  for (; o + 4 <= end; o += 4)
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      std::int64_t const first = rows * tile / tiles, height = rows * (tile + 1) / tiles - first;
      dot_tile_of<Lanes, MostRows>(height, x + first * in, in, w + o * in, out + first * out_width + o, out_width);
    }
  for (; o < end; ++o)
    for (std::int64_t r = 0; r < rows; ++r) {
      float sum = 0;
      for (std::int64_t c = 0; c < in; ++c) sum += x[r * in + c] * w[o * in + c];
      out[r * out_width + o] = sum;
    }
}

#if defined(__x86_64__)
[[gnu::target("avx512f")]] float exponentials_avx512(float* row, std::int64_t n, float maximum) { return exponentials_body(row, n, maximum); }
[[gnu::target("avx2,fma")]] float exponentials_avx2(float* row, std::int64_t n, float maximum) { return exponentials_body(row, n, maximum); }
[[gnu::target("avx512f")]] float maximum_avx512(float const* row, std::int64_t n) { return maximum_body(row, n); }
[[gnu::target("avx2,fma")]] float maximum_avx2(float const* row, std::int64_t n) { return maximum_body(row, n); }
[[gnu::target("avx512f")]] void silu_times_avx512(float* gate, float const* up, std::int64_t n) { silu_times_body(gate, up, n); }
[[gnu::target("avx2,fma")]] void silu_times_avx2(float* gate, float const* up, std::int64_t n) { silu_times_body(gate, up, n); }
[[gnu::target("avx512f")]] void gelu_times_avx512(float* gate, float const* up, std::int64_t n) { gelu_times_body(gate, up, n); }
[[gnu::target("avx2,fma")]] void gelu_times_avx2(float* gate, float const* up, std::int64_t n) { gelu_times_body(gate, up, n); }
[[gnu::target("avx512f")]] void few_rows_avx512(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t begin, std::int64_t end,
                                                float* out, std::int64_t out_width) {
  few_rows_body<lanes, 6>(x, rows, in, w, begin, end, out, out_width);
}
[[gnu::target("avx2,fma")]] void few_rows_avx2(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t begin, std::int64_t end,
                                               float* out, std::int64_t out_width) {
  few_rows_body<half_lanes, 3>(x, rows, in, w, begin, end, out, out_width);
}
#endif

void few_rows(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t begin, std::int64_t end, float* out, std::int64_t out_width) {
#if defined(__x86_64__)
  if (best_instructions() == instructions::avx512) return few_rows_avx512(x, rows, in, w, begin, end, out, out_width);
  if (best_instructions() == instructions::avx2) return few_rows_avx2(x, rows, in, w, begin, end, out, out_width);
#endif
  few_rows_body<narrow_lanes, 3>(x, rows, in, w, begin, end, out, out_width);
}

}  // namespace

float exponentials(float* row, std::int64_t n, float maximum) {
#if defined(__x86_64__)
  if (best_instructions() == instructions::avx512) return exponentials_avx512(row, n, maximum);
  if (best_instructions() == instructions::avx2) return exponentials_avx2(row, n, maximum);
#endif
  return exponentials_body(row, n, maximum);
}

float maximum(float const* row, std::int64_t n) {
#if defined(__x86_64__)
  if (best_instructions() == instructions::avx512) return maximum_avx512(row, n);
  if (best_instructions() == instructions::avx2) return maximum_avx2(row, n);
#endif
  return maximum_body(row, n);
}

void silu_times(float* gate, float const* up, std::int64_t n) {
#if defined(__x86_64__)
  if (best_instructions() == instructions::avx512) return silu_times_avx512(gate, up, n);
  if (best_instructions() == instructions::avx2) return silu_times_avx2(gate, up, n);
#endif
  silu_times_body(gate, up, n);
}

void gelu_times(float* gate, float const* up, std::int64_t n) {
#if defined(__x86_64__)
  if (best_instructions() == instructions::avx512) return gelu_times_avx512(gate, up, n);
  if (best_instructions() == instructions::avx2) return gelu_times_avx2(gate, up, n);
#endif
  gelu_times_body(gate, up, n);
}

void rms_norm(float const* x, float const* weight, std::int64_t n, double epsilon, float* out) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double(x[i]) * x[i];
  float const factor = float(1 / std::sqrt(sum / double(n) + epsilon));
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

double log_sum_exp(float const* logits, std::int64_t n) {
  double const top = maximum(logits, n);
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - top);
  return top + std::log(sum);
}

void linear(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t out_width, float* out, cellar::host::thread_pool& on) {
  std::int64_t const wanted = out_width / (8 * on.workers());  // several slices a thread, so that a slow one does not hold up the rest
  std::int64_t const slice = rows <= 32 ? std::clamp<std::int64_t>(wanted / 16 * 16, 16, 1024) : std::clamp<std::int64_t>(wanted / 16 * 16, 96, 512);
  on.run((out_width + slice - 1) / slice, [&](std::int64_t task, int) {
    std::int64_t const begin = task * slice, end = std::min(out_width, begin + slice);
    if (rows <= 32)
      few_rows(x, rows, in, w, begin, end, out, out_width);
    else
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, int(rows), int(end - begin), int(in), 1.f, x, int(in), w + begin * in, int(in), 0.f, out + begin,
                  int(out_width));
  });
}

}  // namespace engine
