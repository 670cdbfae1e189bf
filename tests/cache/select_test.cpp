#include "cache/reference.hpp"

using namespace cellar;

namespace {

constexpr int d = 64;

/// Logits that a summary promises for one query and one block of keys [block_tokens][d], in double, and the rounding to allow for.
struct promise {
  double logit, slack;
};
template <class S>
promise promised(summary::mean<S> const&, float const* q, std::vector<float> const& block, auto const&, std::int64_t) {
  std::int64_t const tokens = std::int64_t(block.size()) / d;
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    double mean = 0;
    for (std::int64_t i = 0; i < tokens; ++i) mean += double(block[std::size_t(i * d + c)]) / double(tokens);
    p.logit += double(q[c]) * mean;
    p.slack += std::abs(double(q[c]) * mean) * 0x1p-8;
  }
  return p;
}
template <class S>
promise promised(summary::min_max<S> const&, float const* q, std::vector<float> const& block, auto const&, std::int64_t) {
  std::int64_t const tokens = std::int64_t(block.size()) / d;
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    double best = -1e300;
    for (std::int64_t i = 0; i < tokens; ++i) best = std::max(best, double(q[c]) * double(block[std::size_t(i * d + c)]));
    p.logit += best;
    p.slack += std::abs(best) * 0x1p-7;
  }
  return p;
}
template <int Tokens>
promise promised(summary::quantized_key<codec::centred<codec::identity<float>, codec::block_mean<Tokens>>> const&, float const* q,
                 std::vector<float> const& block, auto const&, std::int64_t) {
  promise p{0, 0};  // the centre that is subtracted is added again, whatever it is
  for (int c = 0; c < d; ++c) {
    p.logit += double(q[c]) * double(block[std::size_t(c)]);
    p.slack += std::abs(double(q[c])) * 4e-6;
  }
  return p;
}
template <class Codec>
promise promised(summary::quantized_key<Codec> const&, float const* q, std::vector<float> const& block, auto const& coded, std::int64_t position) {
  auto const landmark = coded(Codec{}, block, position);
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    p.logit += double(q[c]) * double(landmark[std::size_t(c)]);
    p.slack += std::abs(double(q[c]) * double(landmark[std::size_t(c)])) * 1e-5;
  }
  return p;
}

/// The ids that a step chose are those of the highest scores by the scheme's definition, but for ties within rounding.
template <class Scheme>
void check_selection(float bias) {
  int const group = 3;
  std::int64_t const tokens = 230, window = 8, sinks = 2, budget_tokens = 48;
  reference<Scheme> ref(1, 2, group, 11, bias);
  trial<Scheme> t(ref, {tokens}, 6, {.tokens = budget_tokens, .sinks = sinks, .window = window});
  auto const& s = t.data[0];
  for (int step = 0; step < 6; ++step) {
    std::int64_t const length = t.lengths[0];
    t.step({0}, {1}, 1, false);
    auto const q = random_numbers(std::uint64_t(length * 100)).normals(2 * group * d, 2);  // as trial draws them
    std::int64_t const blocks = t.cache.sealed_blocks(t.ids[0]);
    for (int head = 0; head < 2; ++head) {
      auto const prompt_keys = ref.head_rows(s.keys, s, 0, head, 0, tokens);
      auto const coded = [&](auto coder, std::vector<float> const& rows, std::int64_t position) { return ref.coded(coder, rows, prompt_keys, position); };
      std::vector<double> scores(std::size_t(blocks), -1e300);
      double slack = 0;
      for (int g = 0; g < group; ++g) {
        std::vector<double> logits;
        for (std::int64_t b = 0; b < blocks; ++b) {
          std::int64_t const first = sinks + b * Scheme::block_tokens;
          auto const p = promised(typename Scheme::summary{}, q.data() + (head * group + g) * d,
                                  ref.head_rows(s.keys, s, 0, head, first, first + Scheme::block_tokens), coded, first);
          logits.push_back(p.logit * double(ref.shape().scale()));
          slack = std::max(slack, p.slack * double(ref.shape().scale()));
        }
        double const top = *std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (double const x : logits) sum += std::exp(x - top);
        for (std::size_t b = 0; b < logits.size(); ++b) scores[b] = std::max(scores[b], logits[b] - top - std::log(sum));
      }
      auto const ids = *t.cache.selected(0, head);
      REQUIRE(ids.count == budget_tokens / Scheme::block_tokens);
      std::vector<bool> is_chosen(scores.size());
      for (auto const id : ids) is_chosen[std::size_t(number(id))] = true;
      double lowest_chosen = 1e300, highest_left = -1e300;
      for (std::size_t b = 0; b < scores.size(); ++b)
        (is_chosen[b] ? lowest_chosen = std::min(lowest_chosen, scores[b]) : highest_left = std::max(highest_left, scores[b]));
      CHECK(lowest_chosen >= highest_left - 4 * slack - 1e-4);
    }
  }
}

template <int D>
struct block_mean_landmarks : scheme::yakv<D, float> {  // landmarks centred on the mean of 64 tokens: exact but for that mean's rounding
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::identity<float>, cellar::codec::block_mean<64>>>;
};

}  // namespace

TEST_CASE("selected blocks are those of the highest scores, by each scheme's own definition") {
  check_selection<scheme::mean_landmark<d, float>>(0);
  check_selection<scheme::quest<d, float>>(0);
  check_selection<scheme::yakv<d, float>>(0);
  check_selection<scheme::yakv_centred<d, float>>(0);
  check_selection<scheme::yakv_centred<d, float>>(3);
  check_selection<block_mean_landmarks<d>>(0);
}

TEST_CASE("equal keys tie, and ties go to the first blocks") {
  using Scheme = scheme::mean_landmark<d, float>;
  reference<Scheme> ref(1, 1, 2, 12);
  auto s = ref.sequence(160, 170);
  for (std::int64_t p = 1; p < 170; ++p) std::copy_n(ref.row(s.keys, s, 0, 0), d, ref.row(s.keys, s, 0, p));
  std::vector<float> keys, values, q = ref.random().normals(2 * d), out(q.size());
  host::executor const on;
  cache<Scheme> c(on, ref.shape(), {.sequences = 1, .tokens = 170}, {.tokens = 40});
  auto const id = c.begin_prompt(ref.staging(s, keys, values));
  c.finish_prompt(on, id);
  batch_entry const one{id, 1};
  c.plan(on, {&one, 1});
  c.append(on, 0, packed_heads<float const>(ref.row(s.keys, s, 0, 160), 1, 1, d), packed_heads<float const>(ref.row(s.values, s, 0, 160), 1, 1, d));
  c.attend(on, 0, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
  auto const ids = *c.selected(0, 0);
  REQUIRE(ids.count == 5);
  for (std::int64_t i = 0; i < 5; ++i) CHECK(number(ids[i]) == i);
}

TEST_CASE("the published budgets are shares and tokens of the prompt") {
  reference<scheme::yakv<d>> ref(1, 1, 1, 13);
  trial<scheme::yakv<d>> t(ref, {640, 33}, 1, scheme::yakv<d>::published);
  t.step({0, 1}, {1, 1}, 1, false);
  CHECK(t.cache.selected(0, 0)->count == 20);  // 3.125 % of 640
  CHECK(t.cache.selected(1, 0)->count == 0);   // all of it is in the window
  CHECK(t.cache.selected_blocks(t.ids[1]) == 1);
}
