#pragma once
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cellar/core/config.hpp"

#ifndef __cpp_exceptions
namespace cellar {
/// Declared here, defined by the integrator: receives every error of a build without exceptions, and must not return.
[[noreturn]] void on_error(char const* message);
}  // namespace cellar
#endif

namespace cellar::inline CELLAR_ABI {

/// A caller's mistake, found before anything has changed. The message names the mistake and the remedy.
struct precondition_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

namespace detail {

/// The one place where an error leaves the library.
template <class Error>
[[noreturn]] inline void raise(Error const& error) {
#ifdef __cpp_exceptions
  throw error;
#else
  on_error(error.what());
#endif
}

}  // namespace detail

/// Raises precondition_error unless `condition` holds.
///
/// Effects  none if it holds; the message is built only if it does not
inline void expects(bool condition, char const* message, char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!condition) [[unlikely]]
    detail::raise(precondition_error(std::string(message) + " (" + file + ":" + std::to_string(line) + ")"));
}

}  // namespace cellar
