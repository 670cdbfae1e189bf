#pragma once
#include "cellar/core/vector.hpp"

#ifdef CELLAR_X86
#include <immintrin.h>

#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // its front end does not know the pragma that it hands on
#endif

/// Inner loops in AVX2, FMA and F16C. Every function names its instruction set, so that any translation unit may hold them; what calls them has asked the
/// processor (host/vector_level.hpp). Loops over registers have constant bounds: they unroll.
namespace cellar::inline CELLAR_ABI::host::avx2 {

#define CELLAR_AVX2 [[gnu::target("avx2,fma,f16c")]]
#define CELLAR_AVX2_INLINE [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] inline
#ifdef __clang__
#define CELLAR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CELLAR_UNROLL _Pragma("GCC unroll 16")
#endif

/// Eight stored scalars in f32.
template <class T>
CELLAR_AVX2_INLINE __m256 load(std::byte const* from) {
  if constexpr (std::is_same_v<T, float>)
    return _mm256_loadu_ps(reinterpret_cast<float const*>(from));
  else if constexpr (std::is_same_v<T, f16>)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
  else if constexpr (std::is_same_v<T, std::int8_t>)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(from))));
  else if constexpr (std::is_same_v<T, e4m3>) {  // as an f16 whose exponent is 8 too small
    __m128i const x = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(from)));
    __m128i const half = _mm_or_si128(_mm_and_si128(x, _mm_set1_epi16(short(0x8000))), _mm_slli_epi16(_mm_and_si128(x, _mm_set1_epi16(0x7f)), 7));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256));
  } else
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from))), 16));
}

/// The sums of eight vectors' lanes, each as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
CELLAR_AVX2_INLINE __m256 sums_of(__m256 const* s) {
  __m256 const low = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
  __m256 const high = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/// Queries x keys dot products, eight at a time: Queries * Keys == 8.
template <class T, int Queries>
CELLAR_AVX2_INLINE void dot_eight(float const* queries, i64 query_stride, int channels, std::byte const* const* keys, float* to) {
  constexpr int Keys = 8 / Queries;
  __m256 s[8];
  CELLAR_UNROLL
  for (auto& x : s) x = _mm256_setzero_ps();
  for (int c = 0; c < channels; c += 8) {
    __m256 q[Queries];
    CELLAR_UNROLL
    for (int r = 0; r < Queries; ++r) q[r] = _mm256_loadu_ps(queries + r * query_stride + c);
    CELLAR_UNROLL
    for (int i = 0; i < Keys; ++i) {
      __m256 const k = load<T>(keys[i] + c * i64(sizeof(T)));
      CELLAR_UNROLL
      for (int r = 0; r < Queries; ++r) s[r * Keys + i] = _mm256_fmadd_ps(q[r], k, s[r * Keys + i]);
    }
  }
  _mm256_storeu_ps(to, sums_of(s));
}

template <class T, int Queries>
CELLAR_AVX2_INLINE void dot_rows_of(float const* queries, i64 query_stride, int channels, row_pointers const& keys, float* out, i64 out_stride,
                                    bool prefetches) {
  constexpr int Keys = 8 / Queries;
  for (i64 i = 0; i < keys.count; i += Keys) {
    std::byte const* some[Keys];
    for (int j = 0; j < Keys; ++j) some[j] = keys.rows[i + j < keys.count ? i + j : keys.count - 1];
    if (prefetches)
      for (i64 j = i; j < i + Keys && j < keys.next_count; ++j)
        for (i64 b = 0; b < keys.next_bytes; b += 64) _mm_prefetch(keys.next[j] + b, _MM_HINT_T1);
    alignas(32) float sums[8];
    dot_eight<T, Queries>(queries, query_stride, channels, some, sums);
    CELLAR_UNROLL
    for (int r = 0; r < Queries; ++r)
      for (int j = 0; j < Keys && i + j < keys.count; ++j) out[r * out_stride + i + j] = sums[r * Keys + j];
  }
}

template <class T>
CELLAR_AVX2 inline void dot_rows(float const* queries, i64 query_stride, i64 count, int channels, row_pointers keys, float* out, i64 out_stride) {
  i64 r = 0;
  for (; r + 4 <= count; r += 4) dot_rows_of<T, 4>(queries + r * query_stride, query_stride, channels, keys, out + r * out_stride, out_stride, r == 0);
  for (; r + 2 <= count; r += 2) dot_rows_of<T, 2>(queries + r * query_stride, query_stride, channels, keys, out + r * out_stride, out_stride, r == 0);
  if (r < count) dot_rows_of<T, 1>(queries + r * query_stride, query_stride, channels, keys, out + r * out_stride, out_stride, r == 0);
}

/// Rows x Vectors * 8 channels of sums.
template <class T, int Rows, int Vectors>
CELLAR_AVX2_INLINE void add_weighted(float const* weights, i64 weight_stride, row_pointers const& values, int c, int channels, float* sums, i64 sum_stride,
                                     bool prefetches) {
  i64 const next_begin = round_up(values.next_bytes * c / channels, 64), next_end = values.next_bytes * (c + 8 * Vectors) / channels;  // this pass's share
  __m256 s[Rows][Vectors];
  CELLAR_UNROLL
  for (int r = 0; r < Rows; ++r) CELLAR_UNROLL
  for (int v = 0; v < Vectors; ++v) s[r][v] = _mm256_loadu_ps(sums + r * sum_stride + c + 8 * v);
  for (i64 i = 0; i < values.count; ++i) {
    std::byte const* const row = values.rows[i] + c * i64(sizeof(T));
    if (prefetches && i < values.next_count)
      for (i64 b = next_begin; b < next_end; b += 64) _mm_prefetch(values.next[i] + b, _MM_HINT_T1);
    __m256 x[Vectors];
    CELLAR_UNROLL
    for (int v = 0; v < Vectors; ++v) x[v] = load<T>(row + 8 * v * i64(sizeof(T)));
    CELLAR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      __m256 const w = _mm256_broadcast_ss(weights + r * weight_stride + i);
      CELLAR_UNROLL
      for (int v = 0; v < Vectors; ++v) s[r][v] = _mm256_fmadd_ps(w, x[v], s[r][v]);
    }
  }
  CELLAR_UNROLL
  for (int r = 0; r < Rows; ++r) CELLAR_UNROLL
  for (int v = 0; v < Vectors; ++v) _mm256_storeu_ps(sums + r * sum_stride + c + 8 * v, s[r][v]);
}

