#include "text2json/attention_metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "catch.hpp"
#include "random.hpp"

using namespace text2json;

TEST_CASE("two tokens, weights known by hand") {
  // q.k / sqrt(4) is 0 and log 3: weights 1/4 and 3/4
  std::vector<float> const q{2, 0, 0, 0}, far{0, 5, 0, 0}, near{std::log(3.f), 0, 7, 0}, v0{1, 0, 0, 0}, v1{0, 1, 0, 0}, out{0, 1, 0, 0};
  auto const a = compare_attention(4, 1, q.data(), out.data(), {{far.data(), near.data()}, {v0.data(), v1.data()}}, {false, true}, 1, 0);
  CHECK(a.captured == Approx(0.75));
  CHECK(a.missed.size() == 1);
  CHECK(a.missed[0] == Approx(0.25));
  CHECK(a.captured_far == 0);
  CHECK(a.all_far == Approx(0.25));
  CHECK(a.oracle == Approx(0.75));
  CHECK(a.error == Approx(std::sqrt(2 * 0.25 * 0.25) / std::sqrt(0.25 * 0.25 + 0.75 * 0.75)));  // exact (1/4, 3/4), out (0, 1)
}

TEST_CASE("attention metrics agree with their definitions in double") {
  int const d = 16;
  random_numbers r(1);
  for (int const group : {1, 3})
    for (std::size_t const far : {std::size_t(0), std::size_t(1), std::size_t(40)})
      for (std::size_t const budget : {std::size_t(0), std::min<std::size_t>(far, 7), far}) {
        std::size_t const n = far + 9;
        auto const q = r.normals(group * d, 2), k = r.normals(std::int64_t(n) * d, 2), v = r.normals(std::int64_t(n) * d), out = r.normals(group * d);
        attended_rows rows;
        std::vector<bool> attended;
        for (std::size_t p = 0; p < n; ++p) {
          rows.keys.push_back(k.data() + p * d);
          rows.values.push_back(v.data() + p * d);
          attended.push_back(p >= far || r.below(3) == 0);
        }
        double difference = 0, size = 0, captured = 0, captured_far = 0, all_far = 0, oracle = 0;
        std::vector<std::vector<double>> weights;
        std::vector<double> missed(std::size_t(group), 0.0);
        for (int h = 0; h < group; ++h) {
          std::vector<double> w;
          double sum = 0;
          for (std::size_t p = 0; p < n; ++p) {
            w.push_back(std::exp(std::inner_product(q.begin() + h * d, q.begin() + (h + 1) * d, k.begin() + std::ptrdiff_t(p) * d, 0.0) / 4));  // sqrt(16)
            sum += w.back();
          }
          for (std::size_t p = 0; p < n; ++p) {
            w[p] /= sum;
            (attended[p] ? captured : missed[std::size_t(h)]) += w[p];
            if (attended[p] && p < far) captured_far += w[p];
            if (p < far) all_far += w[p];
          }
          for (int c = 0; c < d; ++c) {
            double exact = 0;
            for (std::size_t p = 0; p < n; ++p) exact += w[p] * double(v[p * d + std::size_t(c)]);
            difference += std::pow(double(out[std::size_t(h * d + c)]) - exact, 2);
            size += exact * exact;
          }
          weights.push_back(w);
        }
        std::vector<std::pair<double, std::size_t>> ranked;
        for (std::size_t p = 0; p < far; ++p) {
          double best = 0;
          for (auto const& w : weights) best = std::max(best, w[p] / std::accumulate(w.begin(), w.begin() + std::ptrdiff_t(far), 0.0));
          ranked.emplace_back(-best, p);
        }
        std::sort(ranked.begin(), ranked.end());
        for (auto const& w : weights) {
          for (std::size_t i = 0; i < budget; ++i) oracle += w[ranked[i].second];
          for (std::size_t p = far; p < n; ++p) oracle += w[p];
        }
        auto const a = compare_attention(d, group, q.data(), out.data(), rows, attended, std::int64_t(far), std::int64_t(budget));
        CHECK(a.captured == Approx(captured / group));
        CHECK(a.captured_far == Approx(captured_far));
        CHECK(a.all_far == Approx(all_far));
        REQUIRE(a.missed.size() == missed.size());
        for (std::size_t h = 0; h < missed.size(); ++h) CHECK(a.missed[h] == Approx(missed[h]).margin(1e-6));
        CHECK(a.oracle == Approx(oracle / group));
        CHECK(a.error == Approx(std::sqrt(difference / size)));
      }
}
