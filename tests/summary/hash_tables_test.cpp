// hash_tables against its definition in double; its chances against the binomial law, and what it samples against its chances.
#include "catch.hpp"
#include "cellar/attention/remainder.hpp"
#include "sanitizers.hpp"
#include "summary/hashes.hpp"
#include "summary/scored.hpp"

using namespace cellar;

namespace {

double length_of(std::vector<double> const& x) {
  double s = 0;
  for (double const c : x) s += c * c;
  return std::sqrt(s);
}

std::vector<double> less(float const* x, std::vector<float> const& mean) {
  std::vector<double> y;
  for (std::size_t c = 0; c < mean.size(); ++c) y.push_back(double(x[c]) - double(mean[c]));
  return y;
}

/// A trained summary.
template <class Summary>
struct learnt {
  std::vector<float> state;
  Summary summary;
  template <int D>
  learnt(std::integral_constant<int, D>, std::vector<float> const& keys) : state(D), summary(Summary{}) {
    serial_team t;
    summary.train(t, rows_of<D>(keys), 0, reinterpret_cast<std::byte*>(state.data()));
    summary = summary.bind(reinterpret_cast<std::byte const*>(state.data()));
  }
};

}  // namespace

TEST_CASE("hash tables collide where all bits of the defined projections agree, in every head dimension, and keep the length") {
  for_head_dims([&]<int D>(std::integral_constant<int, D> dim) {
    random_numbers r(D);
    auto const check = [&]<int K, int L>(std::integral_constant<int, K>, std::integral_constant<int, L>) {
      using summary_type = summary::hash_tables<K, L>;
      auto keys = r.normals(45 * D, 3), queries = r.normals(3 * D);
      for (std::size_t i = 0; i < keys.size(); ++i) keys[i] += 2 + float(i % 7);
      for (int c = 0; c < D; ++c) {  // two pairs of likely collisions
        queries[std::size_t(c)] = keys[std::size_t(5 * D + c)] - 5;
        queries[std::size_t(D + c)] = 1e30f * queries[std::size_t(c)];
      }
      learnt<summary_type> const by(dim, keys);
      auto const one = score<D>(by.summary, keys, 1, queries, 100), other = score<D>(by.summary, keys, 1, queries, 7);
      CHECK(one.tiles.size() == std::size_t(2 * by.summary.tile_bytes(D)));
      for (int b = 0; b < 45; ++b)
        for (int w = 0; w <= K * summary_type::words; ++w) {  // of built lanes
          auto const at = std::size_t(b / 32 * by.summary.tile_bytes(D) + (w * 32 + b % 32) * 4);
          REQUIRE(std::equal(one.tiles.begin() + std::ptrdiff_t(at), one.tiles.begin() + std::ptrdiff_t(at) + 4, other.tiles.begin() + std::ptrdiff_t(at)));
        }
      int clear = 0, some = 0;
      std::vector<std::vector<double>> hashed;
      std::vector<double> lengths;
      for (int b = 0; b < 45; ++b) {
        auto const x = less(keys.data() + b * D, by.state);
        lengths.push_back(length_of(x));
        hashed.push_back(hashes::projections<K, L>(x));
        REQUIRE(double(by.summary.length_of(one.tiles.data() + b / 32 * by.summary.tile_bytes(D), b % 32)) == Approx(lengths.back()).epsilon(1e-5));
      }
      for (int h = 0; h < 3; ++h) {
        auto const q = less(queries.data() + h * D, std::vector<float>(D, 0.0f));
        auto const of_query = hashes::projections<K, L>(q);
        for (int b = 0; b < 45; ++b) {
          auto const n = hashes::collide<K, L>(of_query, hashed[std::size_t(b)], 4e-6 * length_of(q), 4e-6 * lengths[std::size_t(b)]);
          float const ours = one.logits[std::size_t(h)][std::size_t(b)];
          REQUIRE((double(n.least) <= double(ours) && double(ours) <= double(n.most)));
          REQUIRE(ours == other.logits[std::size_t(h)][std::size_t(b)]);
          clear += n.least == n.most;
          some += ours > 0 && ours < L;
        }
      }
      CHECK(clear > 3 * 45 / 2);
      CHECK((K == 0 || some > 3));
      CHECK(one.logits[0][5] > float(L) * 0.3f);
    };
    check(std::integral_constant<int, 10>{}, std::integral_constant<int, 150>{});
    check(std::integral_constant<int, 3>{}, std::integral_constant<int, 33>{});
    check(std::integral_constant<int, 2>{}, std::integral_constant<int, 300>{});
    check(std::integral_constant<int, 0>{}, std::integral_constant<int, 2>{});
  });
}

