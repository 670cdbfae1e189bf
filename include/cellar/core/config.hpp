#pragma once
/// Version, and the one place that knows which compiler reads the headers.
#define CELLAR_VERSION_MAJOR 0
#define CELLAR_VERSION_MINOR 1
#define CELLAR_VERSION_PATCH 0

#ifdef __CUDACC__
#define CELLAR_HD __host__ __device__
#else
#define CELLAR_HD  ///< Marks what runs on the host and in a kernel; nothing for a host compiler.
#endif
