#pragma once
#include "cellar/core/error.hpp"
#include "cellar/host/vector_avx512.hpp"

namespace cellar::inline CELLAR_ABI::host {

/// Instruction sets that the inner loops are written for, in rising order.
enum class vector_level {
  portable,  ///< The generic bodies, as the compiler's flags make them.
  avx2,      ///< AVX2, FMA, F16C.
  avx512,    ///< AVX-512 F, BW, VL.
};
inline constexpr vector_level vector_levels[] = {vector_level::portable, vector_level::avx2, vector_level::avx512};

/// Whether this processor runs that level.
inline bool is_supported(vector_level level) {
#ifdef CELLAR_X86
  __builtin_cpu_init();
  bool const has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // processors with both have F16C
  if (level == vector_level::avx2) return has_avx2;
  if (level == vector_level::avx512)
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return level == vector_level::portable;
}

/// The highest level that this processor runs.
inline vector_level best_vector_level() {
  vector_level best = vector_level::portable;
  for (vector_level const level : vector_levels)
    if (is_supported(level)) best = level;
  return best;
}

/// A level's inner loops; null for the generic bodies.
///
/// Errors  precondition_error for a level that this processor does not run
inline vector_kernels const* kernels_of(vector_level level) {
  expects(is_supported(level), "host::vector_level: this processor does not have the level's instructions");
#ifdef CELLAR_X86
  if (level == vector_level::avx2) return &avx2::kernels;
  if (level == vector_level::avx512) return &avx512::kernels;
#endif
  return nullptr;
}

}  // namespace cellar::host
