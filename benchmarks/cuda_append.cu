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
  problem<Scheme> p({.tokens = 2048, .batch = state.range(0), .kv_heads = int(state.range(1)), .selected = 64, .layers = 4});
  auto const kernels = p.kernel_seconds(32, [] {});  // blocks of 16 tokens seal twice
  auto const& all = kernels.at("append");
  report(state, all);
  state.counters["rows_KB"] = double(state.range(0) * state.range(1) * 2 * Scheme::head_dim * i64{sizeof(bf16)}) * 1e-3;
  state.counters["launches_worth"] = quantile(all, 0.5) / limits_of_device::here().launch;
  if (auto const seal = kernels.find("seal_step"); seal != kernels.end()) {
    // All sequences seal in the same steps, one of block_tokens: the slowest ones, of which this is the median.
    state.counters["seal_us"] = 1e6 * quantile(seal->second, 1 - 0.5 / Scheme::block_tokens);
    if (Scheme::block_tokens > 1) state.counters["no_seal_us"] = 1e6 * quantile(seal->second, 0.5 - 0.5 / Scheme::block_tokens);
  }
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "kv_heads"})->ArgsProduct({{1, 8, 32}, {8}})->ArgsProduct({{32}, {1, 4}})->Apply(manual);
}
BENCHMARK_TEMPLATE(append, scheme::yakv<128>)->Apply(sizes);
BENCHMARK_TEMPLATE(append, sealing_yakv)->Apply(sizes);
BENCHMARK_TEMPLATE(append, scheme::quest<128>)->Apply(sizes);

}  // namespace cuda_append

BENCHMARK_MAIN();
