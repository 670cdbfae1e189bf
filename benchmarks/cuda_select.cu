// Exact top-k on a device, alone: rows of scores, against reading them once.
#include "device.cuh"

namespace cuda_select {

using namespace device_benchmark;

struct top_k_kernel {
  float const* scores;
  i64 n, k;
  logical_block* ids;

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    select::top_k{k}(t, row_view<float const>{scores + at.x * n, n}, row_view<logical_block>{ids + at.x * k, k});
  }
};
void top_k(benchmark::State& state) {
  i64 const rows = state.range(0), n = state.range(1), k = state.range(2);
  cuda::executor const on(stream());
  auto const scores = random_rows<float>(on, rows * n, 7);
  auto ids = on.allocate<logical_block>(rows * k);
  i64 const shared = round_up(i64(select::top_k::shared_bytes), 16) + 64;
  auto const all = all_seconds(
      20,
      [&] {
        on.launch<1024>({rows}, shared, top_k_kernel{scores.data(), n, k, ids.data()});
      },
      [] {});
  report(state, all);
  state.counters["of_copy"] = double(rows * n * 4) / quantile(all, 0.5) / limits_of_device::here().copy;
  limits_of_device::here().count(state);
}
BENCHMARK(top_k)->ArgNames({"rows", "n", "k"})->ArgsProduct({{1, 8, 64}, {8192, 131072}, {64, 2048}})->Args({1, 4 << 20, 2048})->Apply(manual);

}  // namespace cuda_select

BENCHMARK_MAIN();
