// Finding selected blocks in the near pools on a device: hits, misses and least recently used victims, by how many are selected and how many are hits.
#include "device.cuh"

namespace cuda_resolve {

using namespace device_benchmark;

/// Steps whose queries keep so many percent of the last one's.
void resolve(benchmark::State& state) {
  problem<scheme::yakv<128>> p({.batch = state.range(0), .kv_heads = int(state.range(1)), .selected = state.range(2)});
  auto const before = p.hits_and_misses();
  auto const kernels = p.kernel_seconds(6, [&] { p.turn_queries(float(state.range(3)) / 100); });
  auto const [hits, misses] = p.hits_and_misses();
  auto const& all = kernels.at("resolve");
  report(state, all);
  double const missed = double(misses - before.second), found = double(hits - before.first);
  state.counters["hit_rate"] = found / (missed + found);
  state.counters["M_blocks/s"] = double(p.attended_blocks() * state.range(0) * state.range(1)) / quantile(all, 0.5) * 1e-6;
  state.counters["launches_worth"] = quantile(all, 0.5) / limits_of_device::here().launch;
  limits_of_device::here().count(state);
}
BENCHMARK(resolve)
    ->ArgNames({"batch", "kv_heads", "selected", "kept"})
    ->ArgsProduct({{1, 8}, {8}, {256, 2048}, {100, 90, 0}})
    ->Args({1, 8, 16384, 90})
    ->Args({8, 1, 2048, 90})
    ->Apply(manual);

}  // namespace cuda_resolve

BENCHMARK_MAIN();
