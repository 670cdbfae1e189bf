#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "catch.hpp"
#include "cellar/select/all.hpp"
#include "cellar/select/at_least.hpp"
#include "cellar/select/none.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/threshold.hpp"
#include "cellar/select/top_k.hpp"
#include "cellar/select/top_p.hpp"
#include "cellar/select/until_missed.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

std::vector<std::int64_t> chosen(auto const& selector, std::vector<float> const& scores) {
  std::vector<std::byte> scratch(4096);
  serial_team t(scratch.data(), 4096);
  std::vector<logical_block> ids(std::size_t(selector.max_selected(std::int64_t(scores.size()))));
  auto const count =
      selector(t, row_view<float const>{scores.data(), std::int64_t(scores.size())}, row_view<logical_block>{ids.data(), std::int64_t(ids.size())});
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(number(ids[std::size_t(i)]));
  return out;
}

/// A stable sort by falling score, NaN last: the definition.
std::vector<std::int64_t> best(std::vector<float> const& scores, std::int64_t k) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  auto const key = [&](std::int64_t i) {
    return std::isnan(scores[std::size_t(i)]) ? -std::numeric_limits<double>::max() * 2 : std::max(double(scores[std::size_t(i)]), -1e300);
  };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return key(a) > key(b); });
  order.resize(std::size_t(std::min<std::int64_t>(k, std::int64_t(scores.size()))));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

TEST_CASE("top_k takes the k best, ties by lowest id, ascending") {
  random_numbers r(1);
  for (std::int64_t const n : {1, 2, 31, 32, 33, 255, 256, 257, 1000, 5000})
    for (std::int64_t const k : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, n / 3, n - 1, n, n + 5}) {
      auto scores = r.normals(n);
      CHECK(chosen(select::top_k{}.with_budget(k), scores) == best(scores, k));
      for (float& s : scores) s = std::round(s * 2) / 2;  // many ties
      CHECK(chosen(select::top_k{}.with_budget(k), scores) == best(scores, k));
      std::fill(scores.begin(), scores.end(), 1.5f);
      CHECK(chosen(select::top_k{}.with_budget(k), scores) == best(scores, k));
    }
}

TEST_CASE("top_k ranks infinities as numbers, both zeros alike, and NaN below all") {
  float const nan = std::nanf("");
  std::vector<float> const scores{nan, -infinity, 1, infinity, -nan, 0.0f, -0.0f, -1e-45f, 1e-45f, 3e38f, -3e38f};
  for (std::int64_t k = 0; k <= 11; ++k) CHECK(chosen(select::top_k{}.with_budget(k), scores) == best(scores, k));
  CHECK(chosen(select::top_k{}.with_budget(2), {0.0f, -0.0f, 0.0f}) == std::vector<std::int64_t>{0, 1});
  CHECK(chosen(select::top_k{}.with_budget(1), {nan, nan}) == std::vector<std::int64_t>{0});
}

TEST_CASE("scores of one bin at every depth of the search, and more of them than a bin's counter of 16 bits holds") {  // H20
  random_numbers r(8);
  std::uint32_t const one = std::bit_cast<std::uint32_t>(1.0f);
  for (std::int64_t const n : {1, 255, 256, 257, 70000})
    for (int const bits : {0, 1, 8, 16, 24}) {  // that differ
      std::vector<float> scores;
      for (std::int64_t i = 0; i < n; ++i) scores.push_back(std::bit_cast<float>(one + std::uint32_t(r.below(std::int64_t{1} << bits))));
      for (std::int64_t const k : {std::int64_t{1}, n / 2, n - 1, n, 3 * n}) {
        auto const expected = best(scores, k);
        REQUIRE(chosen(select::top_k{}.with_budget(k), scores) == expected);
        REQUIRE(chosen(select::threshold<std::ratio<100>>{}.with_budget(k), scores) == expected);  // all are within 100: of 1 to 4
      }
    }
}

