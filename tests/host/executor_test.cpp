#include "cellar/host/executor.hpp"

#include <atomic>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "cellar/host/thread_pool.hpp"

using namespace cellar;

namespace {

/// An engine's own threads: new ones for every run, a slice of the items each.
struct engine_threads {
  int count = 3;
  int workers() const { return count; }
  template <class F>
  void run(i64 items, F&& f) {
    std::vector<std::thread> threads;
    for (int worker = 0; worker < count; ++worker)
      threads.emplace_back([&, worker] {
        for (i64 i = worker; i < items; i += count) f(i, worker);
      });
    for (auto& t : threads) t.join();
  }
};
static_assert(host::thread_pool_like<engine_threads>);
struct of_function_pointers {
  int workers();
  void run(std::int64_t, void (*)(std::int64_t, int));
};
static_assert(!host::thread_pool_like<of_function_pointers>);

/// Every item once, workers within range, no worker at two items at a time.
void check(host::executor const& on, int workers) {
  CHECK(on.workers() == workers);
  for (i64 const items : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> done(std::size_t(items) + 1), busy(static_cast<std::size_t>(workers));
    std::atomic<bool> is_exclusive = true;
    on.for_each(items, [&](i64 item, int worker) {
      if (busy.at(std::size_t(worker)).fetch_add(1) != 0) is_exclusive = false;
      done.at(std::size_t(item)).fetch_add(1);
      busy.at(std::size_t(worker)).fetch_sub(1);
    });
    CHECK(is_exclusive);
    for (i64 i = 0; i < items; ++i) REQUIRE(done[std::size_t(i)] == 1);
    CHECK(done[std::size_t(items)] == 0);
  }
}

}  // namespace

TEST_CASE("for_each runs every item once: serial, the default pool, the caller's threads") {
  check(host::executor{}, 1);
  for (int const threads : {1, 2, 4, 9}) {
    host::thread_pool pool(threads);
    check(host::executor(pool), threads);
    check(host::executor(pool), threads);  // again, on the same threads
  }
  engine_threads mine;
  check(host::executor(mine), 3);
}

TEST_CASE("a pool runs thousands of short runs") {
  host::thread_pool pool(4);
  host::executor const on(pool);
  i64 sum = 0;
  for (int i = 0; i < 5000; ++i) {
    std::atomic<i64> n = 0;
    on.for_each(8, [&](i64 item, int) { n += item; });
    sum += n;
  }
  CHECK(sum == 5000 * 28);
}

TEST_CASE("an exception from an item reaches the caller, and the pool goes on") {
  host::thread_pool pool(4);
  host::executor const on(pool);
  for (int i = 0; i < 300; ++i) {
    std::atomic<int> begun = 0;
    CHECK_THROWS_WITH(on.for_each(64,
                                  [&](i64 item, int) {
                                    ++begun;
                                    if (item == i % 64) throw std::runtime_error("item " + std::to_string(item));
                                  }),
                      "item " + std::to_string(i % 64));
    CHECK(begun >= i % 64 + 1);
    std::atomic<i64> n = 0;
    on.for_each(64, [&](i64, int) { ++n; });
    CHECK(n == 64);
  }
}

TEST_CASE("a pool without threads is refused") {
  CHECK_THROWS_AS(host::thread_pool(0), precondition_error);
  engine_threads none{0};
  CHECK_THROWS_AS(host::executor(none), precondition_error);
}
