#pragma once
#include "cellar/host/vector_avx2.hpp"

#ifdef CELLAR_X86
#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // as vector_avx2.hpp
#endif

/// Inner loops in AVX-512 (F, BW, VL: what its processors but the first have), where they pay; the rest is AVX2's.
namespace cellar::inline CELLAR_ABI::host::avx512 {

#define CELLAR_AVX512 [[gnu::target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")]]
#define CELLAR_AVX512_INLINE [[gnu::target("avx512f,avx512bw,avx512vl,avx2,fma,f16c"), gnu::always_inline]] inline
#ifdef __clang__
#define CELLAR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CELLAR_UNROLL _Pragma("GCC unroll 16")
#endif

/// Sixteen lanes' sums of 16-entry tables of Group queries, times the lanes' scales: a table lies in one register, which codes permute.
template <int Group>
CELLAR_AVX512_INLINE void score_nibbles_of(float const* table, std::byte const* codes, int bytes, i64 code_stride, float const* scales, float* out,
                                           i64 out_stride) {
  constexpr __mmask16 all = 0xffff;  // masked forms: g++ 12 takes what the others leave undefined for a mistake (GCC bug 105593)
  __m512 s[Group];
  CELLAR_UNROLL
  for (auto& x : s) x = _mm512_setzero_ps();
  for (int byte = 0; byte < bytes; ++byte) {
    __m512i const index = _mm512_maskz_cvtepu8_epi32(all, _mm_loadu_si128(reinterpret_cast<__m128i const*>(codes + byte * code_stride)));
    __m512i const next = _mm512_maskz_srli_epi32(all, index, 4);
    float const* const entries = table + i64(byte) * 32 * Group;
    CELLAR_UNROLL
    for (int g = 0; g < Group; ++g) s[g] = _mm512_add_ps(s[g], _mm512_maskz_permutexvar_ps(all, index, _mm512_loadu_ps(entries + 16 * g)));
    CELLAR_UNROLL
    for (int g = 0; g < Group; ++g) s[g] = _mm512_add_ps(s[g], _mm512_maskz_permutexvar_ps(all, next, _mm512_loadu_ps(entries + 16 * (Group + g))));
  }
  __m512 const scale = _mm512_loadu_ps(scales);
  CELLAR_UNROLL
  for (int g = 0; g < Group; ++g) _mm512_storeu_ps(out + g * out_stride, _mm512_mul_ps(scale, s[g]));
}

/// Requires points of 16 or 256, a group of 1 to 4.
CELLAR_AVX512 inline void score_codes(float const* table, int group, int points, std::byte const* codes, int bytes, i64 code_stride, float const* scales,
                                      int lanes, float* out, i64 out_stride) {
  if (points == 256) return avx2::score_codes(table, group, points, codes, bytes, code_stride, scales, lanes, out, out_stride);
  int lane = 0;
  for (; lane + 16 <= lanes; lane += 16) {
    if (group == 4) score_nibbles_of<4>(table, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 3) score_nibbles_of<3>(table, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 2) score_nibbles_of<2>(table, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
    if (group == 1) score_nibbles_of<1>(table, codes + lane, bytes, code_stride, scales + lane, out + lane, out_stride);
  }
  avx2::score_codes(table, group, points, codes + lane, bytes, code_stride, scales + lane, lanes - lane, out + lane, out_stride);
}

#undef CELLAR_AVX512
#undef CELLAR_AVX512_INLINE
#undef CELLAR_UNROLL

inline constexpr vector_kernels kernels = [] {
  vector_kernels all = avx2::kernels;
  all.score_codes = score_codes;
  return all;
}();

}  // namespace cellar::host::avx512
#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
#endif
