// Decode steps on a device: each kernel's time, the whole step captured in a graph, and the limits of this device, measured in the same run.
#include <benchmark/benchmark.h>

#include <map>
#include <string>
#include <typeinfo>

#include "cellar/cellar.cuh"

namespace cuda_decode {

using namespace cellar;

double quantile(std::vector<double> x, double q) {
  std::sort(x.begin(), x.end());
  return x[std::size_t(q * double(x.size() - 1) + 0.5)];
}

class device_clock {
 public:
  device_clock() {
    cuda::check(cudaEventCreate(&begin_), "event");
    cuda::check(cudaEventCreate(&end_), "event");
  }
  ~device_clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void start(cudaStream_t s) const { cuda::check(cudaEventRecord(begin_, s), "event"); }
  void stop(cudaStream_t s) const { cuda::check(cudaEventRecord(end_, s), "event"); }
  double seconds() const {
    float ms = 0;
    cuda::check(cudaEventSynchronize(end_), "event");
    cuda::check(cudaEventElapsedTime(&ms, begin_, end_), "event");
    return double(ms) * 1e-3;
  }

 private:
  cudaEvent_t begin_{}, end_{};
};

/// The median time of f(stream) over some runs.
template <class F>
double median_seconds(cudaStream_t stream, int runs, F const& f) {
  device_clock clock;
  std::vector<double> all;
  for (int i = -2; i < runs; ++i) {
    clock.start(stream);
    f();
    clock.stop(stream);
    if (double const s = clock.seconds(); i >= 0) all.push_back(s);
  }
  return quantile(all, 0.5);
}

cudaStream_t stream() {
  static cudaStream_t const s = [] {
    cudaStream_t x{};
    cuda::check(cudaStreamCreateWithFlags(&x, cudaStreamNonBlocking), "stream");
    return x;
  }();
  return s;
}

/// The device's limits, bytes a second.
struct limits_of_device {
  double copy = 0, to_device = 0;  // bytes read and written; bytes copied

  limits_of_device() {
    std::size_t const n = std::size_t{1} << 30;
    void *a = nullptr, *b = nullptr, *h = nullptr;
    cuda::check(cudaMalloc(&a, n), "malloc");
    cuda::check(cudaMalloc(&b, n), "malloc");
    cuda::check(cudaMallocHost(&h, n / 4), "malloc");
    std::memset(h, 1, n / 4);
    copy = 2 * double(n) / median_seconds(stream(), 10, [&] { cudaMemcpyAsync(b, a, n, cudaMemcpyDeviceToDevice, stream()); });
    to_device = double(n / 4) / median_seconds(stream(), 5, [&] { cudaMemcpyAsync(b, h, n / 4, cudaMemcpyHostToDevice, stream()); });
    cudaFree(a), cudaFree(b), cudaFreeHost(h);
  }
  static limits_of_device const& here() {
    static limits_of_device const l;
    return l;
  }
};

/// An executor that can time each kernel.
class timing_executor : public cuda::executor {
 public:
  using cuda::executor::executor;
  std::map<std::string, std::vector<double>>* times = nullptr;

