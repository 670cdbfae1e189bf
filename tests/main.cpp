// The one main of every test program: that of Catch2 itself (here for version 2; version 3 links its own), and the line that marks a skipped test.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#endif
#include "catch.hpp"

#include <iostream>

namespace {

#if CELLAR_CATCH2_VERSION >= 3
using listener_base = Catch::EventListenerBase;
#else
using listener_base = Catch::TestEventListenerBase;
#endif

struct skip_listener : listener_base {
  using listener_base::listener_base;
  void testRunEnded(Catch::TestRunStats const& stats) override {
    if (stats.totals.testCases.failed == 0 && stats.totals.assertions.failed == 0)
      for (std::string const& reason : skip_reasons()) std::cout << "SKIPPED: " << reason << std::endl;
    listener_base::testRunEnded(stats);
  }
};

}  // namespace

CATCH_REGISTER_LISTENER(skip_listener)
