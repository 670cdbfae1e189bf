#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "cellar/cellar.cuh"

/// What the benchmarks of a device share: event timing, the limits of this device measured in the same run, and a cache full of random prompts.
namespace device_benchmark {

using namespace cellar;
namespace cuda = cellar::cuda;  // CCCL has a ::cuda

inline double quantile(std::vector<double> x, double q) {
  std::sort(x.begin(), x.end());
  return x[std::size_t(q * double(x.size() - 1) + 0.5)];
}

class device_clock {
 public:
  device_clock() {
    cuda::check(cudaEventCreate(&begin_), "cudaEventCreate");
    cuda::check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  device_clock(device_clock const&) = delete;
  ~device_clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void start(cudaStream_t s) const { cuda::check(cudaEventRecord(begin_, s), "cudaEventRecord"); }
  void stop(cudaStream_t s) const { cuda::check(cudaEventRecord(end_, s), "cudaEventRecord"); }
  double seconds() const {
    float ms = 0;
    cuda::check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    cuda::check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return double(ms) * 1e-3;
  }

 private:
  cudaEvent_t begin_{}, end_{};
};

inline cudaStream_t stream() {
  static cudaStream_t const s = [] {
    cudaStream_t x{};
    cuda::check(cudaStreamCreateWithFlags(&x, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return x;
  }();
  return s;
}

static __global__ void hold_kernel(std::uint64_t nanoseconds) {
  auto const now = [] {
    std::uint64_t x = 0;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(x));
    return x;
  };
  for (std::uint64_t const begin = now(); now() - begin < nanoseconds;) __nanosleep(200);
}
/// Keeps the stream busy while the host enqueues what is timed, so that its calls are not in the times. It ends by itself, whatever the host does.
inline void hold(double microseconds) {
  hold_kernel<<<1, 1, 0, stream()>>>(std::uint64_t(microseconds * 1e3));
  cuda::check(cudaGetLastError(), "hold");
}

/// Times of f() over some runs, after two that are not counted. `between` runs before each, and is not timed.
template <class F, class Between>
std::vector<double> all_seconds(int runs, F const& f, Between const& between) {
  device_clock clock;
  std::vector<double> all;
  for (int i = -2; i < runs; ++i) {
    between();
    hold(300);
    clock.start(stream());
    f();
    clock.stop(stream());
    if (double const s = clock.seconds(); i >= 0) all.push_back(s);
  }
  return all;
}
template <class F>
double median_seconds(int runs, F const& f) {
  return quantile(all_seconds(runs, f, [] {}), 0.5);
}

struct empty_kernel {
  template <team Team>
  CELLAR_HD void operator()(Team&, cuda::grid_place) const {}
};

/// The device's limits.
struct limits_of_device {
  double copy = 0, to_device = 0;  // bytes a second: read and written; copied from pinned memory
  double launch = 0;               // seconds, of a kernel that does nothing, timed alone as others are: the least that is seen

  limits_of_device() {
    std::size_t const n = std::size_t{1} << 30;
    cuda::executor const on(stream());
    auto a = on.allocate<std::byte>(i64(n)), b = on.allocate<std::byte>(i64(n));
    void* h = nullptr;
    cuda::check(cudaMallocHost(&h, n / 4), "cudaMallocHost");
    std::memset(h, 1, n / 4);
    copy = 2 * double(n) / median_seconds(10, [&] { cudaMemcpyAsync(b.data(), a.data(), n, cudaMemcpyDeviceToDevice, stream()); });
    to_device = double(n / 4) / median_seconds(5, [&] { cudaMemcpyAsync(b.data(), h, n / 4, cudaMemcpyHostToDevice, stream()); });
    launch = median_seconds(50, [&] { on.launch<128>({1}, 0, empty_kernel{}); });
    cudaFreeHost(h);
  }
  static limits_of_device const& here() {
    static limits_of_device const l;
    return l;
  }
  /// For the report: what the shares are shares of.
  void count(benchmark::State& state) const {
    state.counters["copy_GB/s"] = copy * 1e-9;
    state.counters["link_GB/s"] = to_device * 1e-9;
    state.counters["launch_us"] = launch * 1e6;
  }
};

/// One measured time, and that it is in microseconds, once.
inline void manual(benchmark::internal::Benchmark* b) { b->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond); }
inline void report(benchmark::State& state, std::vector<double> const& seconds) {
  for (auto const _ : state) state.SetIterationTime(quantile(seconds, 0.5));
  state.counters["q1_us"] = 1e6 * quantile(seconds, 0.25);
  state.counters["q3_us"] = 1e6 * quantile(seconds, 0.75);
}

/// An executor that can time each kernel.
class timing_executor : public cuda::executor {
 public:
  using cuda::executor::executor;
  template <class Scheme>
  using run_pools = cuda::run_pools<Scheme, timing_executor>;
  template <class Scheme>
  using kept_selections = cuda::kept_selections<Scheme, timing_executor>;
  std::map<std::string, std::vector<double>>* times = nullptr;