TEST_CASE("threshold takes what is within Alpha of the best, the highest ones up to the budget") {
  random_numbers r(4);
  auto const check = [&]<class Alpha>(Alpha, std::vector<float> const& scores) {
    auto const n = std::int64_t(scores.size());
    double top = -1e300;
    for (float const s : scores)
      if (!std::isnan(s)) top = std::max(top, double(s));
    std::int64_t count = 0;
    for (float const s : scores) count += double(s) > top - double(Alpha::num) / double(Alpha::den);
    for (std::int64_t const k : {std::int64_t{1}, std::int64_t{2}, count - 1, count, count + 1, n, n + 5})
      CHECK(chosen(select::threshold<Alpha>{}.with_budget(k), scores) == best(scores, std::min(k, count)));
    CHECK(chosen(select::threshold<Alpha>{}.with_budget(0), scores).empty());
  };
  for (std::int64_t const n : {1, 2, 33, 257, 3000})
    for (int i = 0; i < 3; ++i) {
      auto scores = r.normals(n, 3);
      for (float& s : scores)
        if (i == 1) s = std::round(s * 2) / 2;  // many ties, and scores that are exactly Alpha below the best: they are left
      if (i == 2)
        for (std::int64_t b = 1; b < n; b += 7) scores[std::size_t(b)] = b % 2 ? std::nanf("") : -infinity;
      check(std::ratio<4>{}, scores);
      check(std::ratio<1, 2>{}, scores);
      check(std::ratio<1000>{}, scores);  // all but NaN and -infinity
    }
}

TEST_CASE("at_least takes what reaches the bound, however many, the highest ones up to the budget") {
  random_numbers r(14);
  float const nan = std::nanf("");
  auto const check = [&]<class Bound>(Bound, std::vector<float> const& scores) {
    auto const n = std::int64_t(scores.size());
    std::int64_t count = 0;
    for (float const s : scores) count += double(s) >= double(Bound::num) / double(Bound::den);
    for (std::int64_t const k : {std::int64_t{1}, count - 1, count, count + 1, n, n + 5})
      CHECK(chosen(select::at_least<Bound>{}.with_budget(k), scores) == best(scores, std::min(std::max<std::int64_t>(k, 0), count)));
    CHECK(chosen(select::at_least<Bound>{}.with_budget(0), scores).empty());
  };
  for (std::int64_t const n : {1, 2, 33, 257, 3000}) {
    auto scores = r.normals(n, 2);
    for (std::int64_t b = 0; b < n; b += 5) scores[std::size_t(b)] = b % 2 ? nan : infinity;
    auto counts = scores;
    for (float& s : counts) s = std::round(s);  // many that are equal to the bound
    for (auto const& some : {scores, counts}) {
      check(std::ratio<2>{}, some);
      check(std::ratio<-1, 2>{}, some);
      check(std::ratio<0>{}, some);
      check(std::ratio<1000>{}, some);
    }
  }
  using two = select::at_least<std::ratio<2>>;
  CHECK(chosen(two{}.with_budget(9), {nan, nan}).empty());
  CHECK(chosen(two{}.with_budget(9), {0, 1, 1}).empty());
  CHECK(chosen(two{}.with_budget(9), {2, std::nextafter(2.0f, 0.0f), 3, -infinity}) == std::vector<std::int64_t>{0, 2});
  CHECK(chosen(two{}.with_budget(2), {2, 5, 2, 5, 5}) == std::vector<std::int64_t>{1, 3});
  CHECK(chosen(two{}.with_budget(-5), {2, 3}).empty());
}

TEST_CASE("threshold takes the best also where a difference says nothing") {
  float const nan = std::nanf("");
  auto const within = [](std::vector<float> const& scores, std::int64_t k = 100) { return chosen(select::threshold<>{}.with_budget(k), scores); };
  using ids = std::vector<std::int64_t>;
  CHECK(within({1e30f, 1e30f, 0}) == ids{0, 1});  // Alpha is lost in 1e30
  CHECK(within({infinity, 3, nan, infinity}) == ids{0, 3});
  CHECK(within({nan, -infinity, -infinity}) == ids{1, 2});
  CHECK(within({nan, nan, nan}) == ids{0, 1, 2});
  CHECK(within({nan, nan, nan}, 2) == ids{0, 1});
  CHECK(within({nan, -5, nan}) == ids{1});
  CHECK(within({0, -4, -3.99f}) == ids{0, 2});
  CHECK(within({}).empty());
}

