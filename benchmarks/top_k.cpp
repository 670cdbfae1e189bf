// Exact top-k of one row, ids ascending, against std::nth_element and a sort of what it chose.
#include <numeric>

#include "paired.hpp"

using namespace benchmarks;

namespace {

void top_k(benchmark::State& state, host::executor const& on, i64 n, i64 k) {
  paired timings;
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> scores(static_cast<std::size_t>(n));
  std::vector<logical_block> ids(static_cast<std::size_t>(k));
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::byte shared[select::top_k::shared_bytes];
  for (int i = 0; i < 25; ++i) {
    for (float& x : scores) x = normal(engine);  // a branch predictor would learn a row that is repeated
    timings.sample(
        [&] {
          return seconds_of([&] {
            serial_team t(shared, sizeof shared, on.kernels());
            select::top_k{k}(t, row_view<float const>{scores.data(), n}, row_view<logical_block>{ids.data(), k});
          });
        },
        [&] {
          return seconds_of([&] {
            std::iota(order.begin(), order.end(), 0);
            std::nth_element(order.begin(), order.begin() + k - 1, order.end(),
                             [&](std::int32_t a, std::int32_t b) { return scores[std::size_t(a)] > scores[std::size_t(b)]; });
            std::sort(order.begin(), order.begin() + k);
          });
        });
    for (std::size_t j = 0; j < std::size_t(k); ++j)
      if (number(ids[j]) != order[j]) return state.SkipWithError("the ids differ");
  }
  timings.report(state, "speed_up");
}

}  // namespace

int main(int count, char** arguments) {
  for (auto const& [n, k] : {std::pair<i64, i64>{4096, 256}, {32768, 2048}, {131072, 2048}, {1048576, 2048}})
    add("top_k/blocks:" + std::to_string(n) + "/k:" + std::to_string(k), 1,
        [n = n, k = k](benchmark::State& state, host::executor const& on) { top_k(state, on, n, k); });
  return run(count, arguments);
}
