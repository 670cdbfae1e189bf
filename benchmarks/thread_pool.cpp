// A run of short items on the pool, as a step has by the hundred, against the same items one after the other: what waking threads takes of it. Between two runs
// the caller works by itself for a while.
#include "paired.hpp"

using namespace benchmarks;

namespace {

/// Some microseconds of work, the same at each call.
void work(std::vector<float>& x) {
  for (int pass = 0; pass < 8; ++pass)
    for (float& v : x) v = v * 0.999f + 0.5f;
  benchmark::DoNotOptimize(x.data());
}

void run_items(benchmark::State& state, host::executor const& on, i64 items, double gap) {
  constexpr int runs = 200;
  std::vector<std::vector<float>> numbers(static_cast<std::size_t>(items), std::vector<float>(1024, 1.0f));
  auto const all = [&](auto const& one_run) {
    double seconds = 0;
    for (int i = 0; i < runs; ++i) {
      for (auto const start = std::chrono::steady_clock::now(); std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < gap;)
        continue;
      seconds += seconds_of(one_run);
    }
    return seconds / runs;
  };
  paired timings;
  for (int i = 0; i < 15; ++i)
    timings.sample([&] { return all([&] { on.for_each(items, [&](i64 item, int) { work(numbers[std::size_t(item)]); }); }); },
                   [&] {
                     return all([&] {
                       for (auto& x : numbers) work(x);
                     });
                   });
  timings.report(state, "speed_up");
}

}  // namespace

int main(int count, char** arguments) {
  int const threads = int(std::max(2u, std::thread::hardware_concurrency()));
  for (i64 const items : {2, 16})
    for (int const gap : {0, 20, 200})
      add("thread_pool/items:" + std::to_string(items) + "/gap_us:" + std::to_string(gap), threads,
          [items, gap](benchmark::State& state, host::executor const& on) { run_items(state, on, items, gap * 1e-6); });
  return run(count, arguments);
}
