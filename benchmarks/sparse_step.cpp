// A whole sparse step (score, select, gather, attend) at a budget of 2048 tokens, against dense attention to the same keys and values in bf16: its speed-up,
// and that as a share of what the bytes allow (all keys and values over summaries and selected rows).
#include "paired.hpp"

using namespace benchmarks;

namespace {

template <class Scheme>
void step(benchmark::State& state, host::executor const& on, i64 tokens, int sequences, int queries, int keys) {
  int const layers = int(std::max<i64>(1, 32768 / tokens / sequences));
  model_shape const shape = shape_of(layers, queries, keys);
  budget b = Scheme::published;
  b.tokens = 2048;
  b.share = 0;
  b.dense_layers = 0;
  decoding<Scheme> sparse(on, tokens, b, layers, sequences, shape);
  decoding<scheme::dense<head_dim>> dense(on, tokens, {}, layers, sequences, shape);
  paired timings;
  sparse.attend();
  dense.attend();
  auto const& did = sparse.observe();
  for (int i = 0; i < 15; ++i) timings.sample([&] { return sparse.attend(); }, [&] { return dense.attend(); });
  timings.report(state, "speed_up");
  double const bound = dense.far_bytes() / (sparse.summary_bytes() + double(did.moved_bytes) / double(did.attends));
  state.counters["bound"] = bound;
  state.counters["of_bound"] = double(state.counters["speed_up"]) / bound;
  double const calls = double(did.attends) * on.workers() / 1e3;  // milliseconds of wall time, if all workers are busy
  state.counters["score_ms"] = did.seconds.score / calls;
  state.counters["select_ms"] = did.seconds.select / calls;
  state.counters["fetch_ms"] = did.seconds.fetch / calls;
  state.counters["attend_ms"] = did.seconds.attend / calls;
}

}  // namespace

int main(int count, char** arguments) {
  auto const with = [&](std::string const& what, auto f, i64 tokens, int sequences, int queries, int keys, int threads) {
    add("sparse_step/" + what + "/tokens:" + std::to_string(tokens) + "/batch:" + std::to_string(sequences) + "/heads:" + std::to_string(queries) + "-" +
            std::to_string(keys),
        threads, [=](benchmark::State& state, host::executor const& on) { f(state, on, tokens, sequences, queries, keys); });
  };
  for (int const threads : thread_counts()) {
    for (i64 const tokens : {4096, 32768, 131072}) {
      with("mean_landmark", step<scheme::mean_landmark<head_dim>>, tokens, 1, 32, 8, threads);
      with("quest", step<scheme::quest<head_dim>>, tokens, 1, 32, 8, threads);
      if (tokens == 131072) continue;  // codes are slow to make
      with("yakv", step<scheme::yakv<head_dim>>, tokens, 1, 32, 8, threads);
      with("yakv_centred", step<scheme::yakv_centred<head_dim>>, tokens, 1, 32, 8, threads);
    }
    with("mean_landmark", step<scheme::mean_landmark<head_dim>>, 8192, 8, 32, 8, threads);
    with("mean_landmark", step<scheme::mean_landmark<head_dim>>, 32768, 1, 8, 8, threads);
    with("mean_landmark", step<scheme::mean_landmark<head_dim>>, 32768, 1, 32, 2, threads);
  }
  return run(count, arguments);
}