TEST_CASE("the integer weight of top_p is exp(-x)") {
  CHECK(select::detail::falling_weight(0) == std::uint64_t{1} << 32);
  for (double x = 0; x < 25; x += 0.00071) {
    double const exact = std::exp(-double(float(x)));
    REQUIRE(std::abs(double(select::detail::falling_weight(float(x))) * 0x1p-32 - exact) <= 0x1p-22 * exact + 0x1p-31);
  }
  for (float const x : {23.0f, 1e9f, infinity}) CHECK(select::detail::falling_weight(x) == 0);
  CHECK(select::detail::falling_weight(1e-45f) == std::uint64_t{1} << 32);
}

TEST_CASE("top_p takes the fewest highest blocks that hold a share P of the weight, up to the budget") {
  random_numbers r(5);
  auto const check = [&]<class P>(P, std::vector<float> const& scores) {
    auto const n = std::int64_t(scores.size());
    double top = -1e300, sum = 0;
    for (float const s : scores)
      if (!std::isnan(s)) top = std::max(top, double(s));
    auto const weight = [&](std::int64_t b) { return std::isnan(scores[std::size_t(b)]) ? 0 : std::exp(double(scores[std::size_t(b)]) - top); };
    for (std::int64_t b = 0; b < n; ++b) sum += weight(b);
    auto const ids = chosen(select::top_p<P>{}.with_budget(n), scores);
    auto const count = std::int64_t(ids.size());
    REQUIRE(count >= 1);
    REQUIRE(ids == best(scores, count));
    double of_chosen = 0, least = 1e300;
    for (auto const id : ids) {
      of_chosen += weight(id);
      least = std::min(least, weight(id));
    }
    double const wanted = double(P::num) / double(P::den) * sum, rounding = 0x1p-21 * sum + 0x1p-31 * double(n);
    REQUIRE(of_chosen >= wanted - rounding);
    REQUIRE(of_chosen - least < wanted + rounding);  // one less would not do
    for (std::int64_t const k : {std::int64_t{0}, std::int64_t{1}, count - 1, count, count + 1, n + 7})
      CHECK(chosen(select::top_p<P>{}.with_budget(k), scores) == best(scores, std::min(k, count)));
  };
  for (std::int64_t const n : {1, 2, 33, 257, 3000})
    for (float const spread : {0.1f, 1.0f, 5.0f, 100.0f})
      for (int i = 0; i < 3; ++i) {
        auto scores = r.normals(n, spread);
        for (float& s : scores)
          if (i == 1) s = std::round(s * 2) / 2;
        if (i == 2)
          for (std::int64_t b = 1; b < n; b += 7) scores[std::size_t(b)] = b % 2 ? std::nanf("") : -infinity;
        check(std::ratio<95, 100>{}, scores);
        check(std::ratio<1, 2>{}, scores);
        check(std::ratio<1, 1000>{}, scores);
        check(std::ratio<1>{}, scores);
      }
}

TEST_CASE("top_p of equal, infinite and undefined scores") {
  float const nan = std::nanf("");
  auto const of = [](auto p, std::vector<float> const& scores, std::int64_t k = 1000) { return chosen(select::top_p<decltype(p)>{}.with_budget(k), scores); };
  using ids = std::vector<std::int64_t>;
  using half = std::ratio<1, 2>;
  CHECK(of(half{}, {2, 2, 2, 2}) == ids{0, 1});  // exactly half is enough
  CHECK(of(half{}, {2, 2, 2, 2, 2}) == ids{0, 1, 2});
  CHECK(of(std::ratio<51, 100>{}, {2, 2, 2, 2}) == ids{0, 1, 2});
  CHECK(of(std::ratio<1>{}, {-1, 3, -1}) == ids{0, 1, 2});
  CHECK(of(std::ratio<1>{}, {-100, 3, -100}) == ids{1});  // no weight, in integers
  CHECK(of(half{}, {1, infinity, nan, infinity}) == ids{1});
  CHECK(of(std::ratio<1>{}, {1, infinity, nan, infinity}) == ids{1, 3});
  CHECK(of(half{}, {nan, -infinity, -infinity}) == ids{1});
  CHECK(of(half{}, {nan, nan, nan}) == ids{0, 1});
  CHECK(of(half{}, {nan, nan, nan}, 1) == ids{0});
  CHECK(of(half{}, {nan, -5, nan}) == ids{1});
  CHECK(of(half{}, {0.0f, -0.0f}) == ids{0});
  CHECK(of(half{}, {}).empty());
  std::vector<float> const many(70000, 1.0f);  // a bin's sum beyond 32 bits
  CHECK(of(half{}, many, 100000).size() == 35000);
}

