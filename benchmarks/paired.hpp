#pragma once
// What the benchmarks share: timings in pairs with a yardstick, a probe of the memory's bandwidth, and a cache full of random keys to decode from.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cellar/cellar.hpp"

namespace benchmarks {

using namespace cellar;

template <class F>
double seconds_of(F const& f) {
  auto const start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double quantile(std::vector<double> x, double q) {
  std::sort(x.begin(), x.end());
  return x[std::size_t(q * double(x.size() - 1) + 0.5)];
}

/// Timings of an operation and of a yardstick, taken in turns: machines drift, and ratios of neighbours do not.
class paired {
 public:
  template <class Operation, class Yardstick>
  void sample(Operation const& operation, Yardstick const& yardstick) {
    operation_.push_back(operation());
    yardstick_.push_back(yardstick());
  }

  /// Counters: `name`, the median of yardstick / operation times `factor`, and its quartiles; milliseconds of the operation; the yardstick's p90 / p10.
  void report(benchmark::State& state, std::string const& name, double factor = 1) const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < operation_.size(); ++i) ratios.push_back(factor * yardstick_[i] / operation_[i]);
    state.counters[name] = quantile(ratios, 0.5);
    state.counters[name + "_low"] = quantile(ratios, 0.25);
    state.counters[name + "_high"] = quantile(ratios, 0.75);
    state.counters["ms"] = 1e3 * quantile(operation_, 0.5);
    state.counters["yardstick_spread"] = quantile(yardstick_, 0.9) / quantile(yardstick_, 0.1);
    state.SetIterationTime(quantile(operation_, 0.5));
  }
  double yardstick_median() const { return quantile(yardstick_, 0.5); }

 private:
  std::vector<double> operation_, yardstick_;
};

/// Reads memory that no cache holds, by as many threads as the operation has: what the machine can do at best.
class bandwidth_probe {
 public:
  explicit bandwidth_probe(host::executor const& on) : on_(on), memory_(bytes / sizeof(std::uint64_t), 1) {}

  static constexpr i64 bytes = i64{1} << 27;

  double operator()() const {
    return seconds_of([&] {
      i64 const workers = on_.workers(), each = i64(memory_.size()) / workers / 64 * 64;
      on_.for_each(workers, [&](i64 item, int) {
        std::uint64_t sums[8] = {};
        std::uint64_t const* const from = memory_.data() + item * each;
        for (i64 i = 0; i < each; i += 8) {
          __builtin_prefetch(from + i + 512, 0, 2);
          for (int j = 0; j < 8; ++j) sums[j] += from[i + j];
        }
        std::uint64_t all = 0;
        for (std::uint64_t const s : sums) all += s;
        benchmark::DoNotOptimize(all);
      });
    });
  }

 private:
  host::executor on_;
  std::vector<std::uint64_t> memory_;
};

/// Reports the operation's bytes a second as a share of the probe's, and the probe's GB/s.
inline void report_of_probe(benchmark::State& state, paired const& timings, double operation_bytes) {
  timings.report(state, "of_probe", operation_bytes / double(bandwidth_probe::bytes));
  state.counters["probe_GB/s"] = double(bandwidth_probe::bytes) / timings.yardstick_median() / 1e9;
}

inline constexpr int head_dim = 128, kv_heads = 8, query_heads = 32;

inline std::vector<double> const& inverse_frequencies() {
  static std::vector<double> const all = [] {
    std::vector<double> x;
    for (int i = 0; i < head_dim / 2; ++i) x.push_back(std::pow(5e5, -2.0 * i / head_dim));
    return x;
  }();
  return all;
}

inline model_shape shape_of(int layers, int queries = query_heads, int keys = kv_heads) {
  return {.layers = layers,
          .query_heads = queries,
          .kv_heads = keys,
          .head_dim = head_dim,
          .rotary = {.pairing = rotary_pairing::half_split, .inverse_frequencies = {inverse_frequencies().data(), head_dim / 2}}};
}

/// Normal numbers, drawn fast: from a table in an order that does not repeat with any row.
template <class T>
std::vector<T> random_rows(i64 n, unsigned seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<T> table(65521);
  for (T& x : table) x = from_float<T>(normal(engine));
  std::vector<T> all(static_cast<std::size_t>(n));
  std::size_t at = 0;
  for (T& x : all) {
    x = table[at];
    at = (at + 4099) % table.size();
    if (at < 7) at = engine() % table.size();
  }
  return all;
}

