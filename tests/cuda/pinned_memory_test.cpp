// Pinning by pieces, with a system that refuses.
#include "cellar/cuda/pinned_memory.hpp"

#include <cstdint>
#include <map>
#include <set>

#include "catch.hpp"

using namespace cellar;

namespace {

/// What the system has pinned, and which calls it refuses, by number from 0.
struct host_system {
  std::map<std::byte*, i64> pinned;
  std::set<int> refused;
  bool refuses_all = false;
  int calls = 0, mistakes = 0;
  i64 largest = 0;
};
struct fake_pinner {
  host_system* at;

  bool pin(void* data, i64 bytes) {
    auto* const p = static_cast<std::byte*>(data);
    at->largest = std::max(at->largest, bytes);
    at->mistakes += bytes <= 0;
    for (auto const& [q, n] : at->pinned) at->mistakes += p < q + n && q < p + bytes;  // twice
    if (at->refuses_all || at->refused.count(at->calls++)) return false;
    at->pinned[p] = bytes;
    return true;
  }
  void unpin(void* data) { at->mistakes += at->pinned.erase(static_cast<std::byte*>(data)) != 1; }
};
using memory = cuda::pinned_memory<fake_pinner>;

constexpr i64 piece = memory::piece;
/// Never read: only addresses.
std::byte* address(i64 at) { return reinterpret_cast<std::byte*>((std::uintptr_t{1} << 40) + std::uintptr_t(at)); }

i64 total(host_system const& s) {
  i64 sum = 0;
  for (auto const& [p, n] : s.pinned) sum += n;
  return sum;
}

}  // namespace

TEST_CASE("memory is pinned by pieces of 1 GiB, each byte once, and unpinned as it was pinned") {
  for (i64 const bytes : {i64{0}, i64{1}, piece - 1, piece, piece + 1, 700 * piece + 4096}) {
    host_system system;
    {
      memory m(fake_pinner{&system});
      REQUIRE(m.pin(address(0), bytes, false));
      REQUIRE(m.pin(address(bytes), bytes, false));  // the next layer
      CHECK(total(system) == 2 * bytes);
      CHECK(m.bytes() == 2 * bytes);
      CHECK(system.largest <= piece);
      if (bytes > 0) {
        CHECK(system.pinned.begin()->first == address(0));
        CHECK(system.pinned.rbegin()->first + system.pinned.rbegin()->second == address(2 * bytes));
      }
    }
    CHECK(system.pinned.empty());
    CHECK(system.mistakes == 0);
  }
}

TEST_CASE("where a piece is refused that must be pinned, nothing stays pinned, and the same memory can be pinned later") {
  for (int refused = 0; refused < 6; ++refused) {
    host_system system;
    system.refused = {refused};
    memory m(fake_pinner{&system});
    bool const first = m.pin(address(0), 3 * piece, false);
    CHECK(first == (refused >= 3));
    if (first) {
      CHECK(!m.pin(address(3 * piece), 2 * piece + 5, false));
    }
    CHECK(system.pinned.empty());
    CHECK(m.bytes() == 0);
    CHECK(system.calls == refused + 1);  // no more of them
    REQUIRE(m.pin(address(0), 3 * piece, false));
    CHECK(m.bytes() == 3 * piece);
    CHECK(system.mistakes == 0);
  }
}

TEST_CASE("where pinning is optional the other pieces are pinned, or none where the system refuses all") {
  host_system system;
  system.refused = {1, 3};
  {
    memory m(fake_pinner{&system});
    CHECK(!m.pin(address(0), 4 * piece + 7, true));
    CHECK(m.bytes() == 2 * piece + 7);
    CHECK(system.pinned.count(address(piece)) == 0);
    CHECK(system.pinned.count(address(4 * piece)) == 1);
    system.refuses_all = true;
    CHECK(!m.pin(address(8 * piece), 4 * piece, true));
    CHECK(m.bytes() == 2 * piece + 7);  // what was pinned stays so
  }
  CHECK(system.pinned.empty());
  CHECK(system.mistakes == 0);
}

TEST_CASE("pinned memory moves, and is unpinned once") {
  host_system system;
  {
    memory a(fake_pinner{&system});
    REQUIRE(a.pin(address(0), 2 * piece, false));
    memory b(std::move(a));
    CHECK(b.bytes() == 2 * piece);
    CHECK(a.bytes() == 0);  // NOLINT: as it says
    memory c(fake_pinner{&system});
    REQUIRE(c.pin(address(4 * piece), piece, false));
    c = std::move(b);
    CHECK(c.bytes() == 2 * piece);
    CHECK(total(system) == 3 * piece);
  }
  CHECK(system.pinned.empty());
  CHECK(system.mistakes == 0);
}