template <class T, int Rows>
CELLAR_AVX2_INLINE void add_weighted_rows_of(float const* weights, i64 weight_stride, int channels, row_pointers const& values, float* sums, i64 sum_stride,
                                             bool prefetches) {
  constexpr int vectors = Rows == 4 ? 2 : 4;
  int c = 0;
  for (; c + 8 * vectors <= channels; c += 8 * vectors)
    add_weighted<T, Rows, vectors>(weights, weight_stride, values, c, channels, sums, sum_stride, prefetches);
  for (; c < channels; c += 8) add_weighted<T, Rows, 1>(weights, weight_stride, values, c, channels, sums, sum_stride, prefetches);
}

template <class T>
CELLAR_AVX2 inline void add_weighted_rows(float const* weights, i64 weight_stride, i64 rows, int channels, row_pointers values, float* sums, i64 sum_stride) {
  i64 r = 0;
  for (; r + 4 <= rows; r += 4)
    add_weighted_rows_of<T, 4>(weights + r * weight_stride, weight_stride, channels, values, sums + r * sum_stride, sum_stride, r == 0);
  for (; r + 2 <= rows; r += 2)
    add_weighted_rows_of<T, 2>(weights + r * weight_stride, weight_stride, channels, values, sums + r * sum_stride, sum_stride, r == 0);
  if (r < rows) add_weighted_rows_of<T, 1>(weights + r * weight_stride, weight_stride, channels, values, sums + r * sum_stride, sum_stride, r == 0);
}

/// Queries x 16 lanes of a tile.
template <class T, int Queries>
CELLAR_AVX2_INLINE void score_lanes_of(float const* queries, i64 query_stride, i64 channels, std::byte const* tile, int tile_lanes, float* out,
                                       i64 out_stride) {
  __m256 s[Queries][2];
  CELLAR_UNROLL
  for (auto& row : s) row[0] = row[1] = _mm256_setzero_ps();
  for (i64 c = 0; c < channels; ++c) {
    std::byte const* const lanes = tile + c * tile_lanes * i64(sizeof(T));
    __m256 const x0 = load<T>(lanes), x1 = load<T>(lanes + 8 * sizeof(T));
    CELLAR_UNROLL
    for (int r = 0; r < Queries; ++r) {
      __m256 const q = _mm256_broadcast_ss(queries + r * query_stride + c);
      s[r][0] = _mm256_fmadd_ps(q, x0, s[r][0]);
      s[r][1] = _mm256_fmadd_ps(q, x1, s[r][1]);
    }
  }
  CELLAR_UNROLL
  for (int r = 0; r < Queries; ++r) {
    _mm256_storeu_ps(out + r * out_stride, s[r][0]);
    _mm256_storeu_ps(out + r * out_stride + 8, s[r][1]);
  }
}

