// ParisKV: the candidates and the ids of a step by the definition in double; what is left where everything is a candidate; the levels' own laws.
#include <numeric>

#include "cache/reference.hpp"
#include "codec/rotated.hpp"

using namespace cellar;

namespace paris_kv_test {

namespace {

constexpr int d = 32, subspaces = d / 8;

template <int Candidates, int Colliding>
using paris = scheme::paris_kv<d, float, summary::falling_share<Candidates, Candidates, Candidates, Candidates>,
                               summary::falling_share<Colliding, Colliding, Colliding, Colliding>>;

constexpr double magnitudes[8] = {0.0420, 0.1266, 0.2130, 0.3025, 0.3973, 0.5001, 0.6169, 0.7633};
constexpr double thresholds[7] = {0.0843, 0.1698, 0.2578, 0.3499, 0.4487, 0.5585, 0.6901};

std::vector<double> rotated_row(std::vector<float> const& x) {
  std::vector<double> y;
  for (std::size_t i = 0; i < d; ++i) y.push_back(rotated<1>(x, i));
  return y;
}
int centroid_of(std::vector<double> const& y, int subspace) {
  int c = 0;
  for (int i = 0; i < 8; ++i) c |= int(y[std::size_t(subspace * 8 + i)] >= 0) << i;
  return c;
}

struct fine_alone : scheme_defaults<d, float> {
  static constexpr int block_tokens = 1;
  using summary = cellar::summary::quantized_key<cellar::codec::direction_codes<>, 1>;
  using reduce = cellar::select::mean_query;
  using select = cellar::select::top_k;
};

struct definition {
  std::vector<std::vector<double>> counts;  // [subspace][centroid]
  std::int64_t keys = 0;

  explicit definition(std::vector<std::vector<float>> const& prompt) : counts(subspaces, std::vector<double>(256, 0.0)), keys(std::int64_t(prompt.size())) {
    for (auto const& key : prompt) {
      auto const y = rotated_row(key);
      for (int b = 0; b < subspaces; ++b) ++counts[std::size_t(b)][std::size_t(centroid_of(y, b))];
    }
  }
  /// Points of each centroid in each subspace.
  std::vector<std::vector<int>> points(std::vector<double> const& q, double colliding) const {
    std::vector<std::vector<int>> all;
    for (int b = 0; b < subspaces; ++b) {
      auto const product = [&](int c) {
        double s = 0;
        for (int i = 0; i < 8; ++i) s += (c >> i & 1 ? 1 : -1) * q[std::size_t(b * 8 + i)];
        return s;
      };
      std::vector<int> order(256), one(256);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return product(x) > product(y); });
      double before = 0;
      for (int const c : order) {
        for (double const share : {0.05, 0.15, 0.3, 0.5, 0.75, 1.0})
          one[std::size_t(c)] += before < std::ceil(std::ceil(double(keys) * colliding - 1e-9) * share - 1e-9);
        before += counts[std::size_t(b)][std::size_t(c)];
      }
      all.push_back(one);
    }
    return all;
  }
  /// The product with what a key's four bits stand for; second: the sizes of its terms.
  static std::pair<double, double> estimate(std::vector<double> const& q, std::vector<float> const& key) {
    auto const y = rotated_row(key);
    double s = 0, size = 0;
    for (int b = 0; b < subspaces; ++b) {
      double length = 0, along = 0, product = 0, products = 0;
      for (int i = 0; i < 8; ++i) length += std::pow(y[std::size_t(b * 8 + i)], 2);
      length = std::sqrt(length);
      for (int i = 0; i < 8; ++i) {
        double const u = y[std::size_t(b * 8 + i)] / length,
                     a = magnitudes[std::size_t(std::count_if(thresholds, thresholds + 7, [&](double x) { return std::abs(u) > x; }))];
        along += a * std::abs(u);
        product += (u >= 0 ? a : -a) * q[std::size_t(b * 8 + i)];
        products += a * std::abs(q[std::size_t(b * 8 + i)]);
      }
      s += length / along * product;
      size += length / along * products;
    }
    return {s, size};
  }
};

