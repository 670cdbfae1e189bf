// Time of a step in one layer as work grows: with the tokens of a sequence, the budget, the batch, the heads, the threads. Milliseconds, and what the bytes
// read would take at the speed of the probe.
#include "paired.hpp"

using namespace benchmarks;

namespace {

struct work {
  i64 tokens = 65536, budget = 2048;
  int batch = 1, kv_heads = 2;
};

template <class Scheme>
void step(benchmark::State& state, host::executor const& on, work const& w) {
  int const layers = int(std::clamp<i64>(524288 / (w.tokens * w.batch * w.kv_heads), 1, 64));  // keys and values of 256 MiB, and the probe reads between
  budget b = Scheme::published;
  b.tokens = w.budget;
  b.share = 0;
  b.dense_layers = 0;
  decoding<Scheme> d(on, w.tokens, b, layers, w.batch, shape_of(1, 4 * w.kv_heads, w.kv_heads));
  bandwidth_probe probe(on);
  paired timings;
  d.attend();
  auto const& did = d.observe();
  for (int i = 0; i < 9; ++i) timings.sample([&] { return d.attend(); }, probe);
  report_of_probe(state, timings, d.summary_bytes() + double(did.moved_bytes) / double(did.attends));
}

}  // namespace

int main(int count, char** arguments) {
  int const all = thread_counts().back();
  auto const each = [&](std::string const& axis, i64 value, int threads, work const& w) {
    auto const with = [&](std::string const& scheme, auto f) {
      add("scaling/" + axis + "/" + scheme + "/" + std::to_string(value), threads, [=](benchmark::State& state, host::executor const& on) { f(state, on, w); });
    };
    with("dense", step<scheme::dense<head_dim>>);
    with("quest", step<scheme::quest<head_dim>>);
    with("mean_landmark", step<scheme::mean_landmark<head_dim>>);
    with("yakv", step<scheme::yakv<head_dim>>);
  };
  for (i64 const tokens : {4096, 16384, 65536, 262144, 1048576}) each("tokens", tokens, all, {.tokens = tokens});
  for (i64 const budget : {256, 1024, 4096, 16384}) each("budget", budget, all, {.budget = budget});
  for (int const batch : {1, 4, 16, 64}) each("batch", batch, all, {.tokens = 4096, .budget = 512, .batch = batch});
  for (int const heads : {1, 2, 4, 8}) each("kv_heads", heads, all, {.kv_heads = heads});
  for (int threads = 1; threads <= all; threads *= 2) each("threads", threads, threads, {.kv_heads = 1});
  return run(count, arguments);
}