template <class T>
CELLAR_AVX2 inline void score_lanes(float const* queries, i64 query_stride, i64 count, i64 channels, std::byte const* tile, int tile_lanes, float* out,
                                    i64 out_stride) {
  int lane = 0;
  for (; lane + 16 <= tile_lanes; lane += 16) {
    std::byte const* const from = tile + lane * sizeof(T);
    i64 r = 0;
    for (; r + 4 <= count; r += 4)
      score_lanes_of<T, 4>(queries + r * query_stride, query_stride, channels, from, tile_lanes, out + r * out_stride + lane, out_stride);
    for (; r + 2 <= count; r += 2)
      score_lanes_of<T, 2>(queries + r * query_stride, query_stride, channels, from, tile_lanes, out + r * out_stride + lane, out_stride);
    if (r < count) score_lanes_of<T, 1>(queries + r * query_stride, query_stride, channels, from, tile_lanes, out + r * out_stride + lane, out_stride);
  }
  for (; lane < tile_lanes; ++lane)
    for (i64 r = 0; r < count; ++r) {
      float s = 0;
      for (i64 c = 0; c < channels; ++c) s += queries[r * query_stride + c] * cellar::detail::load_float<T>(tile + (c * tile_lanes + lane) * i64(sizeof(T)));
      out[r * out_stride + lane] = s;
    }
}

template <class T>
CELLAR_AVX2 inline void widen(std::byte const* from, i64 count, float* to) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, load<T>(from + i * i64(sizeof(T))));
  for (; i < count; ++i) to[i] = cellar::detail::load_float<T>(from + i * i64(sizeof(T)));
}

template <class T>
CELLAR_AVX2 inline void narrow(float const* from, i64 count, std::byte* to) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 const x = _mm256_loadu_ps(from + i);
    if constexpr (std::is_same_v<T, float>) {
      _mm256_storeu_ps(reinterpret_cast<float*>(to) + i, x);
    } else if constexpr (std::is_same_v<T, f16>) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      __m256i const bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      __m256i const even = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
      __m256i const quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
      __m256i const high = _mm256_blendv_epi8(even, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    }
  }
  for (; i < count; ++i) {
    T const x = from_float<T>(from[i]);
    __builtin_memcpy(to + i * i64(sizeof(T)), &x, sizeof x);
  }
}

template <class T>
CELLAR_AVX2 inline bool are_within(std::byte const* from, i64 count, float most) {
  __m256 const bound = _mm256_set1_ps(most), sign = _mm256_set1_ps(-0.0f);
  __m256 beyond = _mm256_setzero_ps();
  i64 i = 0;
  for (; i + 8 <= count; i += 8) beyond = _mm256_or_ps(beyond, _mm256_cmp_ps(_mm256_andnot_ps(sign, load<T>(from + i * i64(sizeof(T)))), bound, _CMP_NLE_UQ));
  bool all = _mm256_movemask_ps(beyond) == 0;
  for (; i < count; ++i) {
    float const x = cellar::detail::load_float<T>(from + i * i64(sizeof(T)));
    all &= (x < 0 ? -x : x) <= most;
  }
  return all;
}

CELLAR_AVX2 inline void multiply(float* x, float const* by, i64 count) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(by + i)));
  for (; i < count; ++i) x[i] *= by[i];
}

/// exp of eight numbers <= 0. x = n log 2 + r with |r| <= log(2) / 2; exp(r) by its Taylor polynomial of degree 7 (remainder below 6e-9 of it); 2^n in two
/// factors, so that n down to -150 works.
CELLAR_AVX2_INLINE __m256 exp_of(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-105.0f), x);  // of NaN: NaN
  __m256 const n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e400p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  __m256i const whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  auto const bias = _mm256_set1_epi32(127);
  __m256 const a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  __m256 const b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  __m256 const y = _mm256_mul_ps(_mm256_mul_ps(p, a), b);
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-104.0f), _CMP_LE_OQ), y);
}