/// Sequences of one length in a cache of several layers, whose prompt is the same in each: decoding them layer by layer reads cold memory.
template <class Scheme, class T = bf16>
class decoding {
 public:
  /// keys: of tokens + 1 positions; random ones where there are none.
  decoding(host::executor const& on, i64 tokens, budget const& budget, int layers, int sequences = 1, model_shape const& one_layer = shape_of(1),
           std::vector<T> keys = {})
      : on_(on),
        shape_([&] {
          model_shape s = one_layer;
          s.layers = layers;
          return s;
        }()),
        cache_(on, shape_, {.sequences = sequences, .tokens = tokens + 64}, budget),
        keys_(keys.empty() ? random_rows<T>((tokens + 1) * width(), 1) : std::move(keys)),
        values_(random_rows<T>((tokens + 1) * width(), 2)) {
    std::vector<T> all_keys, all_values;
    for (int layer = 0; layer < layers; ++layer) {
      all_keys.insert(all_keys.end(), keys_.begin(), keys_.end() - width());
      all_values.insert(all_values.end(), values_.begin(), values_.end() - width());
    }
    for (int s = 0; s < sequences; ++s) {
      auto const id = cache_.begin_prompt(prompt_staging<T>{all_keys.data(), all_values.data(), tokens, tokens});
      seal_seconds = seconds_of([&] { cache_.finish_prompt(on_, id); });
      batch_.push_back({id, 1});
    }
    out_.resize(std::size_t(sequences * shape_.query_heads * head_dim));
    plan();
  }

  /// Attends in the next layer, with new queries. Returns seconds.
  double attend() {
    if (layer_ == shape_.layers) plan();
    queries_ = random_rows<T>(i64(out_.size()), ++seed_);
    return seconds_of([&] {
      cache_.attend(on_, layer_++, packed_heads<T const>(queries_.data(), i64(batch_.size()), shape_.query_heads, head_dim),
                    packed_heads(out_.data(), i64(batch_.size()), shape_.query_heads, head_dim));
    });
  }
  /// What the attend calls from here on do, by stage.
  statistics& observe() {
    cache_.observe(&statistics_);
    return statistics_ = {};
  }
  /// Bytes of one layer of all sequences (usage is a layer's).
  double far_bytes() const { return double(cache_.usage(batch_[0].sequence).far) * double(batch_.size()); }
  double summary_bytes() const { return double(cache_.usage(batch_[0].sequence).summary) * double(batch_.size()); }

  double seal_seconds = 0;  ///< Of the last prompt, in all layers.

 private:
  i64 width() const { return i64{shape_.kv_heads} * head_dim; }
  void plan() {
    cache_.plan(on_, {batch_.data(), i64(batch_.size())});
    std::vector<T> k, v;
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      k.insert(k.end(), keys_.end() - width(), keys_.end());
      v.insert(v.end(), values_.end() - width(), values_.end());
    }
    for (int layer = 0; layer < shape_.layers; ++layer)
      cache_.append(on_, layer, packed_heads<T const>(k.data(), i64(batch_.size()), shape_.kv_heads, head_dim),
                    packed_heads<T const>(v.data(), i64(batch_.size()), shape_.kv_heads, head_dim));
    layer_ = 0;
  }

  host::executor on_;
  model_shape shape_;
  cache<Scheme> cache_;
  std::vector<T> keys_, values_, queries_, out_;
  std::vector<batch_entry> batch_;
  statistics statistics_;
  int layer_ = 0;
  unsigned seed_ = 100;
};

/// Registers f(state, executor) once: it takes its own samples.
template <class F>
void add(std::string const& name, int threads, F const& f) {
  benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(),
                               [f, threads](benchmark::State& state) {
                                 host::thread_pool pool(threads);
                                 host::executor const on(pool);
                                 for (auto _ : state) f(state, on);
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

/// 1, and all threads where there are more.
inline std::vector<int> thread_counts() {
  int const all = int(std::max(1u, std::thread::hardware_concurrency()));
  return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
}

inline int run(int count, char** arguments) {
  benchmark::AddCustomContext("vector_level", std::to_string(int(host::best_vector_level())));
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace benchmarks
