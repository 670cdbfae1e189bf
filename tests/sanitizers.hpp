#pragma once

/// Which sanitizer compiles this: g++ names them one way, clang another. 0 or 1.
#ifdef __has_feature
#define CELLAR_HAS_FEATURE(x) __has_feature(x)
#else
#define CELLAR_HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || CELLAR_HAS_FEATURE(address_sanitizer)
#define CELLAR_UNDER_ADDRESS_SANITIZER 1
#else
#define CELLAR_UNDER_ADDRESS_SANITIZER 0
#endif
#if defined(__SANITIZE_THREAD__) || CELLAR_HAS_FEATURE(thread_sanitizer)
#define CELLAR_UNDER_THREAD_SANITIZER 1
#else
#define CELLAR_UNDER_THREAD_SANITIZER 0
#endif

/// Each access costs a few times what it costs else; under the thread sanitizer a hundred times.
inline constexpr bool is_sanitized = CELLAR_UNDER_ADDRESS_SANITIZER || CELLAR_UNDER_THREAD_SANITIZER || CELLAR_HAS_FEATURE(memory_sanitizer);
