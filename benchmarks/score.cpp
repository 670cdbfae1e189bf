// Scoring all summaries of a sequence for 32 query heads over 8 KV heads, reduced to a score a block, by the bytes of the summaries.
#include "paired.hpp"

using namespace benchmarks;

namespace {

template <class Summary, int Tokens>
struct scored : scheme_defaults<head_dim> {
  static constexpr int block_tokens = Tokens;
  using summary = Summary;
  using select = cellar::select::top_k;
  using key_codec = cellar::codec::fp8_e4m3<>;  // far memory is not read here: small
  using value_codec = cellar::codec::fp8_e4m3<>;
};

template <class Scheme>
void score(benchmark::State& state, host::executor const& on, i64 tokens) {
  int const layers = int(std::max<i64>(1, 65536 / tokens));
  decoding<Scheme> d(on, tokens, {.tokens = 8 * Scheme::block_tokens, .sinks = 4, .window = 16}, layers);
  bandwidth_probe probe(on);
  paired timings;
  d.attend();
  for (int i = 0; i < 25; ++i) {
    auto const& did = d.observe();
    timings.sample(
        [&] {
          d.attend();
          return did.seconds.score / on.workers();
        },
        probe);
  }
  report_of_probe(state, timings, d.summary_bytes());
}

}  // namespace

int main(int count, char** arguments) {
  for (int const threads : thread_counts())
    for (i64 const tokens : {32768, 131072}) {
      auto const with = [&](std::string const& what, auto f) {
        add("score/" + what + "/tokens:" + std::to_string(tokens), threads,
            [f, tokens](benchmark::State& state, host::executor const& on) { f(state, on, tokens); });
      };
      with("mean of 8", score<scored<cellar::summary::mean<>, 8>>);
      with("min_max of 16", score<scored<cellar::summary::min_max<>, 16>>);
      with("box_digest of 16", score<scored<cellar::summary::box_digest<>, 16>>);
      if (tokens > 32768) continue;  // codes are slow to make
      with("2 bits, 256 points", score<scored<cellar::summary::quantized_key<cellar::codec::higgs<4, 256>>, 1>>);
      with("2 bits, 16 points", score<scored<cellar::summary::quantized_key<cellar::codec::higgs<2, 16>>, 1>>);
      with("2 bits, 256 points, centred",
           score<scored<cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::higgs<4, 256>, cellar::codec::rotated_mean>>, 1>>);
    }
  return run(count, arguments);
}
