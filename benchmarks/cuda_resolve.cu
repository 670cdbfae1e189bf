// Finding selected blocks in the near pools on a device: hits, misses and least recently used victims, by how many are selected and how many are hits.
#include "device.cuh"

namespace cuda_resolve {

using namespace device_benchmark;

void resolve(benchmark::State& state) {
  auto& p = kept_problem<scheme::yakv<128>>({.batch = state.range(0), .kv_heads = int(state.range(1)), .selected = state.range(2)});
  float const keep = p.keep_for(double(state.range(3)) / 100);
  auto const kernels = p.kernel_seconds(6, [&] { p.turn_queries(keep); });
  auto const& all = kernels.at("resolve");
  report(state, all);
  state.counters["hit_rate"] = quantile(p.hit_rates(), 0.5);
  state.counters["hit_rate_most"] = quantile(p.hit_rates(), 1);  // no timed step had fewer misses
  state.counters["M_blocks/s"] = double(p.attended_blocks() * state.range(0) * state.range(1)) / quantile(all, 0.5) * 1e-6;
  state.counters["launches_worth"] = quantile(all, 0.5) / limits_of_device::here().launch;
  limits_of_device::here().count(state);
}
BENCHMARK(resolve)
    ->ArgNames({"batch", "kv_heads", "selected", "hit_percent"})
    ->Apply([](benchmark::internal::Benchmark* b) {
      for (i64 const selected : {256, 2048})
        for (i64 const batch : {1, 8, 32})
          for (i64 const hits : {100, 90, 0}) b->Args({batch, 8, selected, hits});  // in turn, of one cache
      b->Args({1, 8, 16384, 90})->Args({8, 4, 2048, 90})->Args({8, 1, 2048, 90});
    })
    ->Apply(manual);

}  // namespace cuda_resolve

BENCHMARK_MAIN();