TEST_CASE("hash tables of rows without direction, and of huge and tiny ones") {
  constexpr int d = 64;
  using summary_type = summary::hash_tables<8, 75>;
  random_numbers r(3);
  auto const direction = r.normals(d);
  std::vector<float> keys, zero_mean(d, 0.0f), queries;
  for (float const scale : {1.0f, 1e-38f, 1e32f, 0.0f, -1.0f})
    for (float const x : direction) keys.push_back(scale * x);
  for (float const scale : {1.0f, 0x1p-100f, 0x1p100f, 0.0f})
    for (float const x : direction) queries.push_back(scale * x);
  auto const by = summary_type{}.bind(reinterpret_cast<std::byte const*>(zero_mean.data()));
  auto const s = score<d>(by, keys, 1, queries, 32);
  for (int h = 0; h < 3; ++h) {
    CHECK(s.logits[std::size_t(h)][0] == 75);
    CHECK(s.logits[std::size_t(h)][1] == 75);
    CHECK(s.logits[std::size_t(h)][2] == 75);
    CHECK(s.logits[std::size_t(h)][4] == 0);
  }
  CHECK(s.logits[3][3] == 75);
  CHECK(double(by.length_of(s.tiles.data(), 2)) / double(by.length_of(s.tiles.data(), 0)) == Approx(1e32).epsilon(1e-5));
  CHECK(by.length_of(s.tiles.data(), 3) == 0);
  CHECK(summary_type::log_chance({0, 0}, 0, 0) == 0);
  CHECK(summary_type::log_chance({0, 0}, 0, 3) == summary_type::log_chance(0.0f));
  CHECK(summary_type::log_chance({0, 3}, 0, 0) == summary_type::log_chance(0.0f));
  CHECK(summary_type::log_chance({2, 3}, 5, 4) == summary_type::log_chance(0.25f));
  CHECK((!summary_type::is_sampled(0) && !summary_type::is_sampled(1) && summary_type::is_sampled(2) && summary_type::is_sampled(75)));
}

TEST_CASE("the logarithm of a chance is that of the binomial law, from chances that f32 does not hold to those that it takes for one") {
  auto const check = [&]<int K, int L>(std::integral_constant<int, K>, std::integral_constant<int, L>) {
    double least = 0, most = -1e9;
    for (int i = -250; i <= 250; ++i) {
      float const c = i == 250 || i == -250 ? float(i) / 250 : float(std::cos((250 - i) * std::numbers::pi / 500));
      double const expected = hashes::log_chance(K, L, double(c)), ours = double(summary::hash_tables<K, L>::log_chance(c));
      double const p = std::max(1 - std::acos(double(c)) / std::numbers::pi, 0x1p-13), off = 1e-7 / std::max(1e-7, std::sqrt(1 - double(c) * double(c)) * p);
      INFO("K " << K << ", L " << L << ", cosine " << c);
      CHECK(std::abs(ours - expected) <= 0x1p-14 + 2 * K * std::min(off, 1.0));
      CHECK(ours <= 0);
      CHECK(std::isfinite(ours));
      least = std::min(least, ours);
      most = std::max(most, ours);
    }
    CHECK((K < 8 || least < -88));
    CHECK(most == Approx(0).margin(1e-6));
    CHECK(summary::hash_tables<K, L>::log_chance(1.5f) == summary::hash_tables<K, L>::log_chance(1.0f));
    CHECK(summary::hash_tables<K, L>::log_chance(-1.5f) == summary::hash_tables<K, L>::log_chance(-1.0f));
  };
  check(std::integral_constant<int, 10>{}, std::integral_constant<int, 150>{});
  check(std::integral_constant<int, 8>{}, std::integral_constant<int, 75>{});
  check(std::integral_constant<int, 9>{}, std::integral_constant<int, 120>{});
  check(std::integral_constant<int, 11>{}, std::integral_constant<int, 300>{});
  check(std::integral_constant<int, 1>{}, std::integral_constant<int, 2>{});
  check(std::integral_constant<int, 1>{}, std::integral_constant<int, 2000>{});
  check(std::integral_constant<int, 3>{}, std::integral_constant<int, 3>{});
  check(std::integral_constant<int, 16>{}, std::integral_constant<int, 4000>{});
  CHECK(summary::hash_tables<0, 2>::log_chance(-0.9f) == 0);
}

TEST_CASE("a floor bounds a sampled token's weight") {
  for (float const x : {0.0f, -1e-3f, -1.0f, -9.0f, -9.3f, -20.0f, -80.0f, -160.0f}) {
    CHECK(attention::sampled<>::correction(x) == -x);
    double const expected = -std::log(std::exp(double(x)) + 1e-4);
    CHECK(double(attention::sampled<std::ratio<1, 10000>>::correction(x)) == Approx(expected).margin(1e-6).epsilon(1e-6));
  }
}

