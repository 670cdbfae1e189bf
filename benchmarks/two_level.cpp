// Scoring by two levels against the fine level alone: time, and the share of blocks that the fine level scored. Keys are random, or drift and cluster: a
// model's keys are measured in docs/design.md.
#include "cellar/summary/two_level.hpp"
#include "cellar/codec/int8.hpp"
#include "cellar/summary/bounded_key.hpp"
#include "paired.hpp"

using namespace benchmarks;

namespace {

/// The fine level alone.
template <class Summary>
struct flat_summary : Summary {
  void score_group() = delete;
};
template <class Summary>
struct scored : scheme_defaults<head_dim> {
  static constexpr int block_tokens = 1;
  using summary = Summary;
  using reduce = cellar::select::mean_query;
  using select = cellar::select::top_k;
  using key_codec = cellar::codec::fp8_e4m3<>;  // far memory is hardly read here: small
  using value_codec = cellar::codec::fp8_e4m3<>;
};

using rows = cellar::summary::quantized_key<cellar::codec::identity<bf16>, 1>;
using codes = cellar::summary::quantized_key<cellar::codec::higgs<4, 256>>;

/// A walk of topics: runs of some forty tokens about one key, and all of it drifts.
std::vector<bf16> drifting_keys(i64 tokens) {
  auto x = random_rows<bf16>(tokens * kv_heads * head_dim, 1);
  auto const topics = random_rows<bf16>((tokens / 40 + 1) * kv_heads * head_dim, 3), drift = random_rows<bf16>(kv_heads * head_dim, 4);
  for (i64 t = 0; t < tokens; ++t)
    for (i64 i = 0; i < kv_heads * head_dim; ++i) {
      bf16& k = x[std::size_t(t * kv_heads * head_dim + i)];
      k = from_float<bf16>(to_float(k) * 0.5f + to_float(topics[std::size_t(t / 40 * kv_heads * head_dim + i)]) +
                           to_float(drift[std::size_t(i)]) * float(t) / float(tokens));
    }
  return x;
}

template <class Summary>
void score(benchmark::State& state, host::executor const& on, i64 tokens, bool drifts) {
  int const layers = int(std::max<i64>(1, 16384 / tokens));
  auto const keys = drifts ? drifting_keys(tokens + 1) : std::vector<bf16>{};
  budget const b{.tokens = 128, .sinks = 4, .window = 16};
  decoding<scored<Summary>> two(on, tokens, b, layers, 1, shape_of(1), keys);
  decoding<scored<flat_summary<Summary>>> one(on, tokens, b, layers, 1, shape_of(1), keys);
  paired timings;
  two.attend();
  one.attend();
  auto const &did = two.observe(), &did_alone = one.observe();
  double blocks = 0, all = 0;
  for (int i = 0; i < 15; ++i)
    timings.sample(
        [&] {
          two.attend();
          blocks += double(did.scored_blocks);
          double const seconds = did.seconds.score / on.workers();
          two.observe();
          return seconds;
        },
        [&] {
          one.attend();
          all += double(did_alone.scored_blocks);
          double const seconds = did_alone.seconds.score / on.workers();
          one.observe();
          return seconds;
        });
  timings.report(state, "speed_up");
  state.counters["scored_share"] = blocks / all;
}

}  // namespace

int main(int count, char** arguments) {
  for (int const threads : thread_counts())
    for (i64 const tokens : {4096, 16384, 65536})
      for (bool const drifts : {false, true}) {
        auto const with = [&](std::string const& what, auto f) {
          add("two_level/" + what + "/keys:" + (drifts ? "drifting" : "random") + "/tokens:" + std::to_string(tokens), threads,
              [f, tokens, drifts](benchmark::State& state, host::executor const& on) { f(state, on, tokens, drifts); });
        };
        with("boxes of 32, 2-bit codes", score<cellar::summary::two_level<cellar::summary::min_max<f16>, codes, 32>>);
        with("boxes of 8, exact rows", score<cellar::summary::two_level<cellar::summary::min_max<f16>, rows, 8>>);
        with("an eighth of boxes of 8, exact rows",
             score<cellar::summary::two_level<cellar::summary::min_max<f16>, rows, 8, cellar::summary::by_share<std::ratio<1, 8>>>>);
        with("4-bit codes, exact rows", score<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::higgs<2, 256>>, rows, 1>>);
        with("8-bit codes, exact rows", score<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::int8<>>, rows, 1>>);
      }
  return run(count, arguments);
}