  template <int Threads, class Kernel>
  void launch(cuda::grid_size blocks, i64 shared, Kernel const& kernel) const {
    if (!times) return executor::launch<Threads>(blocks, shared, kernel);
    device_clock clock;
    clock.start(stream());
    executor::launch<Threads>(blocks, shared, kernel);
    clock.stop(stream());
    std::string name = typeid(Kernel).name();
    for (char const* const known : {"prepare_points", "prepare", "score_points", "score_planes", "score", "select", "count", "collect", "write", "resolve",
                                    "fetch", "attend", "finish", "append", "seal_step", "reduce"})
      if (name.find(std::string(known) + "_kernel") != std::string::npos) {
        name = known;
        break;
      }
    (*times)[name].push_back(clock.seconds());
  }
};

template <class T>
__global__ void fill_kernel(T* x, i64 n, unsigned seed) {
  for (i64 i = blockIdx.x * i64{blockDim.x} + threadIdx.x; i < n; i += i64{gridDim.x} * blockDim.x) {
    float sum = 0;  // of four uniform numbers: nearly normal
    unsigned z = unsigned(i) * 0x9e3779b9u + seed;
    for (int k = 0; k < 4; ++k) {
      z = (z ^ z >> 16) * 0x85ebca6bu;
      z = (z ^ z >> 13) * 0xc2b2ae35u;
      z ^= z >> 16;
      sum += float(z >> 8) * 0x1p-24f - 0.5f;
    }
    x[i] = from_float<T>(sum * 1.7320508f);
  }
}
cuda::device_buffer<bf16> random_rows(cuda::executor const& on, i64 n, unsigned seed) {
  auto x = on.allocate<bf16>(n);
  fill_kernel<<<1024, 256, 0, on.stream()>>>(x.data(), n, seed);
  return x;
}

constexpr int head_dim = 128, kv_heads = 8, query_heads = 32;

std::vector<double> const& frequencies() {
  static std::vector<double> const f = [] {
    std::vector<double> x;
    for (int i = 0; i < head_dim / 2; ++i) x.push_back(std::pow(5e5, -2.0 * i / head_dim));
    return x;
  }();
  return f;
}

template <class Scheme>
void decode_step(benchmark::State& state) {
  i64 const tokens = state.range(0), batch = state.range(1), layers = std::max<i64>(2, std::min<i64>(8, 16 / batch * 131072 / tokens));
  timing_executor on(stream());
  model_shape const shape{.layers = int(layers),
                          .query_heads = query_heads,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .softmax_scale = 0,
                          .rotary = {rotary_pairing::half_split, {frequencies().data(), head_dim / 2}}};
  budget b = Scheme::published;
  if (b.tokens > 0 || b.share > 0) b.tokens = 2048, b.share = 0;
  b.dense_layers = 0;
  cache<Scheme, timing_executor> c(on, shape, {.sequences = int(batch), .tokens = tokens + 256, .generated_tokens = 256}, b);
  i64 const row = kv_heads * head_dim;
  std::vector<batch_entry> entries;
  double seal = 0;
  {
    auto k = random_rows(on, layers * tokens * row, 1), v = random_rows(on, layers * tokens * row, 2);
    for (i64 s = 0; s < batch; ++s) {
      auto const id = c.begin_prompt(prompt_staging<bf16>{k.data(), v.data(), tokens, tokens});
      device_clock clock;
      clock.start(stream());
      c.finish_prompt(on, id);
      clock.stop(stream());
      seal = clock.seconds();
      entries.push_back({id, 1});
    }
  }
  auto k = random_rows(on, batch * row, 3), v = random_rows(on, batch * row, 4), q = random_rows(on, layers * batch * query_heads * head_dim, 5);
  auto out = on.allocate<bf16>(batch * query_heads * head_dim);
  auto const view = [](auto& x, i64 from, i64 n, int heads) { return packed_heads(x.data() + from, n, heads, head_dim); };
  auto const step = [&] {
    for (int layer = 0; layer < layers; ++layer) {
      c.append(on, layer, view(k, 0, batch, kv_heads), view(v, 0, batch, kv_heads));
      c.template attend<bf16>(on, layer, view(q, layer * batch * query_heads * head_dim, batch, query_heads), view(out, 0, batch, query_heads));
    }
  };
  auto const plan = [&] { c.plan(on, {entries.data(), i64(entries.size())}); };
  std::map<std::string, std::vector<double>> times;
  for (int i = 0; i < 6; ++i) {
    plan();
    on.times = i < 2 ? nullptr : &times;
    step();
    on.wait();
  }
  on.times = nullptr;
  plan();
  cudaGraph_t graph{};
  cudaGraphExec_t run{};
  cuda::check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "capture");
  step();
  cuda::check(cudaStreamEndCapture(stream(), &graph), "capture");
  cuda::check(cudaGraphInstantiate(&run, graph, 0), "graph");
  cuda::check(cudaGraphLaunch(run, stream()), "graph");
  std::vector<double> whole;
  for (int i = 0; i < 12; ++i) {
    plan();
    c.complete();
    device_clock clock;
    clock.start(stream());
    cuda::check(cudaGraphLaunch(run, stream()), "graph");
    clock.stop(stream());
    if (double const s = clock.seconds(); i > 1) whole.push_back(s);
  }
  cudaGraphExecDestroy(run), cudaGraphDestroy(graph);

  for (auto const _ : state) state.SetIterationTime(quantile(whole, 0.5) / double(layers));
  for (auto const& [name, all] : times) state.counters[name + "_us"] = 1e6 * quantile(all, 0.5);
  state.counters["layer_us"] = 1e6 * quantile(whole, 0.5) / double(layers);
  state.counters["seal_us/token"] = 1e6 * seal / double(tokens * layers);
  auto const used = c.usage(entries[0].sequence);
  auto const& limit = limits_of_device::here();
  for (char const* const name : {"score", "score_points", "score_planes"})
    if (times.count(name)) {
      state.counters["score_of_copy"] = double(used.summary * batch) / quantile(times.at(name), 0.5) / limit.copy;
      state.counters["summary_MB"] = double(used.summary * batch) * 1e-6;
    }
  i64 const attended = operation::selects_everything<Scheme> ? c.sealed_blocks(entries[0].sequence) : c.selected_blocks(entries[0].sequence);
  double const far = double(attended * c.map().geometry().block_bytes() * batch);
  bool const is_offloaded = !Scheme::tier::is_device_reachable;
  state.counters["far_MB"] = far * 1e-6;
  state.counters[is_offloaded ? "attend_of_link" : "attend_of_copy"] = far / quantile(times.at("attend"), 0.5) / (is_offloaded ? limit.to_device : limit.copy);
  state.counters["copy_GB/s"] = limit.copy * 1e-9;
  state.counters["link_GB/s"] = limit.to_device * 1e-9;
}