/// The sum of a vector's lanes, in the order of sums_of.
CELLAR_AVX2_INLINE float sum_of(__m256 x) {
  alignas(32) float s[8];
  _mm256_store_ps(s, x);
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

/// Eight numbers of x from i on; those from count on are `rest`.
CELLAR_AVX2_INLINE __m256 load_some(float const* x, i64 i, i64 count, float rest) {
  if (i + 8 <= count) return _mm256_loadu_ps(x + i);
  alignas(32) float some[8];
  for (int j = 0; j < 8; ++j) some[j] = i + j < count ? x[i + j] : rest;
  return _mm256_load_ps(some);
}

CELLAR_AVX2 inline float exponentials(float* x, i64 count, float reference) {
  __m256 sum = _mm256_setzero_ps();
  for (i64 i = 0; i < count; i += 8) {
    __m256 const from = load_some(x, i, count, -infinity);
    __m256 const masked = _mm256_cmp_ps(from, _mm256_set1_ps(-infinity), _CMP_EQ_OQ);
    __m256 const y = _mm256_andnot_ps(masked, exp_of(_mm256_sub_ps(from, _mm256_set1_ps(reference))));
    sum = _mm256_add_ps(sum, y);
    if (i + 8 <= count) {
      _mm256_storeu_ps(x + i, y);
    } else {
      alignas(32) float some[8];
      _mm256_store_ps(some, y);
      for (int j = 0; i + j < count; ++j) x[i + j] = some[j];
    }
  }
  return sum_of(sum);
}

CELLAR_AVX2 inline float largest(float const* x, i64 count) {
  __m256 top = _mm256_set1_ps(-infinity);
  for (i64 i = 0; i < count; i += 8) top = _mm256_max_ps(load_some(x, i, count, -infinity), top);  // NaN is passed over
  alignas(32) float s[8];
  _mm256_store_ps(s, top);
  float most = s[0];
  for (float y : s) most = most < y ? y : most;
  return most;
}

CELLAR_AVX2 inline float largest_magnitude(float const* x, i64 count) {
  __m256 top = _mm256_setzero_ps();
  for (i64 i = 0; i < count; i += 8) top = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), load_some(x, i, count, 0)), top);
  alignas(32) float s[8];
  _mm256_store_ps(s, top);
  float most = s[0];
  for (float y : s) most = most < y ? y : most;
  return most;
}

/// The low bytes of eight integers, to `count` codes.
CELLAR_AVX2_INLINE void store_bytes(__m256i x, i64 count, std::byte* to) {
  __m256i const low = _mm256_shuffle_epi8(x, _mm256_set1_epi32(0x0c080400));
  auto const a = std::uint32_t(_mm_cvtsi128_si32(_mm256_castsi256_si128(low))), b = std::uint32_t(_mm_cvtsi128_si32(_mm256_extracti128_si256(low, 1)));
  std::uint64_t const eight = a | std::uint64_t(b) << 32;
  __builtin_memcpy(to, &eight, std::size_t(count < 8 ? count : 8));
}

/// x / scale of eight numbers from i on, 0 for a scale of 0.
CELLAR_AVX2_INLINE __m256 quotients(float const* x, i64 i, i64 count, float scale) {
  return scale > 0 ? _mm256_div_ps(load_some(x, i, count, 0), _mm256_set1_ps(scale)) : _mm256_setzero_ps();
}

CELLAR_AVX2 inline void quantize_bytes(float const* x, i64 count, float scale, std::byte* codes) {
  for (i64 i = 0; i < count; i += 8) {
    __m256 const y = _mm256_min_ps(_mm256_max_ps(quotients(x, i, count, scale), _mm256_set1_ps(-127)), _mm256_set1_ps(127));
    store_bytes(_mm256_cvtps_epi32(y), count - i, codes + i);
  }
}

/// As to_e4m3, of numbers.
CELLAR_AVX2 inline void quantize_fp8(float const* x, i64 count, float scale, std::byte* codes) {
  for (i64 i = 0; i < count; i += 8) {
    __m256i const bits = _mm256_castps_si256(quotients(x, i, count, scale));
    __m256i const sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    __m256i const magnitude = _mm256_min_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x43e00000));  // 448
    __m256i const odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    __m256i const normal =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_sub_epi32(magnitude, _mm256_set1_epi32(0x3c000000)), _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff))), 20);
    __m256i const subnormal =
        _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f))), _mm256_set1_epi32(0x46800000));
    __m256i const is_normal = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x3c7fffff));
    store_bytes(_mm256_or_si256(sign, _mm256_blendv_epi8(subnormal, normal, is_normal)), count - i, codes + i);
  }
}

