// The team's laws, on the serial team and on emulated blocks; and that the
// emulator catches planted defects.
#include "emulator/emulator.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "catch.hpp"

using std::uint32_t;

namespace {

constexpr std::int64_t plenty = 16 * 1024;  // bytes of shared memory, more than any body here takes

/// f(options) for several sizes, orders and seeds.
template <class F>
void for_teams(F const& f) {
  for (int const threads : {32, 64, 96, 128, 256})
    for (auto const& order : {emulator::forward, emulator::backward, emulator::shuffled(1), emulator::shuffled(2), emulator::shuffled(3)}) {
      INFO("threads " << threads << ", " << emulator::name_of(order));
      f(emulator::launch_options{.threads = threads, .shared_bytes = plenty, .order = order});
    }
}

/// What a team promises, by every member.
template <class Team>
void check_laws(Team& t, float const* input, uint32_t* counter, std::vector<int>& failures) {
  auto const require = [&](bool condition, int law) {
    if (!condition) __atomic_fetch_add(&failures[std::size_t(law)], 1, __ATOMIC_RELAXED);
  };
  unsigned const n = t.size(), r = t.rank();
  require(r < n, 0);
  require(t.reduce(float(r + 1), cellar::plus{}) == float(n) * float(n + 1) / 2, 1);
  require(t.reduce(float(r % 7), cellar::maximum{}) == float(n > 6 ? 6 : n - 1), 1);
  float total = -1;
  require(t.scan(float(r + 1), total) == float(r) * float(r + 1) / 2, 2);
  require(total == float(n) * float(n + 1) / 2, 2);
  t.atomic_add(counter, 3u);
  auto* const values = cellar::shared_array<float>(t, n + 5);
  values[r] = float(r);
  t.sync();
  require(*counter == 3 * n, 3);
  require(values[(r * 5 + 3) % n] == float((r * 5 + 3) % n), 4);
  auto w = t.warp();
  constexpr unsigned width = decltype(w)::width;
  require(w.lane() == r % width && w.index() == r / width && w.count() == n / width, 5);
  require(w.shuffle(float(r), (w.lane() + 1) % width) == float(w.index() * width + (w.lane() + 1) % width), 6);
  require(w.ballot(w.lane() % 3 == 0) == (width == 1 ? 1u : 0x49249249u), 7);
  require(w.reduce(1.0f, cellar::plus{}) == float(width), 8);
  if constexpr (width == 32) require(w.reduce(float(w.lane()), cellar::maximum{}, cellar::lanes<8>) == float(w.lane() / 8 * 8 + 7), 8);
  auto* const copied = cellar::shared_array<float>(t, 8 * n);
  for (int half = 0; half < 2; ++half) {
    t.copy_async(copied + half * 4 * n + 4 * r, input + half * 4 * n + 4 * r);
    t.commit_async();
  }
  t.wait_async(cellar::lanes<1>);  // the first half is mine to read
  require(copied[4 * r + 3] == input[4 * r + 3], 9);
  t.wait_async(cellar::lanes<0>);
  t.sync();  // now all of it is everybody's
  unsigned const other = (r * 7 + 1) % n;
  for (unsigned i = 0; i < 4; ++i) require(copied[4 * n + 4 * other + i] == input[4 * n + 4 * other + i], 10);
  t.sync();
}

struct aligned_free {
  void operator()(void* p) const { std::free(p); }
};
using aligned_floats = std::unique_ptr<float[], aligned_free>;
aligned_floats counting(std::size_t n) {
  aligned_floats x(static_cast<float*>(std::aligned_alloc(16, n * sizeof(float))));
  for (std::size_t i = 0; i < n; ++i) x[i] = float(i);
  return x;
}

enum class ending { right, wrong, sanitizer };

constexpr char const* seed_variable = "CELLAR_EMULATOR_SEED";

/// How a hidden test of this program ends in a process of its own: a crash or a
/// sanitizer's report ends only that. (Not by fork alone: after it the thread
/// sanitizer stops looking, as the fibres are threads to it.)
ending ending_of(std::string const& test, int seed) {
  auto const seed_text = std::to_string(seed);
  std::fflush(nullptr);
  pid_t const child = fork();
  if (child == 0) {
    int const nowhere = open("/dev/null", O_WRONLY);  // the report is expected
    dup2(nowhere, 1);
    dup2(nowhere, 2);
    setenv("TSAN_OPTIONS", "atexit_sleep_ms=0:exitcode=99", 1);
    setenv("ASAN_OPTIONS", "exitcode=99", 1);
    setenv(seed_variable, seed_text.c_str(), 1);
    execl("/proc/self/exe", "emulator", test.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) != 127);
  return WEXITSTATUS(status) == 0 ? ending::right : WEXITSTATUS(status) == 99 ? ending::sanitizer : ending::wrong;
}

enum class planted { nothing, missing_barrier, missing_second_barrier, warp_barrier_for_block, lost_update, missing_wait, weak_wait, no_barrier_after_wait };

/// A body with every hazard in it: counts with atomics, turns an array round
/// through shared memory, sums staged copies.
template <planted Defect>
bool right_result(emulator::launch_options options) {
  int const n = options.threads, tiles = 5;
  auto const input = counting(std::size_t(4 * n * tiles));
  std::vector<float> out(std::size_t(n), 0.f);
  uint32_t count = 0;
  emulator::launch(options, [&](emulator::team& t) {
    unsigned const r = t.rank(), size = t.size();
    auto* const values = cellar::shared_array<float>(t, size);
    auto* const tile = cellar::shared_array<float>(t, 2 * 4 * size);
    auto* const sum = cellar::shared_array<uint32_t>(t, 1);
    if (r == 0) *sum = 0;
    values[r] = float(r);
    if constexpr (Defect == planted::warp_barrier_for_block)
      t.warp().sync();
    else if constexpr (Defect != planted::missing_barrier)
      t.sync();
    float const opposite = values[size - 1 - r];
    if constexpr (Defect == planted::lost_update)
      *sum = *sum + 1;
    else
      t.atomic_add(sum, 1u);
    if constexpr (Defect != planted::missing_second_barrier) t.sync();
    values[(r + 1) % size] = opposite;  // the array is used again
    t.sync();
    float total = values[r];
    auto const stage = [&](int i) {
      if (i < tiles) t.copy_async(tile + (i % 2) * 4 * int(size) + 4 * r, input.get() + std::size_t(i) * 4 * size + 4 * r);
      t.commit_async();
    };
    stage(0);
    for (int i = 0; i < tiles; ++i) {
      stage(i + 1);
      if constexpr (Defect == planted::weak_wait)
        t.wait_async(cellar::lanes<2>);
      else if constexpr (Defect != planted::missing_wait)
        t.wait_async(cellar::lanes<1>);
      if constexpr (Defect != planted::no_barrier_after_wait) t.sync();
      total += tile[(i % 2) * 4 * int(size) + 4 * ((r * 5 + 2) % size)];
      t.sync();
    }
    t.wait_async(cellar::lanes<0>);
    out[r] = total;
    if (r == 0) count = *sum;
  });
  if (count != uint32_t(n)) return false;
  for (int r = 0; r < n; ++r) {
    float expected = float(n - 1 - (r + n - 1) % n);
    for (int i = 0; i < tiles; ++i) expected += float(i * 4 * n + 4 * ((r * 5 + 2) % n));
    if (out[std::size_t(r)] != expected) return false;
  }
  return true;
}

/// In how many of `seeds` shuffled orders a planted defect ends so.
int count(ending how, std::string const& defect, int seeds) {
  int n = 0;
  for (int seed = 1; seed <= seeds; ++seed) n += ending_of("planted: " + defect, seed) == how;
  return n;
}
template <planted Defect>
void run_planted() {
  char const* const seed = std::getenv(seed_variable);
  CHECK(right_result<Defect>({.threads = 128, .shared_bytes = plenty, .order = emulator::shuffled(seed ? std::uint64_t(std::atoi(seed)) : 1)}));
}

template <class Body>
std::string message_of(emulator::launch_options const& options, Body const& body) {
  try {
    emulator::launch(options, body);
  } catch (emulator::defect const& d) {
    return d.what();
  }
  return "nothing was caught";
}

}  // namespace

