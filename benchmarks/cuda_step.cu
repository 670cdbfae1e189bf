// Whole decode steps on a device, captured in a graph: a layer's time, and each kernel's beside it, by the share of selected runs that is near already.
#include <array>
#include <initializer_list>

#include "device.cuh"

namespace cuda_step {

using namespace device_benchmark;

struct overlapped : scheme::yakv<128> {
  static constexpr bool is_reproducible = false;
};

template <class Scheme>
void step(benchmark::State& state) {
  report_step(state, kept_problem<Scheme>({.tokens = state.range(0), .batch = state.range(1), .kv_heads = int(state.range(2))}), state.range(3));
}

void names(benchmark::internal::Benchmark* b) { b->ArgNames({"tokens", "batch", "kv_heads", "hit_percent"})->Apply(manual); }
/// Hit rates in turn, of one cache.
void with_pools(benchmark::internal::Benchmark* b, std::initializer_list<std::array<i64, 3>> sizes) {
  for (auto const& [tokens, batch, kv_heads] : sizes)
    for (i64 const hits : {100, 90}) b->Args({tokens, batch, kv_heads, hits});
  names(b);
}
void all_near(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{32768, 131072}, {1, 8}, {8}, {100}})->Args({32768, 32, 8, 100})->Args({32768, 8, 4, 100})->Args({32768, 8, 1, 100});
  names(b);
}
void many_sizes(benchmark::internal::Benchmark* b) {
  with_pools(b, {{32768, 1, 8}, {32768, 8, 8}, {32768, 32, 8}, {131072, 1, 8}, {131072, 8, 8}, {32768, 8, 4}, {32768, 8, 1}, {1 << 20, 1, 8}});
}
void main_sizes(benchmark::internal::Benchmark* b) { with_pools(b, {{32768, 8, 8}, {131072, 1, 8}, {131072, 8, 8}}); }
BENCHMARK_TEMPLATE(step, in_device_memory<scheme::dense<128>>)->Apply(all_near);
BENCHMARK_TEMPLATE(step, in_device_memory<scheme::yakv<128>>)->Apply(all_near);
BENCHMARK_TEMPLATE(step, scheme::yakv<128>)->Apply(many_sizes);
BENCHMARK_TEMPLATE(step, overlapped)->Apply(main_sizes);
BENCHMARK_TEMPLATE(step, scheme::quest<128>)->Apply(main_sizes);

}  // namespace cuda_step

BENCHMARK_MAIN();
