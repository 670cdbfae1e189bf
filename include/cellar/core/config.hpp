#pragma once
/// Version, and the one place that knows which compiler reads the headers.
#define CELLAR_VERSION_MAJOR 0
#define CELLAR_VERSION_MINOR 1
#define CELLAR_VERSION_PATCH 0

/// The inline namespace of everything: users do not write it. Translation units of another version, or of flags that change code, get symbols of their
/// own, so that they may meet in one program.
#ifdef __cpp_exceptions
#define CELLAR_ABI v0_1
#else
#define CELLAR_ABI v0_1_without_exceptions
#endif

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "cellar: NaN and infinity have meaning here; compile without -ffast-math, or add -fno-fast-math"
#endif
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ < 13
#error "cellar: this nvcc is not supported; use nvcc 13 or newer"
#endif
#if defined(_MSC_VER) || defined(__HIP__)
#error "cellar: this compiler is not supported yet; use g++ 12, clang 14, or newer"
#endif

#ifdef __CUDACC__
#define CELLAR_HD __host__ __device__
#else
#define CELLAR_HD  ///< Marks what runs on the host and in a kernel; nothing for a host compiler.
#endif
/// Before a template of CELLAR_HD that calls what may be of the host alone: a callable it is given, or a policy that learns by a library.
#ifdef __CUDACC__
#define CELLAR_CALLS_HOST _Pragma("nv_exec_check_disable")
#else
#define CELLAR_CALLS_HOST
#endif