CELLAR_AVX2 inline float sum_of_exponentials(float const* x, i64 count, float reference) {
  __m256 sum = _mm256_setzero_ps();
  for (i64 i = 0; i < count; i += 8) {
    __m256 const from = load_some(x, i, count, undefined), is_number = _mm256_cmp_ps(from, from, _CMP_ORD_Q);
    sum = _mm256_add_ps(sum, _mm256_and_ps(is_number, exp_of(_mm256_sub_ps(from, _mm256_set1_ps(reference)))));
  }
  return sum_of(sum);
}

CELLAR_AVX2 inline void raise(float* to, float const* x, i64 count, float less) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 const y = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(less)), old = _mm256_loadu_ps(to + i);
    __m256 const larger = _mm256_max_ps(y, old);  // `old` where either is NaN
    _mm256_storeu_ps(to + i, _mm256_blendv_ps(larger, y, _mm256_cmp_ps(old, old, _CMP_UNORD_Q)));
  }
  for (; i < count; ++i) {
    float const y = x[i] - less;
    if (y > to[i] || to[i] != to[i]) to[i] = y;
  }
}

/// The unnormalised Walsh-Hadamard transform of 8 or a larger power of two of numbers.
CELLAR_AVX2 inline void hadamard(float* x, int width) {
  for (int i = 0; i < width; i += 8) {  // strides 1, 2, 4 within a vector: minus where the lane's bit is set
    __m256 v = _mm256_loadu_ps(x + i);
    __m256 const m1 = _mm256_setr_ps(0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f);
    __m256 const m2 = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
    __m256 const m4 = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);
    v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, m1));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, m2));
    v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 0x01), _mm256_xor_ps(v, m4));
    _mm256_storeu_ps(x + i, v);
  }
  for (int half = 8; half < width; half *= 2)
    for (int base = 0; base < width; base += 2 * half)
      for (int i = base; i < base + half; i += 8) {
        __m256 const a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
        _mm256_storeu_ps(x + i + half, _mm256_sub_ps(a, b));
      }
}

/// The nearest of `points` grid points p, ties to the lowest, of `count` points of Dimension coordinates: the least |p|^2 / 2 - p . x and its first place.
template <int Dimension>
CELLAR_AVX2_INLINE void nearest_points_of(float const* y, int count, float const* by_coordinate, int points, std::uint8_t* codes) {
  alignas(32) float distances[256];  // less |x|^2 / 2
  float const* const half_squares = by_coordinate + Dimension * points;
  for (int k = 0; k < count; ++k) {
    __m256 x[Dimension], best[4];
    CELLAR_UNROLL
    for (int i = 0; i < Dimension; ++i) x[i] = _mm256_broadcast_ss(y + k * Dimension + i);
    CELLAR_UNROLL
    for (auto& b : best) b = _mm256_set1_ps(infinity);
    for (int p = 0; p < points; p += 32) {
      CELLAR_UNROLL
      for (int v = 0; v < 4; ++v) {
        if (p + 8 * v >= points) continue;  // 16 points
        __m256 d = _mm256_loadu_ps(half_squares + p + 8 * v);
        CELLAR_UNROLL
        for (int i = 0; i < Dimension; ++i) d = _mm256_fnmadd_ps(x[i], _mm256_loadu_ps(by_coordinate + i * points + p + 8 * v), d);
        _mm256_store_ps(distances + p + 8 * v, d);
        best[v] = _mm256_min_ps(best[v], d);
      }
    }
    __m256 least = _mm256_min_ps(_mm256_min_ps(best[0], best[1]), _mm256_min_ps(best[2], best[3]));
    least = _mm256_min_ps(least, _mm256_permute2f128_ps(least, least, 0x01));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4e));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xb1));
    int p = 0, found = 0;
    while ((found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(distances + p), least, _CMP_EQ_OQ))) == 0 && p + 8 < points) p += 8;
    codes[k] = std::uint8_t(found == 0 ? 0 : p + __builtin_ctz(unsigned(found)));
  }
}

/// Requires dimension 2 or 4.
CELLAR_AVX2 inline void nearest_points(float const* y, int count, int dimension, float const* by_coordinate, int points, std::uint8_t* codes) {
  if (dimension == 2)
    nearest_points_of<2>(y, count, by_coordinate, points, codes);
  else
    nearest_points_of<4>(y, count, by_coordinate, points, codes);
}

/// A table entry: Group numbers, and what is not looked at. Of three, the next entry's first is read too.
template <int Group>
CELLAR_AVX2_INLINE __m128 load_entry(float const* from) {
  if constexpr (Group >= 3) return _mm_loadu_ps(from);
  if constexpr (Group == 2) return _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(from)));
  if constexpr (Group == 1) return _mm_load_ss(from);
}

