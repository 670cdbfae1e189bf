#pragma once
#include <stdexcept>
#include <string>
#include <system_error>

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

/// What was asked for is right, but there is no room: free a sequence, or make the cache larger. A scheduler tells it from mistakes by its type.
struct capacity_error : precondition_error {
  using precondition_error::precondition_error;
};

/// A transfer that failed: a system call, or bytes that are not what was written. Nothing of the caller's has changed, unless it is said there.
struct io_error : std::runtime_error {
  int code;  ///< errno, or 0 where no system call failed.

  io_error(int error, std::string const& operation, std::string const& object)
      : std::runtime_error(operation + " failed on " + object + (error != 0 ? ": " + std::generic_category().message(error) : std::string())), code(error) {}
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

/// Raises precondition_error, or an Error made from it, unless `condition` holds.
///
/// Effects  none if it holds; the message is built only if it does not
template <class Error = precondition_error>
inline void expects(bool condition, char const* message, char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!condition) [[unlikely]]
    detail::raise(Error(std::string(message) + " (" + file + ":" + std::to_string(line) + ")"));
}

}  // namespace cellar