TEST_CASE("until_missed takes the fewest highest blocks that leave at most its share, between its least and the budget") {
  random_numbers r(6);
  auto const check = [&]<class Missed, class Least>(Missed, Least, std::vector<float> const& scores) {
    auto const n = std::int64_t(scores.size());
    auto const share = [&](std::int64_t b) { return std::isnan(scores[std::size_t(b)]) ? 0 : std::exp(std::min(0.0, double(scores[std::size_t(b)]))); };
    double all = 0;
    for (std::int64_t b = 0; b < n; ++b) all += share(b);
    // Without a least, a budget that is no bound: the number that is needed.
    auto const ids = chosen(select::until_missed<Missed, std::ratio<0>>{}.with_budget(n), scores);
    auto const count = std::int64_t(ids.size());
    REQUIRE(ids == best(scores, count));
    double left = all, least = 1e300;
    for (auto const id : ids) {
      left -= share(id);
      least = std::min(least, share(id));
    }
    double const wanted = double(Missed::num) / double(Missed::den), rounding = 0x1p-21 * all + 0x1p-31 * double(n);
    REQUIRE(left <= wanted + rounding);
    if (count > 0) REQUIRE(left + least > wanted - rounding);  // one less would not do
    for (std::int64_t const k : {std::int64_t{0}, std::int64_t{1}, std::int64_t{7}, count - 1, count, count + 1, 3 * count, n, n + 7}) {
      auto const some = select::until_missed<Missed, Least>{}.with_budget(k);
      std::int64_t const lower = std::min(n, std::int64_t(std::ceil(double(std::max<std::int64_t>(k, 0)) * double(Least::num) / double(Least::den))));
      CHECK(some.min_selected(n) == lower);
      CHECK(chosen(some, scores) == best(scores, std::clamp(count, lower, std::clamp<std::int64_t>(k, lower, n))));
    }
  };
  for (std::int64_t const n : {1, 2, 33, 257, 3000})
    for (float const spread : {0.1f, 1.0f, 5.0f})
      for (int i = 0; i < 3; ++i) {
        auto scores = r.normals(n, spread);
        for (float& s : scores) {
          s -= 3 + std::log(float(n));
          if (i == 1) s = std::round(s * 2) / 2;
        }
        if (i == 2)
          for (std::int64_t b = 1; b < n; b += 7) scores[std::size_t(b)] = b % 2 ? std::nanf("") : -infinity;
        check(std::ratio<1, 20>{}, std::ratio<1, 4>{}, scores);
        check(std::ratio<1, 1000>{}, std::ratio<1, 3>{}, scores);
        check(std::ratio<1, 2>{}, std::ratio<1>{}, scores);
        check(std::ratio<1, 100>{}, std::ratio<0>{}, scores);
      }
}

TEST_CASE("until_missed of shares that are none, infinite or undefined") {
  float const nan = std::nanf("");
  using ids = std::vector<std::int64_t>;
  auto const of = [](std::vector<float> const& scores, std::int64_t k = 4) { return chosen(select::until_missed<>{}.with_budget(k), scores); };
  CHECK(of({}) == ids{});
  CHECK(of({-90, -90, -90, -90, -90}) == ids{0});                    // nothing to miss: its least
  CHECK(of({-infinity, nan, -infinity, nan, -infinity}) == ids{0});  // the same
  CHECK(of({nan, nan, nan}) == ids{0});
  CHECK(of({-1, infinity, 0, nan, -1}) == ids{0, 1, 2, 4});  // no share is more than the whole
  CHECK(of({-0.1f, -2.5f, -90, -90}, 4) == ids{0, 1});
  CHECK(of({-0.1f, -2.5f, -90, -90}, 1) == ids{0});
  CHECK(chosen(select::until_missed<>{}.with_budget(-5), {0, 0}).empty());
}

