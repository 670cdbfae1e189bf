// Attention on a device to selected blocks of far memory in device memory, by codec: against a copy of as many bytes.
#include "device.cuh"

namespace cuda_attend {

using namespace device_benchmark;

template <int HeadDim, class Codec>
struct coded : scheme::quest<HeadDim> {
  using tier = cellar::tier::device_memory;
  using key_codec = Codec;
  using value_codec = Codec;
};

template <class Scheme>
void attend(benchmark::State& state) {
  problem<Scheme> p({.batch = state.range(0), .kv_heads = int(state.range(1)), .group = int(state.range(2)), .selected = state.range(3)});
  auto const kernels = p.kernel_seconds(4, [] {});
  auto const& all = kernels.at("attend");
  report(state, all);
  state.counters["finish_us"] = 1e6 * quantile(kernels.at("finish"), 0.5);
  state.counters["far_MB"] = p.far_bytes() * 1e-6;
  state.counters["of_copy"] = p.far_bytes() / quantile(all, 0.5) / limits_of_device::here().copy;
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "kv_heads", "group", "selected"});
  b->Args({1, 8, 4, 2048})->Args({8, 8, 4, 2048})->Args({32, 8, 4, 2048})->Args({8, 8, 4, 16384})->Args({8, 8, 1, 2048})->Args({8, 8, 8, 2048});
  b->Args({8, 1, 8, 2048})->Args({8, 4, 7, 2048});
  b->Apply(manual);
}
BENCHMARK_TEMPLATE(attend, coded<128, codec::identity<bf16>>)->Apply(sizes);
BENCHMARK_TEMPLATE(attend, coded<64, codec::identity<bf16>>)->Apply(sizes);
BENCHMARK_TEMPLATE(attend, coded<128, codec::int8<>>)->Apply(sizes);
BENCHMARK_TEMPLATE(attend, coded<128, codec::higgs<2, 256>>)->Apply(sizes);

}  // namespace cuda_attend

BENCHMARK_MAIN();
