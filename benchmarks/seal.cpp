// Sealing a prompt: encoding and summarizing keys and values, in readings of those keys and values (bf16) at the probe's speed.
#include "paired.hpp"

using namespace benchmarks;

namespace {

template <class Scheme>
void seal(benchmark::State& state, host::executor const& on) {
  constexpr i64 tokens = 4096;
  bandwidth_probe probe(on);
  paired timings;
  for (int i = 0; i < 5; ++i) timings.sample([&] { return decoding<Scheme>(on, tokens, Scheme::published, 1).seal_seconds; }, probe);
  double const bytes = 2.0 * tokens * kv_heads * head_dim * sizeof(bf16);
  timings.report(state, "of_probe", bytes / double(bandwidth_probe::bytes));
  state.counters["readings"] = 1 / double(state.counters["of_probe"]);
  state.counters["us_a_token"] = double(state.counters["ms"]) * 1e3 / tokens;
}

}  // namespace

int main(int count, char** arguments) {
  for (int const threads : thread_counts()) {
    add("seal/dense", threads, seal<scheme::dense<head_dim>>);
    add("seal/mean_landmark", threads, seal<scheme::mean_landmark<head_dim>>);
    add("seal/quest", threads, seal<scheme::quest<head_dim>>);
    add("seal/yakv", threads, seal<scheme::yakv<head_dim>>);
    add("seal/yakv_centred", threads, seal<scheme::yakv_centred<head_dim>>);
  }
  return run(count, arguments);
}