// Hidden: `ending_of` runs them.
TEST_CASE("planted: nothing", "[.]") { run_planted<planted::nothing>(); }
TEST_CASE("planted: missing_barrier", "[.]") { run_planted<planted::missing_barrier>(); }
TEST_CASE("planted: missing_second_barrier", "[.]") { run_planted<planted::missing_second_barrier>(); }
TEST_CASE("planted: warp_barrier_for_block", "[.]") { run_planted<planted::warp_barrier_for_block>(); }
TEST_CASE("planted: lost_update", "[.]") { run_planted<planted::lost_update>(); }
TEST_CASE("planted: missing_wait", "[.]") { run_planted<planted::missing_wait>(); }
TEST_CASE("planted: weak_wait", "[.]") { run_planted<planted::weak_wait>(); }
TEST_CASE("planted: no_barrier_after_wait", "[.]") { run_planted<planted::no_barrier_after_wait>(); }
TEST_CASE("planted: blocks_share_an_address", "[.]") {
  std::vector<int> x(64);
  emulator::launch({.threads = 64, .blocks = 4}, [&](emulator::team& t) { x[t.rank()] = int(t.block()); });
}
TEST_CASE("planted: shared_overrun", "[.]") {
  emulator::launch({.threads = 64, .shared_bytes = plenty}, [&](emulator::team& t) {
    auto* const x = cellar::shared_array<float>(t, 64);
    cellar::shared_array<float>(t, 64);  // the next array must not swallow it
    x[t.rank() + 1] = 1;
  });
}
TEST_CASE("planted: global_overrun", "[.]") {
  std::vector<float> x(64);
  float* const p = x.data();
  emulator::launch({.threads = 64}, [&](emulator::team& t) { p[t.rank() + 1] = 1; });
}