namespace {

/// A pair of rows at an angle: random ones, or with most of their length in a few channels.
template <int D>
void make_pair(random_numbers& r, double cosine, bool is_sparse, float* a, float* b) {
  std::vector<double> x, y;
  for (int c = 0; c < D; ++c) {
    double const size = is_sparse && r.below(8) > 0 ? 0.05 : 1;  // other channels in every pair: pairs in one plane would be no independent draws
    x.push_back(double(r.normal()) * size);
    y.push_back(double(r.normal()) * size);
  }
  double xx = 0, xy = 0, yy = 0;
  for (int c = 0; c < D; ++c) xx += x[std::size_t(c)] * x[std::size_t(c)], xy += x[std::size_t(c)] * y[std::size_t(c)];
  for (int c = 0; c < D; ++c) y[std::size_t(c)] -= xy / xx * x[std::size_t(c)];
  for (double const one : y) yy += one * one;
  for (int c = 0; c < D; ++c) {
    a[c] = float(x[std::size_t(c)] / std::sqrt(xx));
    b[c] = float(x[std::size_t(c)] / std::sqrt(xx) * cosine + y[std::size_t(c)] / std::sqrt(yy) * std::sqrt(1 - cosine * cosine));
  }
}

}  // namespace

// Pairs at an angle, each of its own rows, under four seeds: with n pairs the share that is sampled has a standard error of sqrt(u (1 - u) / n). It must be
// within 4.5 of these, and within 0.5 % of u that structured projections are allowed.
TEST_CASE("of pairs at an angle as many are sampled as the chance says") {
  int const n = is_sanitized ? 1000 : 8000;
  auto const check = [&]<int D, int K, int L>(std::integral_constant<int, D>, std::integral_constant<int, K>, std::integral_constant<int, L>,
                                              std::initializer_list<double> degrees) {
    std::vector<float> const zero(D, 0.0f);
    for (bool const is_sparse : {false, true})
      for (double const angle : degrees) {
        double const cosine = std::cos(angle * std::numbers::pi / 180), u = std::exp(hashes::log_chance(K, L, cosine));
        int sampled = 0;
        auto const count = [&]<std::uint32_t Seed>(std::integral_constant<std::uint32_t, Seed>) {
          auto const by = summary::hash_tables<K, L, Seed>{}.bind(reinterpret_cast<std::byte const*>(zero.data()));
          random_numbers r(Seed + std::uint64_t(100 * angle));
          serial_team t(nullptr, 0, nullptr);
          std::vector<float> a(32 * D), b(32 * D), scores(32 * 32);
          std::vector<std::byte> tile(std::size_t(by.tile_bytes(D))), prepared(std::size_t(by.prepared_bytes(32, D)));
          for (int i = 0; i < n / 4; i += 32) {
            for (int j = 0; j < 32; ++j) make_pair<D>(r, cosine, is_sparse, a.data() + j * D, b.data() + j * D);
            by.build(t, rows_of<D>(std::as_const(b)), 32, tile.data(), 0);
            prepared_queries<std::byte, D> const to{prepared.data(), 32, nullptr};
            by.prepare(t, rows_of<D>(std::as_const(a)), to);
            by.score_tile(t, prepared_queries<std::byte const, D>(to), tile.data(), matrix_view<float>{scores.data(), 32, 32, 32});
            for (int j = 0; j < 32; ++j) sampled += by.is_sampled(scores[std::size_t(33 * j)]);
          }
        };
        count(std::integral_constant<std::uint32_t, 1>{});
        count(std::integral_constant<std::uint32_t, 2>{});
        count(std::integral_constant<std::uint32_t, 77>{});
        count(std::integral_constant<std::uint32_t, 0xfeedu>{});
        int const all = 4 * ((n / 4 + 31) / 32) * 32;
        double const share = double(sampled) / all, error = std::sqrt(u * (1 - u) / all);
        INFO("D " << D << ", K " << K << ", L " << L << ", " << angle << " degrees, " << (is_sparse ? "few channels" : "all channels") << ": u " << u
                  << ", seen " << share << ", " << (share - u) / error << " standard errors");
        CHECK(std::abs(share - u) <= 4.5 * error + 0.005 * u);
        CHECK(error < 0.2 * u);  // it can fail
      }
  };
  using std::integral_constant;
  check(integral_constant<int, 128>{}, integral_constant<int, 10>{}, integral_constant<int, 150>{}, {40, 60, 75});
  check(integral_constant<int, 80>{}, integral_constant<int, 8>{}, integral_constant<int, 75>{}, {60, 80});
  check(integral_constant<int, 64>{}, integral_constant<int, 10>{}, integral_constant<int, 170>{}, {55, 70});
  check(integral_constant<int, 32>{}, integral_constant<int, 4>{}, integral_constant<int, 40>{}, {75, 95, 115});
  check(integral_constant<int, 32>{}, integral_constant<int, 1>{}, integral_constant<int, 3>{}, {60, 120, 150});
}