/// Grid points of Dimension numbers, times `scale`.
template <int Dimension>
CELLAR_AVX2_INLINE void grid_points_of(std::uint8_t const* codes, int count, float const* grid, float scale, float* to) {
  __m256 const s = _mm256_set1_ps(scale);
  constexpr int per_vector = 8 / Dimension;
  int k = 0;
  for (; k + per_vector <= count; k += per_vector) {
    __m256 x;
    if constexpr (Dimension == 4) {
      x = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(grid + codes[k] * 4)), _mm_loadu_ps(grid + codes[k + 1] * 4), 1);
    } else {
      auto const pair = [grid, codes, k](int j) { return reinterpret_cast<__m128i const*>(grid + codes[k + j] * 2); };
      __m128i const low = _mm_unpacklo_epi64(_mm_loadl_epi64(pair(0)), _mm_loadl_epi64(pair(1)));
      __m128i const high = _mm_unpacklo_epi64(_mm_loadl_epi64(pair(2)), _mm_loadl_epi64(pair(3)));
      x = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
    }
    _mm256_storeu_ps(to + k * Dimension, _mm256_mul_ps(x, s));
  }
  for (; k < count; ++k)
    for (int i = 0; i < Dimension; ++i) to[k * Dimension + i] = grid[codes[k] * Dimension + i] * scale;
}

/// Requires dimension 2 or 4.
CELLAR_AVX2 inline void grid_points(std::uint8_t const* codes, int count, int dimension, float const* grid, float scale, float* to) {
  if (dimension == 2)
    grid_points_of<2>(codes, count, grid, scale, to);
  else
    grid_points_of<4>(codes, count, grid, scale, to);
}

/// Half-split pairs of x turned by the product of two turns, [cosines, sines] of half numbers each. Requires half a multiple of 8; x and y may be the same.
CELLAR_AVX2 inline void turn(float const* x, i64 half, float const* fine, float const* coarse, bool is_back, float* y) {
  __m256 const sign = _mm256_set1_ps(is_back ? -0.0f : 0.0f);
  for (i64 i = 0; i < half; i += 8) {
    __m256 const fc = _mm256_loadu_ps(fine + i), fs = _mm256_loadu_ps(fine + half + i);
    __m256 const cc = _mm256_loadu_ps(coarse + i), cs = _mm256_loadu_ps(coarse + half + i);
    __m256 const c = _mm256_fmsub_ps(fc, cc, _mm256_mul_ps(fs, cs));
    __m256 const s = _mm256_xor_ps(sign, _mm256_fmadd_ps(fs, cc, _mm256_mul_ps(fc, cs)));
    __m256 const a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
    _mm256_storeu_ps(y + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(y + half + i, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
  }
}

/// ordered_bits of eight numbers.
CELLAR_AVX2_INLINE __m256i ordered_bits_of(__m256 x) {
  __m256i const bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_setzero_ps()));  // -0 becomes +0
  __m256i const flip = _mm256_or_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(int(0x80000000u)));
  return _mm256_and_si256(_mm256_xor_si256(bits, flip), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q)));
}

/// Counts the keys of x that agree with `key` in the bits above `shift + bits`, by their `bits` bits from `shift` on.
CELLAR_AVX2_INLINE void count_digits(float const* x, i64 count, std::uint32_t key, int shift, int bits, std::uint32_t (*bins)[2048]) {
  __m256i const known = _mm256_set1_epi32(int(shift + bits >= 32 ? 0u : ~0u << (shift + bits))), wanted = _mm256_set1_epi32(int(key));
  __m256i const digit_mask = _mm256_set1_epi32((1 << bits) - 1);
  for (i64 i = 0; i < count; i += 8) {
    __m256i const keys = ordered_bits_of(load_some(x, i, count, undefined));
    auto same = unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(keys, known), wanted))));
    if (i + 8 > count) same &= (1u << (count - i)) - 1;
    if (same == 0) continue;
    alignas(32) std::uint32_t digits[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(digits), _mm256_and_si256(_mm256_srl_epi32(keys, _mm_cvtsi32_si128(shift)), digit_mask));
    if (same == 255u) {
      CELLAR_UNROLL
      for (int j = 0; j < 8; ++j) ++bins[j % 2][digits[j]];  // two counters, since neighbours are often alike
    } else {
      for (; same != 0; same &= same - 1) ++bins[0][digits[__builtin_ctz(same)]];
    }
  }
}