TEST_CASE("the serial team keeps the laws of a team") {
  std::vector<int> failures(11);
  std::vector<std::byte> scratch(1024);
  auto const input = counting(8);
  cellar::serial_team t(scratch.data(), 1024);
  uint32_t counter = 0;
  check_laws(t, input.get(), &counter, failures);
  CHECK(failures == std::vector<int>(11));
}

TEST_CASE("emulated blocks keep the laws of a team, of every size, in every order") {
  for (bool const portable : {false, true})
    for_teams([&](emulator::launch_options o) {
      if (portable && o.threads > 64) return;
      o.portable_switch = portable;
      INFO("portable " << portable);
      std::vector<int> failures(11);
      auto const input = counting(std::size_t(8 * o.threads));
      uint32_t counter = 0;
      emulator::launch(o, [&](emulator::team& t) { check_laws(t, input.get(), &counter, failures); });
      CHECK(failures == std::vector<int>(11));
    });
}

TEST_CASE("every block of a launch runs, with shared memory of its own") {
  std::vector<float> out(5 * 64);
  emulator::launch({.threads = 64, .blocks = 5, .shared_bytes = plenty}, [&](emulator::team& t) {
    auto* const x = cellar::shared_array<float>(t, 64);
    bool const is_fresh = std::isnan(x[t.rank()]);
    t.sync();
    x[t.rank()] = float(t.block());
    t.sync();
    out[t.block() * 64 + t.rank()] = is_fresh ? x[63 - t.rank()] : -1.f;
  });
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == float(i / 64));
}

TEST_CASE("a body without a defect passes") {
  for_teams([](emulator::launch_options const& o) { CHECK(right_result<planted::nothing>(o)); });
  CHECK(count(ending::right, "nothing", 3) == 3);
}

TEST_CASE(
    "missing barriers are caught: by wrong results in shuffled orders, "
    "by TSan in any") {
  bool const races = emulator::has_thread_sanitizer();
  int const seeds = races ? 3 : 10, most = races ? 3 : 9;
  for (auto const* const defect : {"missing_barrier", "missing_second_barrier", "warp_barrier_for_block", "no_barrier_after_wait"}) {
    INFO(defect);
    CHECK(count(races ? ending::sanitizer : ending::wrong, defect, seeds) >= most);
  }
}

