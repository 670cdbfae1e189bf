// Bringing far runs up: gathers of fragments from pinned host memory, and whole steps by the share of selected runs that the near pools have.
#include "device.cuh"

namespace cuda_fetch {

using namespace device_benchmark;

struct gather_kernel {
  std::byte const* from;
  std::uint32_t const* at;
  std::byte* to;
  i64 bytes, count, blocks;

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place place) const {
    auto const w = t.warp();
    for (i64 f = place.x * w.count() + w.index(); f < count; f += blocks * w.count()) {
      std::byte const* const source = from + i64{at[f]} * bytes;
      if (bytes % 16 == 0)
        for (i64 i = w.lane() * 16; i < bytes; i += 512) *reinterpret_cast<loaded_bytes<16>*>(to + f * bytes + i) = load_bytes<16>(source + i);
      else
        for (i64 i = w.lane() * 4; i < bytes; i += 128) *reinterpret_cast<loaded_bytes<4>*>(to + f * bytes + i) = load_bytes<4>(source + i);
    }
  }
};
/// Fragments of so many bytes, in ascending order or not, from memory that is registered (by huge pages, as tier::host_memory has it) or allocated pinned.
void gather(benchmark::State& state) {
  i64 const bytes = state.range(0), moved = i64{16} << 20, count = moved / bytes, all = i64{1} << state.range(3);
  bool const is_ascending = state.range(1) != 0, is_registered = state.range(2) != 0;
  cuda::executor const on(stream());
  int multiprocessors = 0;
  cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
  i64 const blocks = 8 * multiprocessors;
  tier::host_memory far(1, is_registered ? all : 1);
  cuda::executor::reached<tier::host_memory> const pinned(on, far, 1);
  std::byte* memory = far.data(0);
  if (!is_registered) cuda::check(cudaMallocHost(reinterpret_cast<void**>(&memory), std::size_t(all)), "cudaMallocHost");
  std::memset(memory, 1, std::size_t(all));
  std::vector<std::uint32_t> places(static_cast<std::size_t>(count));
  std::uint64_t z = 1;
  for (auto& p : places) {
    z = z * 6364136223846793005u + 1442695040888963407u;
    p = std::uint32_t((z >> 33) % std::uint64_t(all / bytes));
  }
  if (is_ascending) std::sort(places.begin(), places.end());
  auto const at = on.upload(std::move(places));
  auto to = on.allocate<std::byte>(moved + bytes);
  auto const times = all_seconds(
      10,
      [&] {
        on.launch<128>({blocks}, 0, gather_kernel{memory, at.data(), to.data(), bytes, count, blocks});
      },
      [] {});
  if (!is_registered) cudaFreeHost(memory);
  report(state, times);
  state.counters["of_link"] = double(count * bytes) / quantile(times, 0.5) / limits_of_device::here().to_device;
  state.counters["M_fragments/s"] = double(count) / quantile(times, 0.5) * 1e-6;
  limits_of_device::here().count(state);
}
BENCHMARK(gather)
    ->ArgNames({"bytes", "ascending", "registered", "log_memory"})
    ->ArgsProduct({{64, 132, 256, 1024, 4096, 16384}, {1}, {1}, {30}})
    ->ArgsProduct({{132, 256}, {0, 1}, {0, 1}, {27, 30}})
    ->Apply(manual);

struct overlapped : scheme::yakv<128> {
  static constexpr bool is_reproducible = false;
};
/// Steps whose queries keep so many percent of the last one's: the rest decides how many runs are missing.
template <class Scheme>
void near_pool(benchmark::State& state) {
  problem<Scheme> p({.tokens = state.range(0), .batch = state.range(1)});
  auto const turn = [&] { p.turn_queries(float(state.range(2)) / 100); };
  constexpr int steps = 10, kernel_steps = 4, warm_ups = 2;
  auto const at_first = p.hits_and_misses();
  auto const kernels = p.kernel_seconds(kernel_steps, turn);
  auto const before = p.hits_and_misses();
  auto const layers = p.layer_seconds(steps, turn);
  auto const [hits, misses] = p.hits_and_misses();
  double const missed = double(misses - before.second), all = missed + double(hits - before.first);
  report(state, layers);
  for (auto const& [name, seconds] : kernels)
    if (name == "resolve" || name == "fetch" || name == "fetch_and_attend" || name == "attend" || name == "finish")
      state.counters[name + "_us"] = 1e6 * quantile(seconds, 0.5);
  state.counters["hit_rate"] = 1 - missed / all;
  auto const bytes_of_layer = [&](double runs, int all_steps) {
    return runs / double(all_steps * p.layers()) * double(p.cache().map().geometry().slice_bytes());
  };
  state.counters["missed_MB"] = bytes_of_layer(missed, steps + warm_ups + 1) * 1e-6;  // one to begin with
  if (auto const fetch = kernels.find("fetch"); fetch != kernels.end())
    state.counters["fetch_of_link"] =
        bytes_of_layer(double(before.second - at_first.second), kernel_steps + warm_ups) / quantile(fetch->second, 0.5) / limits_of_device::here().to_device;
  limits_of_device::here().count(state);
}
void kept(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "batch", "kept"})->ArgsProduct({{32768}, {1, 8}, {100, 99, 90, 0}})->ArgsProduct({{131072}, {1, 8}, {100, 99}})->Apply(manual);
}
BENCHMARK_TEMPLATE(near_pool, scheme::yakv<128>)->Apply(kept);
BENCHMARK_TEMPLATE(near_pool, overlapped)->Apply(kept);

}  // namespace cuda_fetch

BENCHMARK_MAIN();