// Both sums of a softmax over 48 tokens, by samples under many draws of projections (eight seeds, and rotations of the whole problem, which are draws as good),
// against the sums over all. The mean over the draws must be within 4.5 of its standard errors, which come from the same draws, and 0.5 % of the sum.
TEST_CASE("sampled sums of weights and of weighted values are unbiased over projections") {
  constexpr int d = 32, tokens = 48, K = 6, L = 40;
  int const draws = is_sanitized ? 20 : 150;  // of each seed
  random_numbers r(9);
  auto keys = r.normals(tokens * d, 1), query = r.normals(d, 0.35f), values = r.normals(tokens);
  for (float& x : values) x += 1;
  std::vector<double> mean(d, 0.0);
  for (std::size_t i = 0; i < keys.size(); ++i) mean[i % d] += double(keys[i]) / tokens;
  double all = 0, all_values = 0;
  for (int i = 0; i < tokens; ++i) {
    double const w = std::exp(product(query.data(), keys.data() + i * d, d));
    all += w;
    all_values += w * double(values[std::size_t(i)]);
  }
  double sum = 0, squares = 0, value_sum = 0, value_squares = 0, uncorrected = 0;
  std::int64_t n = 0;
  auto const draw = [&]<std::uint32_t Seed>(std::integral_constant<std::uint32_t, Seed>) {
    for (int i = 0; i < draws; ++i) {
      // A random rotation, by orthogonalising normal rows.
      std::vector<std::vector<double>> axes;
      while (axes.size() < d) {
        std::vector<double> x;
        for (int c = 0; c < d; ++c) x.push_back(double(r.normal()));
        for (auto const& a : axes) {
          double s = 0;
          for (std::size_t c = 0; c < d; ++c) s += a[c] * x[c];
          for (std::size_t c = 0; c < d; ++c) x[c] -= s * a[c];
        }
        double const size = length_of(x);
        for (double& one : x) one /= size;
        axes.push_back(x);
      }
      auto const turned = [&](std::vector<float> const& rows) {
        std::vector<float> to;
        for (std::size_t row = 0; row < rows.size(); row += d)
          for (auto const& a : axes) {
            double s = 0;
            for (std::size_t c = 0; c < d; ++c) s += a[c] * double(rows[row + c]);
            to.push_back(float(s));
          }
        return to;
      };
      using summary_type = summary::hash_tables<K, L, Seed>;
      auto const k = turned(keys), q = turned(query);
      learnt<summary_type> const by(std::integral_constant<int, d>{}, k);
      auto const s = score<d>(by.summary, k, 1, q, 32);
      auto const row = by.summary.template row_of<d>(q.data());
      double estimate = 0, of_values = 0;
      for (int t = 0; t < tokens; ++t) {
        if (!summary_type::is_sampled(s.logits[0][std::size_t(t)])) continue;
        auto const logit = float(product(q.data(), k.data() + t * d, d));
        float const length = by.summary.length_of(s.tiles.data() + t / 32 * by.summary.tile_bytes(d), t % 32);
        double const w = std::exp(double(logit) + double(attention::sampled<>::correction(summary_type::log_chance(row, logit, length))));
        estimate += w;
        of_values += w * double(values[std::size_t(t)]);
        uncorrected += std::exp(double(logit));
      }
      sum += estimate;
      squares += estimate * estimate;
      value_sum += of_values;
      value_squares += of_values * of_values;
      ++n;
    }
  };
  [&]<std::uint32_t... Seed>(std::integer_sequence<std::uint32_t, Seed...>) { (draw(std::integral_constant<std::uint32_t, Seed + 1>{}), ...); }
  (std::make_integer_sequence<std::uint32_t, 8>{});
  auto const check = [&](double total, double total_squares, double expected) {
    double const average = total / double(n), error = std::sqrt((total_squares / double(n) - average * average) / double(n));
    INFO(average << " for " << expected << ", " << (average - expected) / error << " standard errors of " << error);
    CHECK(std::abs(average - expected) <= 4.5 * error + 0.005 * std::abs(expected));
    CHECK(error < (is_sanitized ? 0.15 : 0.05) * std::abs(expected));  // it can fail
  };
  check(sum, squares, all);
  check(value_sum, value_squares, all_values);
  CHECK(uncorrected / double(n) < 0.8 * all);  // as many are missed as matter
}
