#pragma once
#include <string>
#include <vector>

/// Catch2, version 2 or 3, the same to a test: TEST_CASE and friends, Approx, the matcher contains(), and skip().
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#define CELLAR_CATCH2_VERSION 3
using Catch::Approx;
inline auto contains(std::string const& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
#include <catch2/catch.hpp>
#define CELLAR_CATCH2_VERSION 2
inline auto contains(std::string const& part) { return Catch::Contains(part); }
#endif

/// Reasons of the tests that could not run. main.cpp prints them at the end of a run in which nothing failed, as CTest's mark for a skipped test:
/// so a failure beside a skip is never taken for a skip.
inline std::vector<std::string>& skip_reasons() {
  static std::vector<std::string> reasons;
  return reasons;
}

/// Says that this test cannot run here, and why. Version 2 of Catch2 cannot leave a test from a function: return after the call.
inline void skip(std::string const& reason) {
  skip_reasons().push_back(reason);
#if CELLAR_CATCH2_VERSION >= 3
  SKIP(reason);
#endif
}