/// The ids of the `take` largest of x, ascending, ties to the lowest, NaN last: the take-th largest key by three digits of 11, 11 and 10 bits, then one pass
/// that writes.
CELLAR_AVX2 inline void write_highest(float const* x, i64 count, i64 take, logical_block* ids) {
  std::uint32_t key = 0;
  i64 rest = take;  // of the keys that agree with `key` so far
  for (int const shift : {21, 10, 0}) {
    int const bits = shift == 0 ? 10 : 11;
    std::uint32_t bins[2][2048] = {};
    count_digits(x, count, key, shift, bits, bins);
    int digit = (1 << bits) - 1;
    for (i64 n; digit > 0 && (n = i64{bins[0][digit]} + bins[1][digit]) < rest; --digit) rest -= n;
    key |= std::uint32_t(digit) << shift;
  }
  bool const takes_nan = key == 0;
  float const threshold = takes_nan ? -infinity : from_ordered_bits(key);
  i64 equals = rest, written = 0;  // of the elements at the threshold, the first ones
  __m256 const bound = _mm256_set1_ps(threshold);
  for (i64 i = 0; i < count; i += 8) {
    __m256 const v = load_some(x, i, count, undefined);
    __m256 const greater = takes_nan ? _mm256_cmp_ps(v, v, _CMP_ORD_Q) : _mm256_cmp_ps(v, bound, _CMP_GT_OQ);
    __m256 const equal = takes_nan ? _mm256_cmp_ps(v, v, _CMP_UNORD_Q) : _mm256_cmp_ps(v, bound, _CMP_EQ_OQ);
    auto const is_equal = unsigned(_mm256_movemask_ps(equal));
    unsigned chosen = unsigned(_mm256_movemask_ps(greater)) | is_equal;
    if (i + 8 > count) chosen &= (1u << (count - i)) - 1;
    for (; chosen != 0; chosen &= chosen - 1) {
      int const lane = __builtin_ctz(chosen);
      if (is_equal >> lane & 1u && equals-- <= 0) continue;
      ids[written++] = logical_block(i + lane);
    }
  }
}

/// Sixteen entries, which lie in two registers, by eight indices' low four bits.
CELLAR_AVX2_INLINE __m256 look_up(float const* entries, __m256i index) {
  __m256 const low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(entries), index), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(entries + 8), index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

CELLAR_AVX2 inline void nibble_values(std::byte const* codes, i64 count, float const* table, float* to) {
  i64 i = 0;
  for (; i + 16 <= count; i += 16) {
    __m128i const bytes = _mm_loadl_epi64(reinterpret_cast<__m128i const*>(codes + i / 2));
    __m128i const all = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));  // only the low four bits of each are looked at
    _mm256_storeu_ps(to + i, look_up(table, _mm256_cvtepu8_epi32(all)));
    _mm256_storeu_ps(to + i + 8, look_up(table, _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))));
  }
  for (; i < count; ++i) to[i] = table[unsigned(codes[i / 2]) >> (4 * (i % 2)) & 15u];
}

/// Eight lanes' sums of entries of 16-entry tables of Group queries, times the lanes' scales.
template <int Group>
CELLAR_AVX2_INLINE void score_nibbles_of(float const* table, std::byte const* codes, int bytes, i64 code_stride, float const* scales, float* out,
                                         i64 out_stride) {
  __m256 s[Group];
  CELLAR_UNROLL
  for (auto& x : s) x = _mm256_setzero_ps();
  for (int byte = 0; byte < bytes; ++byte) {
    __m256i const index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(codes + byte * code_stride)));
    float const* const entries = table + i64(byte) * 32 * Group;
    CELLAR_UNROLL
    for (int g = 0; g < Group; ++g) s[g] = _mm256_add_ps(s[g], look_up(entries + 16 * g, index));
    __m256i const next = _mm256_srli_epi32(index, 4);
    CELLAR_UNROLL
    for (int g = 0; g < Group; ++g) s[g] = _mm256_add_ps(s[g], look_up(entries + 16 * (Group + g), next));
  }
  __m256 const scale = _mm256_loadu_ps(scales);
  CELLAR_UNROLL
  for (int g = 0; g < Group; ++g) _mm256_storeu_ps(out + g * out_stride, _mm256_mul_ps(scale, s[g]));
}

