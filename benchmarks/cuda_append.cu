// Appending a step's keys and values on a device, and sealing the blocks that leave the window: launches of a few rows, against an empty one.
#include "device.cuh"

namespace cuda_append {

using namespace device_benchmark;

/// A block of one token: every step seals one.
struct sealing_yakv : scheme::yakv<128> {
  static constexpr bool keeps_generated = false;
};

template <class Scheme>
void append(benchmark::State& state) {
  problem<Scheme> p({.tokens = 8192, .batch = state.range(0), .kv_heads = int(state.range(1)), .selected = 64});
  auto const kernels = p.kernel_seconds(32, [] {});  // blocks of 16 tokens seal twice
  auto const& all = kernels.at("append");
  report(state, all);
  state.counters["launches_worth"] = quantile(all, 0.5) / limits_of_device::here().launch;
  if (auto const seal = kernels.find("seal_step"); seal != kernels.end()) {
    state.counters["seal_us"] = 1e6 * quantile(seal->second, 0.5);
    state.counters["seal_most_us"] = 1e6 * quantile(seal->second, 1);  // where a block did seal
  }
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) { b->ArgNames({"batch", "kv_heads"})->Args({1, 8})->Args({32, 8})->Args({32, 1})->Apply(manual); }
BENCHMARK_TEMPLATE(append, scheme::yakv<128>)->Apply(sizes);
BENCHMARK_TEMPLATE(append, sealing_yakv)->Apply(sizes);
BENCHMARK_TEMPLATE(append, scheme::quest<128>)->Apply(sizes);

}  // namespace cuda_append

BENCHMARK_MAIN();