TEST_CASE("a negative budget selects nothing, all and none ignore budgets") {
  std::vector<float> const scores{3, 1, 2};
  CHECK(chosen(select::top_k{}.with_budget(-5), scores).empty());
  CHECK(chosen(select::threshold<>{}.with_budget(-5), scores).empty());
  CHECK(chosen(select::top_p<>{}.with_budget(-5), scores).empty());
  CHECK(chosen(select::all{}.with_budget(1), scores) == std::vector<std::int64_t>{0, 1, 2});
  CHECK(chosen(select::none{}.with_budget(2), scores).empty());
}

namespace {

std::vector<float> reduced(auto const& reduction, std::vector<std::vector<float>> const& rows, std::size_t width) {
  std::vector<float> flat, out(width);
  for (auto const& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  serial_team t;
  auto const n = std::int64_t(width);
  reduction(t, matrix_view<float const>{flat.data(), std::int64_t(rows.size()), n, n}, row_view<float>{out.data(), n});
  return out;
}

}  // namespace

TEST_CASE("reductions of a group agree with their definitions in double") {
  random_numbers r(2);
  for (std::size_t const group : {1, 2, 3, 7, 71})
    for (std::size_t const n : {1, 5, 64, 1000}) {
      std::vector<std::vector<float>> rows;
      for (std::size_t h = 0; h < group; ++h) rows.push_back(r.normals(std::int64_t(n), 10));
      auto const by_softmax = reduced(select::max_of_softmaxes{}, rows, n), by_sum = reduced(select::sum_of_logits{}, rows, n),
                 by_mean = reduced(select::mean_query{}, rows, n), by_mean_softmax = reduced(select::mean_of_softmaxes{}, rows, n),
                 by_most = reduced(select::max_of_logits{}, rows, n);
      std::vector<double> sums;
      for (auto const& row : rows) {
        double const top = double(*std::max_element(row.begin(), row.end()));
        double s = 0;
        for (float const x : row) s += std::exp(double(x) - top);
        sums.push_back(top + std::log(s));
      }
      for (std::size_t b = 0; b < n; ++b) {
        double softmax = -1e300, sum = 0, size = 0, weights = 0;
        float most = -infinity;
        for (std::size_t h = 0; h < group; ++h) {
          softmax = std::max(softmax, double(rows[h][b]) - sums[h]);
          weights += std::exp(double(rows[h][b]) - sums[h]) / double(group);
          most = std::max(most, rows[h][b]);
          sum += double(rows[h][b]);
          size += std::abs(double(rows[h][b]));
        }
        REQUIRE(double(by_softmax[b]) == Approx(softmax).margin(2e-5));
        REQUIRE(double(by_mean_softmax[b]) == Approx(std::log(weights)).margin(2e-5));
        REQUIRE(by_most[b] == most);
        REQUIRE(double(by_sum[b]) == Approx(sum).margin(1e-5 * size));
        REQUIRE(double(by_mean[b]) == Approx(sum / double(group)).margin(1e-5 * size));
      }
    }
}

TEST_CASE("max_of_attention is the log of the largest share of a row's attention, near and far") {
  random_numbers r(3);
  for (std::int64_t const group : {1, 2, 7})
    for (std::int64_t const n : {1, 5, 64, 1000})
      for (float const tokens : {1.0f, 16.0f}) {
        auto const rows = r.normals(group * n, 10);
        auto near = r.normals(group, 10);
        near[0] = -infinity;  // a row that sees nothing near
        std::vector<float> out(static_cast<std::size_t>(n));
        serial_team t;
        select::max_of_attention{}(t, matrix_view<float const>{rows.data(), group, n, n}, row_view<float>{out.data(), n}, {near.data(), tokens});
        for (std::int64_t b = 0; b < n; ++b) {
          double most = -1e300;
          for (std::int64_t h = 0; h < group; ++h) {
            double const top = std::max(double(near[std::size_t(h)]), double(*std::max_element(rows.begin() + h * n, rows.begin() + (h + 1) * n)));
            double sum = std::exp(double(near[std::size_t(h)]) - top);
            for (std::int64_t i = 0; i < n; ++i) sum += double(tokens) * std::exp(double(rows[std::size_t(h * n + i)]) - top);
            most = std::max(most, double(rows[std::size_t(h * n + b)]) + std::log(double(tokens)) - top - std::log(sum));
          }
          REQUIRE(double(out[std::size_t(b)]) == Approx(most).margin(2e-5));
        }
      }
}

TEST_CASE("laws of reductions: the order of the rows does not matter, one row ranks as itself") {
  random_numbers r(7);
  auto const check = [&](auto const& reduction) {
    std::vector<std::vector<float>> rows;
    for (int h = 0; h < 5; ++h) rows.push_back(r.normals(100, 5));
    auto const forward = reduced(reduction, rows, 100);
    std::reverse(rows.begin(), rows.end());
    auto const backward = reduced(reduction, rows, 100);
    for (std::size_t b = 0; b < 100; ++b) REQUIRE(double(forward[b]) == Approx(double(backward[b])).margin(1e-5));  // five f32 terms of size 10
    auto const alone = reduced(reduction, {rows[0]}, 100);
    for (std::size_t a = 0; a < 100; ++a)
      for (std::size_t b = 0; b < 100; ++b)
        if (double(rows[0][a]) > double(rows[0][b]) + 1e-5) REQUIRE(alone[a] > alone[b]);
  };
  check(select::max_of_softmaxes{});
  check(select::mean_of_softmaxes{});
  check(select::max_of_attention{});
  check(select::sum_of_logits{});
  check(select::max_of_logits{});
  check(select::mean_query{});
}

TEST_CASE("reductions of softmaxes rank what a softmax in f32 would round to zero") {
  // weights e^-200 and e^-201: both are 0 in f32, their order is not lost here
  auto const check = [](auto const& reduction) {
    auto const out = reduced(reduction, {{0, -201, -200}, {0, -301, -290}}, 3);
    CHECK(out[2] > out[1]);
  };
  check(select::max_of_softmaxes{});
  check(select::mean_of_softmaxes{});
  check(select::max_of_attention{});
}

TEST_CASE("a NaN or infinite logit takes nothing from the other blocks") {
  serial_team t;
  float const nan = std::nanf("");
  auto const check = [&](auto const& reduction, int rows_of_mean, float without_weight) {
    auto const reduced = [&](std::vector<float> rows, std::int64_t heads) {
      std::int64_t const n = std::int64_t(rows.size()) / heads;
      std::vector<float> out(static_cast<std::size_t>(n));
      reduction(t, matrix_view<float const>{rows.data(), heads, n, n}, row_view<float>{out.data(), n});
      return out;
    };
    auto const clean = reduced({1, 3, 2}, 1), dirty = reduced({1, nan, 3, 2}, 1);
    CHECK(std::isnan(dirty[1]));
    CHECK((dirty[0] == clean[0] && dirty[2] == clean[1] && dirty[3] == clean[2]));
    auto const mended = reduced({1, nan, 3, 1, 2, 3}, 2);  // the other row has a number
    CHECK(mended[1] == Approx(2 - std::log(std::exp(1.) + std::exp(2.) + std::exp(3.)) - std::log(double(rows_of_mean))));
    auto const all = reduced({1, infinity, 3, infinity}, 1);
    CHECK(all[1] == Approx(-std::log(2.)));
    CHECK((all[3] == all[1] && all[0] == -infinity && all[2] == -infinity));
    auto const none = reduced({-infinity, -infinity}, 1);
    CHECK(((none[0] == without_weight && none[1] == without_weight) || none[0] == Approx(without_weight)));
    CHECK(std::isnan(reduced({nan, nan}, 1)[0]));
  };
  check(select::max_of_softmaxes{}, 1, -std::log(2.0f));
  check(select::mean_of_softmaxes{}, 2, -std::log(2.0f));
  check(select::max_of_attention{}, 1, -infinity);
  auto const most = reduced(select::max_of_logits{}, {{1, nan, nan, -infinity}, {2, 3, nan, nan}}, 4);
  CHECK((most[0] == 2 && most[1] == 3 && std::isnan(most[2]) && most[3] == -infinity));
}
