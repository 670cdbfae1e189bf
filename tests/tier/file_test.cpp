#include "cellar/tier/file.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "catch.hpp"
#include "cellar/core/checksum.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

std::string scratch_path() {
  static int n = 0;
  return (std::filesystem::temp_directory_path() / ("cellar_file_test_" + std::to_string(::getpid()) + "_" + std::to_string(n++))).string();
}

block_geometry const geometry{3, {1, 1, 1, 1}, {32, 16, 2, 4}, {false, true, false, true}};

std::vector<std::byte> run_of(i64 bytes, std::uint64_t seed) {
  random_numbers r(seed);
  std::vector<std::byte> x(static_cast<std::size_t>(bytes));
  for (auto& b : x) b = std::byte(r.below(256));
  return x;
}

}  // namespace

TEST_CASE("checksums are CRC-32C") {
  std::string const digits = "123456789";
  auto const bytes = reinterpret_cast<std::byte const*>(digits.data());
  CHECK(checksum({bytes, 9}) == 0xe3069283u);  // the check value of its definition
  CHECK(checksum({bytes, 0}) == 0);
  CHECK(checksum({bytes + 4, 5}, checksum({bytes, 4})) == 0xe3069283u);
}

TEST_CASE("a file gives back what was stored, run by run, by several threads") {
  i64 const blocks = 50;
  auto const path = scratch_path();
  {
    tier::file far(2, geometry, blocks, {.path = path});
    auto const each = [&](auto const& f) {
      for (int layer = 0; layer < 2; ++layer)
        for (i64 b = 0; b < blocks; ++b)
          for (int head = 0; head <= 3; ++head) f(layer, b, head, head < 3 ? geometry.slice_bytes() : geometry.shared_bytes());
    };
    auto const seed = [&](int layer, i64 b, int head) { return std::uint64_t((layer * blocks + b) * 4 + head); };
    std::vector<std::thread> threads;
    for (int part = 0; part < 4; ++part)
      threads.emplace_back([&, part] {
        each([&](int layer, i64 b, int head, i64 bytes) {
          if (b % 4 != part) return;
          auto const x = run_of(bytes, seed(layer, b, head));
          far.store(layer, physical_block(b), head, {x.data(), bytes});
        });
      });
    for (auto& t : threads) t.join();
    each([&](int layer, i64 b, int head, i64 bytes) {
      std::vector<std::byte> x(static_cast<std::size_t>(bytes));
      far.fetch(layer, physical_block(b), head, {x.data(), bytes});
      REQUIRE(x == run_of(bytes, seed(layer, b, head)));
    });
    CHECK(std::filesystem::exists(path));
  }
  CHECK(!std::filesystem::exists(path));  // removed with the tier
}

TEST_CASE("damage to any byte of a run is noticed, and so is a run that was never stored") {  // H26
  auto const path = scratch_path();
  block_geometry const one{1, {1, 1, 1, 1}, {5, 4, 2, 1}};
  tier::file far(1, one, 3, {.path = path});
  std::vector<std::byte> x(12);
  CHECK_THROWS_WITH(far.fetch(0, physical_block(1), 0, {x.data(), 12}), contains("checksum") && contains(path));
  auto const stored = run_of(12, 1);
  far.store(0, physical_block(1), 0, {stored.data(), 12});
  for (int at = 64 + 16; at < 64 + 32; ++at) {  // header, then block 0: a run of 12 bytes and its checksum
    auto const flip = [&] {
      std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
      f.seekg(at);
      char const c = char(f.get() ^ 0x40);
      f.seekp(at);
      f.put(c);
    };
    flip();
    x.assign(12, std::byte{7});
    CHECK_THROWS_AS(far.fetch(0, physical_block(1), 0, {x.data(), 12}), io_error);
    CHECK(x == std::vector<std::byte>(12, std::byte{7}));  // nothing of it was given out
    flip();
    far.fetch(0, physical_block(1), 0, {x.data(), 12});
    CHECK(x == stored);
  }
}

TEST_CASE("a file says which call failed, on what, and why") {
  CHECK_THROWS_WITH(tier::file(1, geometry, 1, {.path = "/no/such/folder/file"}), contains("open") && contains("/no/such/folder/file") && contains("No such"));
  auto const path = scratch_path();
  tier::file far(1, geometry, 4, {.path = path, .keeps_file = true});
  std::filesystem::resize_file(path, 70);
  std::vector<std::byte> x(std::size_t(geometry.slice_bytes()));
  CHECK_THROWS_WITH(far.fetch(0, physical_block(0), 0, {x.data(), i64(x.size())}), contains("pread") && contains("ends before"));
  CHECK(std::filesystem::exists(path));
  std::filesystem::remove(path);
  tier::posix_file full("/dev/full", true);
  CHECK_THROWS_WITH(full.write(0, {x.data(), 4}), contains("pwrite") && contains("No space left"));
  try {
    full.write(0, {x.data(), 4});
  } catch (io_error const& e) {
    CHECK(e.code == ENOSPC);
  }
}

TEST_CASE("offsets in a file pass 2^32") {
  auto const path = scratch_path();
  block_geometry const g{8, {16, 16, 16, 16}, {256, 256, 0, 0}};
  i64 const blocks = i64{1} << 18;  // 2^34 bytes, of which few are written
  tier::file far(2, g, blocks, {.path = path});
  auto const first = run_of(g.slice_bytes(), 1), last = run_of(g.slice_bytes(), 2);
  far.store(0, physical_block(0), 0, {first.data(), g.slice_bytes()});
  far.store(1, physical_block(blocks - 1), 7, {last.data(), g.slice_bytes()});
  std::vector<std::byte> x(std::size_t(g.slice_bytes()));
  far.fetch(0, physical_block(0), 0, {x.data(), g.slice_bytes()});
  CHECK(x == first);
  far.fetch(1, physical_block(blocks - 1), 7, {x.data(), g.slice_bytes()});
  CHECK(x == last);
}