template <int Candidates, int Colliding>
void check(float bias, std::int64_t tokens, std::int64_t new_tokens, std::int64_t budgeted) {
  using Scheme = paris<Candidates, Colliding>;
  reference<Scheme> ref(1, 2, 3, 31, bias);
  int const group = 3, steps = 3;
  budget const b{.tokens = budgeted, .sinks = 2, .window = 8};
  trial<Scheme> t(ref, {tokens}, steps * new_tokens, b, {}, new_tokens);
  statistics did;
  t.cache.observe(&did);
  auto const& s = t.data[0];
  for (int step = 0; step < steps; ++step) {
    std::int64_t const length = t.lengths[0];
    did = {};
    t.step({0}, {new_tokens}, 3 * rounding);
    std::int64_t const blocks = t.cache.sealed_blocks(t.ids[0]), sinks = t.cache.sinks();
    std::int64_t const candidates = std::max(std::min(budgeted, blocks), (blocks * Candidates + 99) / 100);
    CHECK(did.scored_blocks == 2 * candidates);
    for (int head = 0; head < 2; ++head) {
      auto const rows = [&](std::vector<float> const& x, std::int64_t first, std::int64_t end) {
        std::vector<std::vector<float>> all;
        for (std::int64_t p = first; p < end; ++p) all.push_back(ref.head_rows(x, s, 0, head, p, p + 1));
        return all;
      };
      definition const defined(rows(s.original_keys, 0, tokens));
      std::vector<float> mean(d, 0.0f);
      for (std::int64_t i = 0; i < new_tokens; ++i) {
        auto const q = ref.query(0, length + i, 0);
        for (int h = 0; h < group; ++h)
          for (std::size_t c = 0; c < d; ++c) mean[c] += q[std::size_t((head * group + h) * d) + c] / float(new_tokens * group);
      }
      auto const q = rotated_row(mean);
      auto const points = defined.points(q, Colliding / 100.0);
      auto const keys = rows(s.keys, sinks, sinks + blocks);
      std::vector<int> votes;
      for (auto const& key : keys) {
        auto const y = rotated_row(key);
        int n = 0;
        for (int i = 0; i < subspaces; ++i) n += points[std::size_t(i)][std::size_t(centroid_of(y, i))];
        votes.push_back(n);
      }
      std::vector<std::int64_t> order(votes.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int64_t x, std::int64_t y) { return votes[std::size_t(x)] > votes[std::size_t(y)]; });
      order.resize(std::size_t(candidates));
      auto const ids = *t.cache.selected(0, head);
      REQUIRE(ids.count == std::min(budgeted, blocks));
      double lowest = 1e300, highest = -1e300, slack = 0, spread = 0;
      std::int64_t found = 0;
      for (std::int64_t const c : order) {
        auto const [score, size] = definition::estimate(q, keys[std::size_t(c)]);
        bool const is_chosen = std::any_of(ids.begin(), ids.end(), [&](auto id) { return number(id) == c; });
        found += is_chosen;
        (is_chosen ? lowest = std::min(lowest, score) : highest = std::max(highest, score));
        slack = std::max(slack, size * 0x1p-9);  // weights in bf16
      }
      for (auto const& key : keys) spread = std::max(spread, std::abs(definition::estimate(q, key).first));
      CHECK(found == ids.count);  // none but candidates
      CHECK(lowest >= highest - slack);
      CHECK(slack < 0.05 * spread);
    }
  }
}

}  // namespace

TEST_CASE("paris_kv chooses of the keys that collide most, by its definition") {
  for (float const bias : {0.0f, 2.0f}) {
    check<10, 20>(bias, 400, 1, 24);
    check<25, 30>(bias, 400, 3, 24);
    check<50, 50>(bias, 330, 1, 7);
    check<10, 20>(bias, 331, 1, 90);   // more than are candidates
    check<10, 20>(bias, 120, 1, 400);  // more than there are
    check<1, 1>(bias, 60, 1, 1);
  }
}

TEST_CASE("where all keys are candidates paris_kv chooses by its fine level alone, of everything as dense attends") {
  using two = paris<100, 20>;
  reference<two> ref(2, 2, 2, 32);
  reference<fine_alone> same(2, 2, 2, 32);
  budget const b{.tokens = 40, .sinks = 1, .window = 4};
  trial<two> t(ref, {300, 70, 3}, 12, b);
  trial<fine_alone> alone(same, {300, 70, 3}, 12, b);
  for (int i = 0; i < 4; ++i) {
    REQUIRE(t.step({0, 1, 2}, {1, 1, 1}, rounding) == alone.step({0, 1, 2}, {1, 1, 1}, rounding));
    for (std::int64_t who = 0; who < 3; ++who)
      for (int head = 0; head < 2; ++head) {
        auto const x = *t.cache.selected(who, head), y = *alone.cache.selected(who, head);
        REQUIRE(std::equal(x.begin(), x.end(), y.begin(), y.end()));
      }
  }
  reference<two> all(1, 1, 2, 33);
  reference<scheme::dense<d, float>> of_all(1, 1, 2, 33);
  trial<two> every(all, {150}, 4, {.tokens = 400, .window = 4});
  trial<scheme::dense<d, float>> dense(of_all, {150}, 4, {});
  auto const ours = every.step({0}, {1}, rounding), theirs = dense.step({0}, {1}, rounding);
  for (std::size_t i = 0; i < ours.size(); ++i) REQUIRE(ours[i] == Approx(theirs[i]).margin(rounding));
}

TEST_CASE("paris_kv is composed as its code has it, with its code's numbers") {
  using s = scheme::paris_kv<128>;
  CHECK(s::published.tokens == 100);
  CHECK(s::published.sinks == 4);
  CHECK(s::published.window == 512);
  CHECK(s::summary{}.tile_bytes(128) == 32 * (16 + 64 + 32));
  for (auto const& [keys, candidates] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{4999, 2500}, {5000, 1250}, {9999, 2500}, {10000, 2000}, {29999, 6000}, {30000, 3000}})
    CHECK(s::summary::rule::first(keys, 100) == candidates);
  static_assert(std::is_same_v<s::reduce, select::mean_query> && s::block_tokens == 1 && std::is_same_v<s::key_codec, codec::identity<bf16>>);
}

}  // namespace paris_kv_test
