#include "cellar/tier/host_memory.hpp"

#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "catch.hpp"
#include "sanitizers.hpp"

using namespace cellar;

namespace {

/// The laws of tier/concept.hpp, for tiers that can be read in place.
template <block_tier Tier>
void check_laws() {
  static_assert(Tier::is_directly_readable);
  i64 const bytes = 10007;
  Tier tier(3, bytes);
  CHECK(tier.bytes() == bytes);
  for (int layer : {2, 0, 1}) std::memset(tier.data(layer), layer + 1, std::size_t(bytes));  // no two layers overlap
  tier.data(1)[bytes - 1] = std::byte{77};
  Tier const moved = std::move(tier);
  auto const is = [&](int layer, i64 at, int value) { return moved.data(layer)[at] == std::byte(value); };
  for (int layer = 0; layer < 3; ++layer)
    for (i64 i = 0; i < bytes - 1; ++i) REQUIRE(is(layer, i, layer + 1));
  CHECK(is(1, bytes - 1, 77));
  CHECK(Tier(0, 5).bytes() == 5);
  CHECK(Tier(2, 0).bytes() == 0);
}

}  // namespace

TEST_CASE("a tier gives back what was written") { check_laws<tier::host_memory>(); }

#if !CELLAR_UNDER_ADDRESS_SANITIZER && !CELLAR_UNDER_THREAD_SANITIZER  // which end the program instead
TEST_CASE("a tier that cannot be had throws") { CHECK_THROWS_AS(tier::host_memory(2, std::numeric_limits<i64>::max() / 2), std::bad_alloc); }
#endif
