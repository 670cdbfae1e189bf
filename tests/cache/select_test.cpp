#include "cache/reference.hpp"

using namespace cellar;

namespace {

constexpr int d = 64;

/// Logits that a summary promises for one query and one block of keys [block_tokens][d], in double, and the rounding to allow for.
struct promise {
  double logit, slack;
};
constexpr double f32_sum = (d + 16) * 0x1p-24;  // a sum of d products, of means over at most 16 keys
promise promised(summary::mean<float> const&, float const* q, std::vector<float> const& block, auto const&, std::int64_t) {
  std::int64_t const tokens = std::int64_t(block.size()) / d;
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    double mean = 0;
    for (std::int64_t i = 0; i < tokens; ++i) mean += double(block[std::size_t(i * d + c)]) / double(tokens);
    p.logit += double(q[c]) * mean;
    p.slack += std::abs(double(q[c]) * mean) * f32_sum;
  }
  return p;
}
promise promised(summary::min_max<float> const&, float const* q, std::vector<float> const& block, auto const&, std::int64_t) {
  std::int64_t const tokens = std::int64_t(block.size()) / d;
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    double best = -1e300;
    for (std::int64_t i = 0; i < tokens; ++i) best = std::max(best, double(q[c]) * double(block[std::size_t(i * d + c)]));
    p.logit += best;
    p.slack += std::abs(best) * f32_sum;
  }
  return p;
}
template <int Tokens>
promise promised(summary::quantized_key<codec::centred<codec::identity<float>, codec::block_mean<Tokens>>> const&, float const* q,
                 std::vector<float> const& block, auto const&, std::int64_t) {
  promise p{0, 0};  // the centre that is subtracted is added again, whatever it is
  for (int c = 0; c < d; ++c) {
    p.logit += double(q[c]) * double(block[std::size_t(c)]);
    p.slack += std::abs(double(q[c])) * 4e-6;  // an f32 key of up to 30 less and plus the centre, and the sum
  }
  return p;
}
template <class Codec>
promise promised(summary::quantized_key<Codec> const&, float const* q, std::vector<float> const& block, auto const& coded, std::int64_t position) {
  auto const landmark = coded(Codec{}, block, position);
  promise p{0, 0};
  for (int c = 0; c < d; ++c) {
    p.logit += double(q[c]) * double(landmark[std::size_t(c)]);
    p.slack += std::abs(double(q[c]) * double(landmark[std::size_t(c)])) * f32_sum;
  }
  return p;
}

