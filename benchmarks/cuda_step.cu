// Whole decode steps on a device, captured in a graph: a layer's time, and each kernel's beside it.
#include "device.cuh"

namespace cuda_step {

using namespace device_benchmark;

template <class Scheme>
void step(benchmark::State& state) {
  problem<Scheme> p({.tokens = state.range(0), .batch = state.range(1), .kv_heads = int(state.range(2))});
  auto const nothing = [] {};
  auto const kernels = p.kernel_seconds(4, nothing);
  auto const layers = p.layer_seconds(10, nothing);
  report(state, layers);
  double sum = 0;
  for (auto const& [name, all] : kernels) {
    state.counters[name + "_us"] = 1e6 * quantile(all, 0.5);
    sum += quantile(all, 0.5);
  }
  state.counters["layer_of_kernels"] = quantile(layers, 0.5) / sum;
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "batch", "kv_heads"})->ArgsProduct({{32768, 131072}, {1, 8}, {8}})->Args({32768, 32, 8})->Args({32768, 8, 1})->Apply(manual);
}
BENCHMARK_TEMPLATE(step, in_device_memory<scheme::dense<128>>)->Apply(sizes);
BENCHMARK_TEMPLATE(step, scheme::yakv<128>)->Apply(sizes);
BENCHMARK_TEMPLATE(step, in_device_memory<scheme::yakv<128>>)->Apply(sizes);
BENCHMARK_TEMPLATE(step, scheme::quest<128>)->Apply(sizes);

}  // namespace cuda_step

BENCHMARK_MAIN();
