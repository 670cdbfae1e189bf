// Bringing far runs up: gathers of fragments from pinned host memory, and whole steps by the share of selected runs that the near pools have, in percent.
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
/// Host memory that a device reads: registered (by huge pages, as tier::host_memory has it) or allocated pinned.
class pinned_bytes {
 public:
  pinned_bytes(cuda::executor const& on, i64 bytes, bool is_registered) : far_(1, is_registered ? bytes : 1), reached_(on, far_, 1) {
    if (!is_registered) cuda::check(cudaMallocHost(&allocated_, std::size_t(bytes)), "cudaMallocHost");
    std::memset(data(), 1, std::size_t(bytes));
  }
  pinned_bytes(pinned_bytes const&) = delete;
  ~pinned_bytes() {
    if (allocated_) cudaFreeHost(allocated_);
  }
  std::byte* data() { return allocated_ ? static_cast<std::byte*>(allocated_) : far_.data(0); }

 private:
  tier::host_memory far_;
  cuda::executor::reached<tier::host_memory> reached_;
  void* allocated_ = nullptr;
};
/// Fragments of so many bytes, in ascending order or not.
void gather(benchmark::State& state) {
  i64 const bytes = state.range(0), moved = i64{16} << 20, count = moved / bytes, all = i64{1} << state.range(3);
  bool const is_ascending = state.range(1) != 0, is_registered = state.range(2) != 0;
  cuda::executor const on(stream());
  int multiprocessors = 0;
  cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
  i64 const blocks = 8 * multiprocessors;
  auto& memory = kept<pinned_bytes>(std::to_string(all) + (is_registered ? " registered" : " allocated"), on, all, is_registered);
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
        on.launch<128>({blocks}, 0, gather_kernel{memory.data(), at.data(), to.data(), bytes, count, blocks});
      },
      [] {});
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
template <class Scheme>
void near_pool(benchmark::State& state) {
  report_step(state, kept_problem<Scheme>({.tokens = 32768, .batch = state.range(0)}), state.range(1));
}
/// Hit rates in turn, of one cache.
void pools(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "hit_percent"})->Apply(manual);
  for (i64 const batch : {1, 8})
    for (i64 const hits : {100, 90, 60, 0}) b->Args({batch, hits});
}
BENCHMARK_TEMPLATE(near_pool, scheme::yakv<128>)->Apply(pools);  // 4-bit rows of a token
BENCHMARK_TEMPLATE(near_pool, overlapped)->Apply(pools);
BENCHMARK_TEMPLATE(near_pool, scheme::quest<128>)->Apply(pools);  // 16-bit rows of 16 tokens

}  // namespace cuda_fetch

BENCHMARK_MAIN();