/// The ids that a step of `new_tokens` chose are those of the highest scores by the scheme's definition, but for ties within rounding.
template <class Scheme>
void check_selection(float bias, std::int64_t new_tokens = 1) {
  int const group = 3;
  std::int64_t const tokens = 230, window = 8, sinks = 2, budget_tokens = 48;
  reference<Scheme> ref(1, 2, group, 11, bias);
  trial<Scheme> t(ref, {tokens}, 6 * new_tokens, {.tokens = budget_tokens, .sinks = sinks, .window = window}, {}, new_tokens);
  auto const& s = t.data[0];
  for (int step = 0; step < 6; ++step) {
    std::int64_t const length = t.lengths[0];
    t.step({0}, {new_tokens}, 1, false);
    std::vector<float> q;  // [token][head][d], as trial draws them
    for (std::int64_t i = 0; i < new_tokens; ++i) {
      auto const one = random_numbers(std::uint64_t((length + i) * 100)).normals(2 * group * d, 2);
      q.insert(q.end(), one.begin(), one.end());
    }
    auto const blocks = std::size_t(t.cache.sealed_blocks(t.ids[0]));
    for (int head = 0; head < 2; ++head) {
      auto const prompt_keys = ref.head_rows(s.keys, s, 0, head, 0, tokens);
      auto const coded = [&](auto coder, std::vector<float> const& rows, std::int64_t position) { return ref.coded(coder, rows, prompt_keys, position); };
      std::vector<std::vector<double>> logits;  // [query row][block]
      double slack = 0;                         // of one logit
      for (std::int64_t row = 0; row < new_tokens * group; ++row) {
        logits.emplace_back();
        for (std::size_t b = 0; b < blocks; ++b) {
          std::int64_t const first = sinks + std::int64_t(b) * Scheme::block_tokens;
          auto const p = promised(typename Scheme::summary{}, q.data() + ((row / group * 2 + head) * group + row % group) * d,
                                  ref.head_rows(s.keys, s, 0, head, first, first + Scheme::block_tokens), coded, first);
          logits.back().push_back(p.logit * double(ref.shape().scale()));
          slack = std::max(slack, p.slack * double(ref.shape().scale()));
        }
      }
      std::vector<double> scores(blocks, 0.0);
      double score_slack = double(logits.size()) * slack;  // of a sum of logits; that of their mean is smaller
      if constexpr (std::is_same_v<typename Scheme::reduce, select::max_of_softmaxes>) {
        scores.assign(blocks, -1e300);
        for (auto const& row : logits) {
          double const top = *std::max_element(row.begin(), row.end());
          double sum = 0;
          for (double const x : row) sum += std::exp(x - top);
          for (std::size_t b = 0; b < blocks; ++b) scores[b] = std::max(scores[b], row[b] - top - std::log(sum));
        }
        score_slack = 2 * slack + 1e-5;  // the logit's, the normaliser's, and the f32 logarithm of the latter
      } else {
        bool const is_mean = std::is_same_v<typename Scheme::reduce, select::mean_query>;
        for (auto const& row : logits)
          for (std::size_t b = 0; b < blocks; ++b) scores[b] += is_mean ? row[b] / double(logits.size()) : row[b];
      }
      auto const ids = *t.cache.selected(0, head);
      REQUIRE(ids.count == budget_tokens / Scheme::block_tokens);
      std::vector<bool> is_chosen(blocks);
      for (auto const id : ids) is_chosen[std::size_t(number(id))] = true;
      double lowest_chosen = 1e300, highest_left = -1e300;
      for (std::size_t b = 0; b < blocks; ++b)
        (is_chosen[b] ? lowest_chosen = std::min(lowest_chosen, scores[b]) : highest_left = std::max(highest_left, scores[b]));
      CHECK(lowest_chosen >= highest_left - 2 * score_slack);
      CHECK(2 * score_slack < 0.01 * (*std::max_element(scores.begin(), scores.end()) - *std::min_element(scores.begin(), scores.end())));  // it can fail
    }
  }
}

template <int D>
struct block_mean_landmarks : scheme::yakv<D, float> {  // landmarks centred on the mean of 64 tokens: exact but for that mean's rounding
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::identity<float>, cellar::codec::block_mean<64>>>;
};

struct by_mean_query : scheme::yakv<d, float> {
  using reduce = cellar::select::mean_query;
};
struct by_sum : scheme::quest<d, float> {
  using reduce = cellar::select::sum_of_logits;
};

}  // namespace

TEST_CASE("selected blocks are those of the highest scores, by each scheme's own definition") {
  check_selection<scheme::mean_landmark<d, float>>(0);
  check_selection<scheme::quest<d, float>>(0);
  check_selection<scheme::yakv<d, float>>(0);
  check_selection<scheme::yakv_centred<d, float>>(0);
  check_selection<scheme::yakv_centred<d, float>>(3);
  check_selection<block_mean_landmarks<d>>(0);
  check_selection<by_mean_query>(0);
  check_selection<by_sum>(0);
}

TEST_CASE("several query tokens select together, by the reduction over all their heads") {
  check_selection<scheme::mean_landmark<d, float>>(0, 3);
  check_selection<scheme::yakv_centred<d, float>>(3, 3);
  check_selection<by_mean_query>(0, 3);
  check_selection<by_sum>(0, 3);
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
