#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cellar/core/config.hpp"

/// Scalars and the few instructions that differ between host and device: the only file that names __CUDA_ARCH__.
namespace cellar::inline CELLAR_ABI {

using i64 = std::int64_t;

/// True where the compiler generates a kernel's code.
#ifdef __CUDA_ARCH__
inline constexpr bool is_device_pass = true;
#else
inline constexpr bool is_device_pass = false;
#ifdef __x86_64__
#define CELLAR_X86  ///< Host code for x86-64: vector intrinsics may be named.
#endif
#endif

inline constexpr float infinity = __builtin_huge_valf();
inline constexpr float undefined = __builtin_nanf("");

template <class To, class From>
CELLAR_HD To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

/// Numbers known at compile time. As a `static constexpr` local of a function of both, host and device find them by address, which they would not as a
/// static member.
template <class T, int N>
struct alignas(16) constant_array {
  T values[N] = {};

  CELLAR_HD constexpr T& operator[](int i) { return values[i]; }
  CELLAR_HD constexpr T const& operator[](int i) const { return values[i]; }
};

/// Stored bytes in registers, as words: byte i is in the low bits of what is left of words[i / 4] after a shift by 8 (i % 4).
template <int N>
struct alignas(N < 4    ? 4
               : N < 16 ? N
                        : 16) loaded_bytes {
  std::uint32_t words[N < 4 ? 1 : N / 4] = {};

  CELLAR_HD constexpr unsigned byte(int i) const { return words[i / 4] >> (8 * (i % 4)) & 255u; }
};

/// N bytes from an address of a multiple of N, or of 16 where N is more.
template <int N>
CELLAR_HD loaded_bytes<N> load_aligned(void const* from) {
  static_assert(N >= 4 && (N & (N - 1)) == 0);
  loaded_bytes<N> x;
#ifdef __CUDA_ARCH__
  constexpr int width = N < 16 ? N : 16;
  for (int i = 0; i < N / width; ++i) reinterpret_cast<loaded_bytes<width>*>(&x)[i] = static_cast<loaded_bytes<width> const*>(from)[i];
#else
  memcpy(x.words, from, N);
#endif
  return x;
}

/// N bytes from anywhere. On a device by one wide load where the address allows it, else by aligned words, which may take in up to three bytes on each side.
///
/// Template  N: a power of two
template <int N>
CELLAR_HD loaded_bytes<N> load_bytes(std::byte const* from) {
  static_assert((N & (N - 1)) == 0);
  loaded_bytes<N> x;
#ifdef __CUDA_ARCH__
  auto const address = reinterpret_cast<std::uintptr_t>(from);
  if (N >= 4 && address % (N < 16 ? N : 16) == 0) {
    if constexpr (N >= 4) return load_aligned<N>(from);
  }
  auto const* const words = reinterpret_cast<std::uint32_t const*>(address - address % 4);
  unsigned const shift = unsigned(address % 4) * 8;
  constexpr int count = N < 4 ? 1 : N / 4;
  std::uint32_t low = words[0];
  for (int i = 0; i < count; ++i) {
    bool const needs_next = i + 1 < count || int(shift) / 8 + N - 4 * i > 4;
    std::uint32_t const high = needs_next ? words[i + 1] : 0;
    x.words[i] = __funnelshift_r(low, high, shift);
    low = high;
  }
#else
  memcpy(x.words, from, N);
#endif
  return x;
}

/// N bytes to an address of a multiple of N, at most 16.
template <int N>
CELLAR_HD void store_aligned(void* to, loaded_bytes<N> const& x) {
  static_assert(N >= 4 && N <= 16);
#ifdef __CUDA_ARCH__
  *static_cast<loaded_bytes<N>*>(to) = x;
#else
  memcpy(to, x.words, N);
#endif
}

/// Four floats to an address of a multiple of 16, at once.
CELLAR_HD inline void store_four(float* to, float a, float b, float c, float d) {
  store_aligned(to, loaded_bytes<16>{{bit_cast<std::uint32_t>(a), bit_cast<std::uint32_t>(b), bit_cast<std::uint32_t>(c), bit_cast<std::uint32_t>(d)}});
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
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  std::uint32_t const sign = std::uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  std::uint32_t const exponent = magnitude >= 0x7c00u ? 0x7f800000u : 0;  // infinity, NaN; no branch, so that loops vectorize
  // A float whose exponent is 112 too small holds subnormals too; one multiplication by 2^112 mends both.
  return bit_cast<float>(bit_cast<std::uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f) | sign | exponent);
#endif
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
#ifdef __CUDA_ARCH__
    std::uint32_t pair;  // of a zero and x: a result of 16 bits whose bytes were stored one by one came out wrong (nvcc 13.0, sm_90)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
    return f16{std::uint16_t(pair & 0xffffu)};
#else
    auto const u = bit_cast<std::uint32_t>(x), magnitude = u & 0x7fffffffu;
    auto const sign = std::uint16_t(u >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return f16{std::uint16_t(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return f16{std::uint16_t(sign | 0x7c00u)};
    if (magnitude < 0x38800000u)  // subnormal or zero: adding 0.5 aligns the last bit and rounds
      return f16{std::uint16_t(sign | (bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u))};
    return f16{std::uint16_t(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13)};
#endif
  }
}

/// The largest finite value of a storage type.
template <storage_scalar T>
inline constexpr float largest = std::is_same_v<T, float>  ? 0x1.fffffep+127f
                                 : std::is_same_v<T, bf16> ? 0x1.fep+127f
                                                           : 65504.0f;

/// The largest number of a storage type that is at most x.
template <storage_scalar To>
CELLAR_HD To rounded_down(float x);
/// The smallest number of a storage type that is at least x.
template <storage_scalar To>
CELLAR_HD To rounded_up(float x);

namespace detail {

/// The next representable value in a direction; sign and magnitude, so away from zero is one more.
template <storage_scalar T>
CELLAR_HD T neighbour(T y, int direction) {
  if constexpr (std::is_same_v<T, float>) {
    return y;
  } else {
    bool const negative = y.bits >> 15;
    if ((y.bits & 0x7fffu) == 0) return T{std::uint16_t(direction < 0 ? 0x8001u : 0x0001u)};
    return T{std::uint16_t(y.bits + (negative == (direction < 0) ? 1 : -1))};
  }
}

}  // namespace detail

template <storage_scalar To>
CELLAR_HD To rounded_down(float x) {
  To const y = from_float<To>(x);
  return to_float(y) <= x ? y : detail::neighbour(y, -1);
}
template <storage_scalar To>
CELLAR_HD To rounded_up(float x) {
  To const y = from_float<To>(x);
  return to_float(y) >= x ? y : detail::neighbour(y, +1);
}

/// Eight bits of OCP's E4M3: bias 7, largest 448, NaN 0x7f and 0xff, no infinity. Not a storage_scalar: nothing near is held in it.
struct e4m3 {
  std::uint8_t bits;
};
inline constexpr float largest_e4m3 = 448;

CELLAR_HD inline float to_float(e4m3 x) {
  std::uint32_t const sign = std::uint32_t(x.bits & 0x80u) << 24, magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return bit_cast<float>(sign | 0x7fc00000u);
  float const y = magnitude < 8 ? float(magnitude) * 0x1p-9f : bit_cast<float>((magnitude << 20) + 0x3c000000u);
  return bit_cast<float>(bit_cast<std::uint32_t>(y) | sign);
}
/// Rounds to nearest, ties to even. Saturates: what is above 448, infinity too, becomes 448. NaN stays NaN.
CELLAR_HD inline e4m3 to_e4m3(float x) {
  auto const u = bit_cast<std::uint32_t>(x), magnitude = u & 0x7fffffffu;
  std::uint32_t const sign = u >> 24 & 0x80u;
  if (magnitude > 0x7f800000u) return e4m3{std::uint8_t(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return e4m3{std::uint8_t(sign | 0x7eu)};
  if (magnitude < 0x3c800000u)  // subnormal or zero: adding 2^14 aligns the last bit and rounds
    return e4m3{std::uint8_t(sign | (bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u))};
  return e4m3{std::uint8_t(sign | (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20)};
}

/// The i-th of scalars stored as T: float, f16, bf16, std::int8_t or e4m3.
template <class T, int N>
CELLAR_HD float scalar_of(loaded_bytes<N> const& x, int i) {
  if constexpr (std::is_same_v<T, float>)
    return bit_cast<float>(x.words[i]);
  else if constexpr (std::is_same_v<T, bf16>)
    return bit_cast<float>(i % 2 == 0 ? x.words[i / 2] << 16 : x.words[i / 2] & 0xffff0000u);
  else if constexpr (std::is_same_v<T, f16>)
    return to_float(f16{std::uint16_t(x.words[i / 2] >> (16 * (i % 2)))});
  else if constexpr (std::is_same_v<T, std::int8_t>)
    return float(std::int8_t(x.byte(i)));
  else
    return to_float(e4m3{std::uint8_t(x.byte(i))});
}

/// The nearest integer, ties to even, of |x| <= 2^22; of other numbers and of NaN some integer.
CELLAR_HD inline std::int32_t nearest_integer(float x) {
  return std::int32_t(bit_cast<std::uint32_t>(x + 0x1.8p23f) - 0x4b400000u);  // the sum's last bit is worth one
}

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

/// Ends the program, or the kernel.
CELLAR_HD inline void trap() {
#ifdef __CUDA_ARCH__
  __trap();
#else
  __builtin_trap();
#endif
}

CELLAR_HD inline int popcount(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return __popc(x);
#else
  return std::popcount(x);
#endif
}

/// 32 pseudo-random bits of a counter under a seed, the same on every machine.
CELLAR_HD constexpr std::uint32_t random_bits(std::uint32_t seed, std::uint32_t i) {
  std::uint32_t x = seed * 0x9e3779b9u + i * 0x85ebca6bu;  // murmur3's finaliser
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

/// A float's bits as an unsigned key of the same order. NaN gets the lowest key, -0 and +0 the same one.
CELLAR_HD inline std::uint32_t ordered_bits(float x) {
  if (x != x) return 0;
  auto const u = bit_cast<std::uint32_t>(x == 0 ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/// The float of an ordered key; NaN for that of NaN.
CELLAR_HD inline float from_ordered_bits(std::uint32_t key) {
  if (key == 0) return bit_cast<float>(0x7fc00000u);
  return bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
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
