// Merging the partial states of split keys on a device, by how many spans there are (they follow from the keys) and how many rows: against reading them once
// (attention has just written them: the device's cache has most).
#include "device.cuh"

namespace cuda_merge {

using namespace device_benchmark;

template <int HeadDim>
struct exact : scheme::quest<HeadDim> {
  using tier = cellar::tier::device_memory;
};

template <int HeadDim>
void merge(benchmark::State& state) {
  i64 const batch = state.range(0), kv_heads = state.range(1), group = state.range(2);
  problem<exact<HeadDim>> p({.batch = batch, .kv_heads = int(kv_heads), .group = int(group), .selected = state.range(3)});
  auto const kernels = p.kernel_seconds(6, [] {});
  auto const& all = kernels.at("finish");
  report(state, all);
  double const bytes = double(batch * kv_heads) * double(operation::span_partials<exact<HeadDim>>::bytes(group, p.spans()));
  state.counters["spans"] = p.spans();
  state.counters["partials_MB"] = bytes * 1e-6;
  state.counters["of_copy"] = bytes / quantile(all, 0.5) / limits_of_device::here().copy;
  state.counters["launches_worth"] = quantile(all, 0.5) / limits_of_device::here().launch;
  limits_of_device::here().count(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "kv_heads", "group", "selected"})
      ->Args({1, 8, 4, 256})
      ->Args({1, 8, 4, 16384})
      ->Args({8, 4, 7, 2048})
      ->Args({32, 8, 4, 2048})
      ->Args({8, 8, 8, 2048})
      ->Args({8, 1, 8, 2048});
  b->Apply(manual);
}
BENCHMARK_TEMPLATE(merge, 128)->Apply(sizes);
BENCHMARK_TEMPLATE(merge, 64)->Apply(sizes);

}  // namespace cuda_merge

BENCHMARK_MAIN();
