#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cellar/core/config.hpp"

/// Scalars and the few instructions that differ between host and device: the only file that names __CUDA_ARCH__.
namespace cellar::inline CELLAR_ABI {

using i64 = std::int64_t;

inline constexpr float infinity = __builtin_huge_valf();

template <class To, class From>
CELLAR_HD To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

/// Storage types. Arithmetic is done in f32; these only hold.
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

template <class T>
concept storage_scalar = std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

CELLAR_HD inline float to_float(float x) { return x; }
CELLAR_HD inline float to_float(bf16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }
CELLAR_HD inline float to_float(f16 x) {
  std::uint32_t const sign = std::uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  // A float whose exponent is 112 too small holds subnormals too; one multiplication by 2^112 mends both.
  return bit_cast<float>(bit_cast<std::uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f) | sign);
}

/// Rounds to nearest, ties to even. Overflow becomes infinity; NaN stays NaN.
template <storage_scalar To>
CELLAR_HD To from_float(float x) {
  if constexpr (std::is_same_v<To, float>) {
    return x;
  } else if constexpr (std::is_same_v<To, bf16>) {
    auto const u = bit_cast<std::uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{std::uint16_t(u >> 16 | 0x40u)};
    return bf16{std::uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
  } else {
    auto const u = bit_cast<std::uint32_t>(x), magnitude = u & 0x7fffffffu;
    auto const sign = std::uint16_t(u >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return f16{std::uint16_t(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return f16{std::uint16_t(sign | 0x7c00u)};
    if (magnitude < 0x38800000u)  // subnormal or zero: adding 0.5 aligns the last bit and rounds
      return f16{std::uint16_t(sign | (bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u))};
    return f16{std::uint16_t(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13)};
  }
}

/// The largest finite value of a storage type.
template <storage_scalar T>
inline constexpr float largest = std::is_same_v<T, float>  ? 0x1.fffffep+127f
                                 : std::is_same_v<T, bf16> ? 0x1.fep+127f
                                                           : 65504.0f;

/// Numbers up to this have a finite f32 sum over the tokens of any block (65536 of them).
inline constexpr float largest_summand = 0x1p111f;

CELLAR_HD inline bool is_finite(float x) { return (bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

/// exp on the softmax range. At most 2 ulp for x in [-87, 0]; 0 at and below -104, -infinity included.
CELLAR_HD inline float exponential(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  return std::exp(x);
#endif
}

CELLAR_HD inline int popcount(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return __popc(x);
#else
  return std::popcount(x);
#endif
}

/// A float's bits as an unsigned key of the same order. NaN gets the lowest key, -0 and +0 the same one.
CELLAR_HD inline std::uint32_t ordered_bits(float x) {
  if (x != x) return 0;
  auto const u = bit_cast<std::uint32_t>(x == 0 ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

struct plus {
  template <class T>
  CELLAR_HD T operator()(T a, T b) const {
    return a + b;
  }
};
struct maximum {
  template <class T>
  CELLAR_HD T operator()(T a, T b) const {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same_v<T, float>) return fmaxf(a, b);
#endif
    return a < b ? b : a;
  }
};

/// a . b over D channels, D a multiple of 8: eight partial sums, which vectorise without reordering what is written.
template <int D>
CELLAR_HD float dot(float const* a, float const* b) {
  static_assert(D % 8 == 0);
  float s[8] = {};
  for (int c = 0; c < D; c += 8)
    for (int i = 0; i < 8; ++i) s[i] += a[c + i] * b[c + i];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

CELLAR_HD constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
CELLAR_HD constexpr i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

}  // namespace cellar