  template <int Threads, class Kernel>
  void launch(cuda::grid_size blocks, i64 shared, Kernel const& kernel) const {
    if (!times) return executor::launch<Threads>(blocks, shared, kernel);
    device_clock clock;
    hold(60);
    clock.start(stream());
    executor::launch<Threads>(blocks, shared, kernel);
    clock.stop(stream());
    std::string name = typeid(Kernel).name();
    for (char const* const known : {"prepare_points", "prepare", "score_points", "score_planes", "score", "select", "count", "collect", "write", "resolve",
                                    "fetch_and_attend", "fetch", "attend", "finish", "append", "seal_step", "reduce"})
      if (name.find(std::string(known) + "_kernel") != std::string::npos) {
        name = known;
        break;
      }
    (*times)[name].push_back(clock.seconds());
  }
};

/// x = keep * x + added * nearly normal numbers.
template <class T>
__global__ void blend_kernel(T* x, i64 n, float keep, float added, unsigned seed) {
  for (i64 i = blockIdx.x * i64{blockDim.x} + threadIdx.x; i < n; i += i64{gridDim.x} * blockDim.x) {
    float sum = 0;  // of four uniform numbers
    unsigned z = unsigned(i) * 0x9e3779b9u + seed;
    for (int k = 0; k < 4; ++k) {
      z = (z ^ z >> 16) * 0x85ebca6bu;
      z = (z ^ z >> 13) * 0xc2b2ae35u;
      z ^= z >> 16;
      sum += float(z >> 8) * 0x1p-24f - 0.5f;
    }
    x[i] = from_float<T>((keep > 0 ? keep * to_float(x[i]) : 0.0f) + added * sum * 1.7320508f);
  }
}
template <class T>
void blend(cuda::executor const& on, cuda::device_buffer<T>& x, float keep, float added, unsigned seed) {
  blend_kernel<<<1024, 256, 0, on.stream()>>>(x.data(), i64(x.size()), keep, added, seed);
  cuda::check(cudaGetLastError(), "blend");
}
template <class T = bf16>
cuda::device_buffer<T> random_rows(cuda::executor const& on, i64 n, unsigned seed, float spread = 1) {
  auto x = on.allocate<T>(n);
  blend(on, x, 0, spread, seed);
  return x;
}

template <class Scheme>
struct in_device_memory : Scheme {
  using tier = cellar::tier::device_memory;
};

struct problem_sizes {
  i64 tokens = 32768, batch = 1;
  int kv_heads = 8, group = 4;
  i64 selected = 2048;  ///< Tokens.
  i64 layers = 0;       ///< 0: as many as no cache of the device holds, two to eight.
};

/// A cache full of random prompts, and the rows of a step.
template <class Scheme>
class problem {
 public:
  static constexpr int head_dim = Scheme::head_dim;

