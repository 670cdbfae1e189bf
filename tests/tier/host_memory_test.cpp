#include "cellar/tier/host_memory.hpp"

#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <utility>

#include "catch.hpp"
#include "cellar/tier/interleaved_memory.hpp"
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

TEST_CASE("a tier gives back what was written") {
  check_laws<tier::host_memory>();
  check_laws<tier::interleaved_memory>();
  tier::interleaved_memory one(1, 5000), other(2, 9000);
  std::memset(other.data(1), 3, 9000);
  one = std::move(other);
  CHECK(one.bytes() == 9000);
  CHECK(one.data(1)[8999] == std::byte{3});
}

#ifdef MPOL_F_MEMS_ALLOWED
TEST_CASE("pages of interleaved memory are asked to lie on all nodes, and no longer when it is gone") {
  i64 const bytes = (i64{1} << 21) + 100;
  int policy = -1;
  auto const policy_at = [&](std::byte const* at) { return ::syscall(SYS_get_mempolicy, &policy, nullptr, 0ul, at, MPOL_F_ADDR) == 0 ? policy : -1; };
  tier::host_memory const plain(1, bytes);
  if (policy_at(plain.data(0)) != MPOL_DEFAULT) {
    skip("no mempolicy here, or one of the process");
    return;
  }
  tier::interleaved_memory const far(2, bytes);
  for (int layer = 0; layer < 2; ++layer) {
    CHECK(policy_at(far.data(layer)) == MPOL_INTERLEAVE);
    CHECK(policy_at(far.data(layer) + bytes - 1) == MPOL_INTERLEAVE);
  }
}

TEST_CASE("pages of interleaved memory lie on all nodes, by whichever thread they are touched") {  // H31
  unsigned long nodes[16] = {};
  int count = 0;
  if (::syscall(SYS_get_mempolicy, nullptr, nodes, 1024ul, nullptr, MPOL_F_MEMS_ALLOWED) == 0)
    for (unsigned long const word : nodes) count += __builtin_popcountl(word);
  if (count < 2) {
    skip("one node of memory");
    return;
  }
  i64 const bytes = i64{64} << 21;
  tier::interleaved_memory far(1, bytes);
  std::memset(far.data(0), 1, std::size_t(bytes));
  std::map<int, i64> pages;
  for (i64 at = 0; at < bytes; at += i64{1} << 21) {
    int node = -1;
    REQUIRE(::syscall(SYS_get_mempolicy, &node, nullptr, 0ul, far.data(0) + at, MPOL_F_NODE | MPOL_F_ADDR) == 0);
    ++pages[node];
  }
  REQUIRE(int(pages.size()) == count);
  for (auto const& [node, n] : pages) CHECK(n >= 64 / count / 2);
}
#endif

#if !CELLAR_UNDER_ADDRESS_SANITIZER && !CELLAR_UNDER_THREAD_SANITIZER  // which end the program instead
TEST_CASE("a tier that cannot be had throws") { CHECK_THROWS_AS(tier::host_memory(2, std::numeric_limits<i64>::max() / 2), std::bad_alloc); }
#endif
