// Sealing prompts on a device: encoding, summaries and storing to pinned memory, against reading the prompt and against the link.
#include "device.cuh"

namespace cuda_seal {

using namespace device_benchmark;

template <class Scheme>
void seal(benchmark::State& state) {
  i64 const tokens = state.range(0);
  problem<Scheme> p({.tokens = tokens, .batch = 4});
  std::vector<double> layers;
  for (double const s : p.seal_seconds()) layers.push_back(s / double(p.layers()));
  report(state, layers);
  double const seconds = quantile(layers, 0.5), read = double(tokens) * 8 * 2 * Scheme::head_dim * double(sizeof(bf16));
  state.counters["ns/token"] = 1e9 * seconds / double(tokens);
  state.counters["read_of_copy"] = read / seconds / limits_of_device::here().copy;
  limits_of_device::here().count(state);
}
BENCHMARK_TEMPLATE(seal, scheme::yakv<128>)->ArgName("tokens")->Arg(8192)->Arg(32768)->Apply(manual);
BENCHMARK_TEMPLATE(seal, scheme::quest<128>)->ArgName("tokens")->Arg(8192)->Arg(32768)->Apply(manual);

}  // namespace cuda_seal

BENCHMARK_MAIN();