template <class Scheme>
struct in_device_memory : Scheme {
  using tier = cellar::tier::device_memory;
};

void sizes(benchmark::internal::Benchmark* b) {
  for (i64 const tokens : {32768, 131072})
    for (i64 const batch : {1, 8}) b->Args({tokens, batch});
  b->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK_TEMPLATE(decode_step, in_device_memory<scheme::dense<head_dim>>)->Apply(sizes);
BENCHMARK_TEMPLATE(decode_step, scheme::yakv<head_dim>)->Apply(sizes);
BENCHMARK_TEMPLATE(decode_step, in_device_memory<scheme::yakv<head_dim>>)->Apply(sizes);
BENCHMARK_TEMPLATE(decode_step, scheme::quest<head_dim>)->Apply(sizes);
BENCHMARK_TEMPLATE(decode_step, in_device_memory<scheme::mean_landmark<head_dim>>)->Apply(sizes);

// --- exact top-k alone -------------------------------------------------------------------------------------------------------------------

struct top_k_kernel {
  float const* scores;
  i64 n, k;
  logical_block* ids;

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    select::top_k{k}(t, row_view<float const>{scores + at.x * n, n}, row_view<logical_block>{ids + at.x * k, k});
  }
};
__global__ void fill_scores(float* x, i64 n, unsigned seed) {
  for (i64 i = blockIdx.x * i64{blockDim.x} + threadIdx.x; i < n; i += i64{gridDim.x} * blockDim.x) {
    unsigned z = (unsigned(i) * 0x9e3779b9u) ^ seed;
    z = (z ^ z >> 16) * 0x85ebca6bu;
    z = (z ^ z >> 13) * 0xc2b2ae35u;
    z ^= z >> 16;
    x[i] = float(z >> 8) * 0x1p-24f * 8 - 4;
  }
}
void top_k(benchmark::State& state) {
  i64 const rows = state.range(0), n = state.range(1), k = 2048;
  cuda::executor on(stream());
  auto scores = on.allocate<float>(rows * n);
  auto ids = on.allocate<logical_block>(rows * k);
  fill_scores<<<1024, 256, 0, on.stream()>>>(scores.data(), rows * n, 7);
  double const s = median_seconds(stream(), 20, [&] {
    on.launch<1024>({rows}, round_up(i64(select::top_k::shared_bytes), 16) + 64, top_k_kernel{scores.data(), n, k, ids.data()});
  });
  for (auto const _ : state) state.SetIterationTime(s);
}
BENCHMARK(top_k)->Args({1, 131072})->Args({8, 131072})->Args({64, 131072})->Args({8, 32768})->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);

// --- gathering fragments from pinned host memory ------------------------------------------------------------------------------------------

struct gather_kernel {
  std::byte const* from;
  std::uint32_t const* at;
  std::byte* to;
  i64 bytes, count;

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place place) const {
    auto const w = t.warp();
    for (i64 f = place.x * w.count() + w.index(); f < count; f += 8 * 132 * w.count()) {
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
  cuda::executor on(stream());
  tier::host_memory far(1, is_registered ? all : 1);
  cuda::executor::reached<tier::host_memory> const pinned(on, far, 1);
  std::byte* memory = far.data(0);
  if (!is_registered) cuda::check(cudaMallocHost(reinterpret_cast<void**>(&memory), std::size_t(all)), "pinned memory");
  std::memset(memory, 1, std::size_t(all));
  std::vector<std::uint32_t> places(static_cast<std::size_t>(count));
  std::uint64_t z = 1;
  for (auto& p : places) {
    z = z * 6364136223846793005u + 1442695040888963407u;
    p = std::uint32_t((z >> 33) % std::uint64_t(all / bytes));
  }
  if (is_ascending) std::sort(places.begin(), places.end());
  auto at = on.upload(std::move(places));
  auto to = on.allocate<std::byte>(moved + bytes);
  double const s = median_seconds(stream(), 10, [&] { on.launch<128>({8 * 132}, 0, gather_kernel{memory, at.data(), to.data(), bytes, count}); });
  if (!is_registered) cudaFreeHost(memory);
  for (auto const _ : state) state.SetIterationTime(s);
  state.counters["of_link"] = double(count * bytes) / s / limits_of_device::here().to_device;
  state.counters["M_fragments/s"] = double(count) / s * 1e-6;
}
BENCHMARK(gather)
    ->ArgNames({"bytes", "ascending", "registered", "log_memory"})
    ->ArgsProduct({{64, 132, 256, 1024, 4096, 16384}, {1}, {1}, {30}})
    ->ArgsProduct({{132, 256}, {0, 1}, {0, 1}, {27, 30}})
    ->Iterations(1)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace cuda_decode

BENCHMARK_MAIN();