TEST_CASE("missing and too weak waits are caught by wrong results in any order") {
  for (auto const* const defect : {"missing_wait", "weak_wait"}) {
    INFO(defect);
    CHECK(count(ending::right, defect, 5) == 0);
  }
}

TEST_CASE("a lost update is caught by TSan") {
  if (!emulator::has_thread_sanitizer()) {
    skip("needs the thread sanitizer");
    return;
  }
  CHECK(count(ending::sanitizer, "lost_update", 3) == 3);
}

TEST_CASE("two blocks that write one address are caught by TSan") {
  if (!emulator::has_thread_sanitizer()) {
    skip("needs the thread sanitizer");
    return;
  }
  CHECK(ending_of("planted: blocks_share_an_address", 1) == ending::sanitizer);
}

TEST_CASE(
    "accesses out of bounds are caught by ASan, in shared and in global "
    "memory") {
  if (!emulator::has_address_sanitizer()) {
    skip("needs the address sanitizer");
    return;
  }
  CHECK(ending_of("planted: shared_overrun", 1) == ending::sanitizer);
  CHECK(ending_of("planted: global_overrun", 1) == ending::sanitizer);
}

TEST_CASE("divergent barriers are caught, with who waits where") {
  auto const two_places = message_of({.threads = 64}, [](emulator::team& t) {
    if (t.rank() < 7)
      t.sync();
    else
      t.sync();
  });
  CHECK_THAT(two_places, contains("divergent barrier") && contains("thread 0 to 6 at team.sync") && contains("thread 7 to 63"));
  auto const early_return = message_of({.threads = 64}, [](emulator::team& t) {
    if (t.rank() == 7) return;
    t.sync();
  });
  CHECK_THAT(early_return, contains("stalled") && contains("thread 7 returned"));
  auto const unequal_trips = message_of({.threads = 64}, [](emulator::team& t) {
    for (int i = t.rank() < 40; i < 3; ++i) t.sync();
  });
  CHECK_THAT(unequal_trips, contains("stalled"));
  auto const warp_in_branch = message_of({.threads = 64}, [](emulator::team& t) {
    if (t.warp().lane() < 5) t.warp().ballot(true);
    t.sync();
  });
  CHECK_THAT(warp_in_branch, contains("warp.ballot") && contains("team.sync"));
}

TEST_CASE("misuse of shared memory and copies is caught") {
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = 100}, [](emulator::team& t) { cellar::shared_array<float>(t, 26); }),
             contains("104 bytes are asked for, 100 were launched"));
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = plenty}, [](emulator::team& t) { cellar::shared_array<float>(t, 4 + t.rank()); }),
             contains("disagree"));
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = plenty},
                        [](emulator::team& t) {
                          if (t.rank() < 3) cellar::shared_array<float>(t, 4);
                        }),
             contains("has 0 of 1"));
  alignas(16) static float source[8] = {};
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = plenty},
                        [](emulator::team& t) {
                          auto* const x = cellar::shared_array<float>(t, 64);
                          t.copy_async(x + 1, source);
                        }),
             contains("not 16-byte aligned"));
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = plenty},
                        [](emulator::team& t) {
                          cellar::shared_array<float>(t, 64);
                          t.copy_async(source, source + 4);
                        }),
             contains("not within a shared array"));
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = plenty},
                        [](emulator::team& t) {
                          auto* const x = cellar::shared_array<float>(t, 4 * 32);
                          t.copy_async(x + 4 * t.rank(), source);
                        }),
             contains("did not wait for"));
}

TEST_CASE("launches that no block can have are refused") {
  for (int const threads : {0, 31, 33, 1056}) CHECK_THAT(message_of({.threads = threads}, [](emulator::team&) {}), contains("multiple of 32"));
  CHECK_THAT(message_of({.threads = 32, .shared_bytes = -1}, [](emulator::team&) {}), contains("must not be negative"));
  CHECK_THAT(message_of({.threads = 32, .blocks = 0}, [](emulator::team&) {}), contains("there must be a block"));
}
