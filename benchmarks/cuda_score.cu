// Scoring on a device: summaries read once for all query heads of a group, against a copy of as many bytes.
#include "device.cuh"

namespace cuda_score {

using namespace device_benchmark;

template <class Scheme>
void score(benchmark::State& state) {
  problem<Scheme> p({.tokens = state.range(0), .batch = state.range(1), .kv_heads = int(state.range(2)), .group = int(state.range(3)), .selected = 256});
  auto const kernels = p.kernel_seconds(4, [] {});
  for (char const* const name : {"score", "score_points", "score_planes"})
    if (auto const found = kernels.find(name); found != kernels.end()) {
      report(state, found->second);
      state.counters["of_copy"] = p.summary_bytes() / quantile(found->second, 0.5) / limits_of_device::here().copy;
    }
  state.counters["summary_MB"] = p.summary_bytes() * 1e-6;
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "batch", "kv_heads", "group"});
  b->Args({131072, 1, 8, 4})
      ->Args({131072, 8, 8, 4})
      ->Args({131072, 1, 8, 1})
      ->Args({131072, 1, 8, 8})
      ->Args({32768, 8, 8, 4})
      ->Args({131072, 8, 1, 8})
      ->Args({131072, 8, 4, 7})
      ->Args({1 << 20, 1, 8, 4});
  b->Apply(manual);
}
BENCHMARK_TEMPLATE(score, in_device_memory<scheme::yakv<128>>)->Apply(sizes);           // 2-bit points, a landmark a token
BENCHMARK_TEMPLATE(score, in_device_memory<scheme::quest<128>>)->Apply(sizes);          // minima and maxima of 16 tokens
BENCHMARK_TEMPLATE(score, in_device_memory<scheme::mean_landmark<128>>)->Apply(sizes);  // means of 8 tokens
BENCHMARK_TEMPLATE(score, in_device_memory<scheme::arkvale<64>>)->Apply(sizes);         // boxes of 32 tokens, narrow heads

}  // namespace cuda_score

BENCHMARK_MAIN();