  explicit problem(problem_sizes const& s)
      : on(device_benchmark::stream()),
        sizes_(s),
        layers_(s.layers > 0 ? s.layers : cold_layers(s)),
        cache_(on, shape(), {.sequences = int(s.batch), .tokens = s.tokens + generated, .generated_tokens = generated}, allowed()) {
    i64 const row = i64{s.kv_heads} * head_dim;
    {
      auto k = random_rows(on, layers_ * s.tokens * row, 1), v = random_rows(on, layers_ * s.tokens * row, 2);
      device_clock clock;
      for (i64 i = 0; i < s.batch; ++i) {
        auto const id = cache_.begin_prompt(prompt_staging<bf16>{k.data(), v.data(), s.tokens, s.tokens});
        clock.start(on.stream());
        cache_.finish_prompt(on, id);
        clock.stop(on.stream());
        seal_seconds_.push_back(clock.seconds());
        entries_.push_back({id, 1});
      }
    }
    k_ = random_rows(on, s.batch * row, 3), v_ = random_rows(on, s.batch * row, 4);
    q_ = random_rows(on, layers_ * s.batch * s.group * row, 5);
    out_ = on.template allocate<bf16>(s.batch * s.group * row);
  }

  /// Takes back the tokens that steps have appended, where that costs nothing: they stay near, and would be attended to.
  void restart() {
    if constexpr (Scheme::keeps_generated)
      for (auto const& entry : entries_) cache_.truncate(on, entry.sequence, sizes_.tokens);
  }
  /// Each kernel's times, over some steps of all layers. `between` runs before each step.
  template <class Between>
  std::map<std::string, std::vector<double>> kernel_seconds(int steps, Between const& between) {
    std::map<std::string, std::vector<double>> times;
    std::vector<std::pair<i64, i64>> counts;
    for (int i = -2; i < steps; ++i) {
      between();
      counts.push_back(hits_and_misses());
      plan();
      on.times = i < 0 ? nullptr : &times;
      step();
      on.wait();
    }
    on.times = nullptr;
    note(counts);
    return times;
  }
  /// Times of a layer in a captured step.
  template <class Between>
  std::vector<double> layer_seconds(int steps, Between const& between) {
    plan();
    cudaGraph_t graph{};
    cudaGraphExec_t run{};
    cuda::check(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    step();
    cuda::check(cudaStreamEndCapture(on.stream(), &graph), "cudaStreamEndCapture");
    cuda::check(cudaGraphInstantiate(&run, graph, 0), "cudaGraphInstantiate");
    cuda::check(cudaGraphLaunch(run, on.stream()), "cudaGraphLaunch");
    std::vector<std::pair<i64, i64>> counts;
    auto all = all_seconds(
        steps, [&] { cuda::check(cudaGraphLaunch(run, on.stream()), "cudaGraphLaunch"); },
        [&] {
          between();
          counts.push_back(hits_and_misses());
          plan();
          cache_.complete();
        });
    note(counts);
    cudaGraphExecDestroy(run), cudaGraphDestroy(graph);
    for (double& s : all) s /= double(layers_);
    return all;
  }
  /// The next step's queries: so much of the last one's, the rest new.
  void turn_queries(float keep) { blend(on, q_, keep, std::sqrt(std::max(0.0f, 1 - keep * keep)), ++turns_); }
  /// How much to keep for about that share of a step's selected runs to be near: all for 1, nothing for 0, else found by steps. The near pools hold what the
  /// last step selected and no more, so that hits follow from the angle alone.
  float keep_for(double hit_rate) {
    if (!has_pools || hit_rate >= 1) return 1;
    if (hit_rate <= 0) return 0;
    double least = 0, most = std::acos(0.0);  // the angle between the queries of two steps: the wider, the fewer hits
    for (int i = -1; i < 10; ++i) {
      double const angle = (least + most) / 2;
      turn_queries(float(std::cos(angle)));
      auto const before = hits_and_misses();
      plan();
      step();
      if (i < 0) continue;  // the near pools have the last selection from here on
      auto const after = hits_and_misses();
      double const hits = double(after.first - before.first), misses = double(after.second - before.second);
      (hits > hit_rate * (hits + misses) ? least : most) = angle;
    }
    return float(std::cos(least));
  }

  std::vector<double> const& seal_seconds() const { return seal_seconds_; }  ///< Of each prompt, all layers.
  i64 layers() const { return layers_; }
  auto const& cache() const { return cache_; }
  double summary_bytes() const { return double(cache_.usage(entries_[0].sequence).summary * sizes_.batch); }  ///< Of a layer.
  i64 attended_blocks() const {                                                                               ///< Of a KV head.
    auto const id = entries_[0].sequence;
    return operation::selects_everything<Scheme> ? cache_.sealed_blocks(id) : cache_.selected_blocks(id);
  }
  double far_bytes() const { return double(attended_blocks() * cache_.map().geometry().block_bytes() * sizes_.batch); }  ///< Attended, of a layer.
  int spans() const {  ///< Of keys, which leave partials to be merged.
    operation::key_list<Scheme, operation::span_sizes<Scheme, 4>::chunk> list;
    auto const id = entries_[0].sequence;
    list.sinks = cache_.length(id) - cache_.sealed_blocks(id) * Scheme::block_tokens;  // and the tail
    list.far = std::min(attended_blocks(), cache_.sealed_blocks(id)) * Scheme::block_tokens;
    return list.filled_spans(operation::most_spans);
  }
  static constexpr bool has_pools = timing_executor::run_pools<Scheme>::is_used && !operation::selects_everything<Scheme>;
  std::vector<double> const& hit_rates() const { return hit_rates_; }  ///< Of each step that was timed last.
  /// The same, of a layer.
  double missed_bytes() const { return missed_.empty() ? 0 : quantile(missed_, 0.5) / double(layers_) * double(cache_.map().geometry().slice_bytes()); }

  timing_executor on;

 private:
  static constexpr i64 generated = 256;

  static i64 cold_layers(problem_sizes const& s) {
    memory_map<Scheme> const map{model_shape{.layers = 1, .query_heads = s.group * s.kv_heads, .kv_heads = s.kv_heads, .head_dim = head_dim}};
    i64 const blocks = s.batch * s.tokens / Scheme::block_tokens;
    i64 const read = operation::selects_everything<Scheme> ? blocks * map.geometry().block_bytes()
                                                           : ceil_div(blocks, i64{memory_map<Scheme>::tile_blocks}) * map.tile_copies() * map.tile();
    return std::clamp<i64>(ceil_div(i64{128} << 20, std::max<i64>(read, 1)), 2, 8);
  }
  std::pair<i64, i64> hits_and_misses() const {
    if constexpr (has_pools)
      return cache_.pool_hits_and_misses(on);
    else
      return {};
  }
  /// Of counts before each step, two of which were not timed.
  void note(std::vector<std::pair<i64, i64>>& counts) {
    hit_rates_.clear(), missed_.clear();
    counts.push_back(hits_and_misses());
    for (std::size_t i = 2; i + 1 < counts.size(); ++i) {
      double const hits = double(counts[i + 1].first - counts[i].first), misses = double(counts[i + 1].second - counts[i].second);
      if (hits + misses == 0) return;  // there are no pools
      hit_rates_.push_back(hits / (hits + misses));
      missed_.push_back(misses);
    }
  }
  model_shape shape() {
    for (int i = 0; i < head_dim / 2; ++i) frequencies_.push_back(std::pow(5e5, -2.0 * i / head_dim));
    return {.layers = int(layers_),
            .query_heads = sizes_.group * sizes_.kv_heads,
            .kv_heads = sizes_.kv_heads,
            .head_dim = head_dim,
            .softmax_scale = 0,
            .rotary = {rotary_pairing::half_split, {frequencies_.data(), head_dim / 2}}};
  }
  budget allowed() const {
    budget b = Scheme::published;
    if (b.tokens > 0 || b.share > 0) b.tokens = sizes_.selected, b.share = 0;
    b.dense_layers = 0;
    return b;
  }
  void plan() { cache_.plan(on, {entries_.data(), i64(entries_.size())}); }
  void step() {
    auto const view = [&](auto& x, i64 layer, int heads) {
      return packed_heads(x.data() + layer * sizes_.batch * heads * head_dim, sizes_.batch, heads, head_dim);
    };
    int const query_heads = sizes_.group * sizes_.kv_heads;
    for (int layer = 0; layer < layers_; ++layer) {
      cache_.append(on, layer, view(k_, 0, sizes_.kv_heads), view(v_, 0, sizes_.kv_heads));
      cache_.template attend<bf16>(on, layer, view(q_, layer, query_heads), view(out_, 0, query_heads));
    }
  }

  problem_sizes sizes_;
  i64 layers_;
  std::vector<double> frequencies_;
  cellar::cache<Scheme, timing_executor> cache_;
  std::vector<batch_entry> entries_;
  std::vector<double> seal_seconds_, hit_rates_, missed_;
  cuda::device_buffer<bf16> k_, v_, q_, out_;
  unsigned turns_ = 5;
};

inline std::pair<std::string, std::shared_ptr<void>>& kept_thing() {
  static auto* const thing = new std::pair<std::string, std::shared_ptr<void>>;
  return *thing;
}

/// One thing that is made once for benchmarks that follow each other and name it alike: filling a cache takes longer than its steps. It is never destroyed at
/// the program's end, when CUDA's runtime may be gone.
template <class T, class... Arguments>
T& kept(std::string const& name, Arguments&&... arguments) {
  auto& [known, what] = kept_thing();
  if (std::string const full = typeid(T).name() + (" " + name); known != full) {
    known.clear(), what.reset();  // first, for the memory
    // Not by make_shared: nvcc 13.0 loses a kernel that is first asked for below std::construct_at.
    what = std::shared_ptr<void>(new T(std::forward<Arguments>(arguments)...), [](void* thing) { delete static_cast<T*>(thing); });
    known = full;
  }
  return *static_cast<T*>(what.get());
}
/// A problem of these sizes, as it was after its prompts but for what is in the near pools.
template <class Scheme>
problem<Scheme>& kept_problem(problem_sizes const& s) {
  std::string name;
  for (i64 const x : {s.tokens, s.batch, i64{s.kv_heads}, i64{s.group}, s.selected, s.layers}) name += std::to_string(x) + " ";
  auto& p = kept<problem<Scheme>>(name, s);
  p.restart();
  return p;
}

/// A layer's time in a captured step, and its kernels', where about so many percent of the selected runs are near. Schemes without near pools have all near.
template <class Scheme>
void report_step(benchmark::State& state, problem<Scheme>& p, i64 hit_percent) {
  float const keep = p.keep_for(double(hit_percent) / 100);
  auto const turn = [&] { p.turn_queries(keep); };
  auto const kernels = p.kernel_seconds(4, turn);
  double sum = 0;
  for (auto const& [name, all] : kernels) {
    state.counters[name + "_us"] = 1e6 * quantile(all, 0.5);
    sum += quantile(all, 0.5);
  }
  auto const& device = limits_of_device::here();
  if (auto const fetch = kernels.find("fetch"); fetch != kernels.end())
    state.counters["fetch_of_link"] = p.missed_bytes() / quantile(fetch->second, 0.5) / device.to_device;
  auto const layers = p.layer_seconds(10, turn);
  double const seconds = quantile(layers, 0.5);
  report(state, layers);
  state.counters["layer_of_kernels"] = seconds / sum;
  state.counters["read_of_copy"] = (p.summary_bytes() + p.far_bytes()) / seconds / device.copy;
  if (!p.hit_rates().empty()) {
    state.counters["hit_rate"] = quantile(p.hit_rates(), 0.5);
    state.counters["hit_rate_most"] = quantile(p.hit_rates(), 1);  // no timed step had fewer misses
    state.counters["missed_MB"] = p.missed_bytes() * 1e-6;
    state.counters["missed_of_link"] = p.missed_bytes() / seconds / device.to_device;
  }
  device.count(state);
}

}  // namespace device_benchmark