/// The same of 256 entries a code, which lie in memory.
template <int Group>
CELLAR_AVX2_INLINE void score_codes_of(float const* table, std::byte const* codes, int bytes, i64 code_stride, float const* scales, float* out,
                                       i64 out_stride) {
  __m128 s[8];
  CELLAR_UNROLL
  for (auto& x : s) x = _mm_setzero_ps();
  for (int byte = 0; byte < bytes; ++byte) {
    std::uint64_t eight;
    __builtin_memcpy(&eight, codes + byte * code_stride, 8);
    float const* const entries = table + i64(byte) * 256 * Group;
    CELLAR_UNROLL
    for (int j = 0; j < 8; ++j) s[j] = _mm_add_ps(s[j], load_entry<Group>(entries + (eight >> (8 * j) & 255u) * Group));
  }
  _MM_TRANSPOSE4_PS(s[0], s[1], s[2], s[3]);  // (lane, query) to (query, lane)
  _MM_TRANSPOSE4_PS(s[4], s[5], s[6], s[7]);
  __m256 const scale = _mm256_loadu_ps(scales);
  CELLAR_UNROLL
  for (int g = 0; g < Group; ++g) _mm256_storeu_ps(out + g * out_stride, _mm256_mul_ps(scale, _mm256_set_m128(s[4 + g], s[g])));
}

/// Lanes from `lane` on, one by one: in the order of the vectors.
inline void score_codes_after(int lane, float const* table, int group, int points, std::byte const* codes, int bytes, i64 code_stride, float const* scales,
                              int lanes, float* out, i64 out_stride) {
  for (; lane < lanes; ++lane)
    for (int g = 0; g < group; ++g) {
      float s = 0;
      for (int byte = 0; byte < bytes; ++byte) {
        auto const code = int(codes[byte * code_stride + lane]);
        if (points == 256) {
          s += table[(byte * 256 + code) * group + g];
        } else {
          s += table[(2 * byte * group + g) * 16 + (code & 15)];
          s += table[((2 * byte + 1) * group + g) * 16 + (code >> 4)];
        }
      }
      out[g * out_stride + lane] = s * scales[lane];
    }
}

template <int Group>
CELLAR_AVX2_INLINE void score_eight(float const* table, int points, std::byte const* codes, int bytes, i64 code_stride, float const* scales, float* out,
                                    i64 out_stride) {
  if (points == 256)
    score_codes_of<Group>(table, codes, bytes, code_stride, scales, out, out_stride);
  else
    score_nibbles_of<Group>(table, codes, bytes, code_stride, scales, out, out_stride);
}

/// Requires points of 16 or 256, a group of 1 to 4.
CELLAR_AVX2 inline void score_codes(float const* table, int group, int points, std::byte const* codes, int bytes, i64 code_stride, float const* scales,
                                    int lanes, float* out, i64 out_stride) {
  int lane = 0;
  for (; lane + 8 <= lanes; lane += 8) {
    if (group == 4) score_eight<4>(table, points, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 3) score_eight<3>(table, points, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 2) score_eight<2>(table, points, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 1) score_eight<1>(table, points, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
  }
  score_codes_after(lane, table, group, points, codes, bytes, code_stride, scales, lanes, out, out_stride);
}

#undef CELLAR_AVX2
#undef CELLAR_AVX2_INLINE
#undef CELLAR_UNROLL

template <class T>
inline constexpr row_kernels<T> kernels_of_rows{dot_rows<T>, add_weighted_rows<T>, score_lanes<T>, widen<T>};
template <class T>
inline constexpr scalar_kernels<T> kernels_of_scalars{narrow<T>, are_within<T>};
inline constexpr vector_kernels kernels{.f32 = kernels_of_rows<float>,
                                        .half = kernels_of_rows<f16>,
                                        .brain = kernels_of_rows<bf16>,
                                        .bytes = kernels_of_rows<std::int8_t>,
                                        .fp8 = kernels_of_rows<e4m3>,
                                        .f32_scalars = kernels_of_scalars<float>,
                                        .half_scalars = kernels_of_scalars<f16>,
                                        .brain_scalars = kernels_of_scalars<bf16>,
                                        .multiply = multiply,
                                        .exponentials = exponentials,
                                        .largest = largest,
                                        .largest_magnitude = largest_magnitude,
                                        .quantize_bytes = quantize_bytes,
                                        .quantize_fp8 = quantize_fp8,
                                        .sum_of_exponentials = sum_of_exponentials,
                                        .raise = raise,
                                        .hadamard = hadamard,
                                        .nearest_points = nearest_points,
                                        .grid_points = grid_points,
                                        .nibble_values = nibble_values,
                                        .score_codes = score_codes,
                                        .turn = turn,
                                        .write_highest = write_highest};

}  // namespace cellar::host::avx2
#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
#endif
