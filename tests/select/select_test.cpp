#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "catch.hpp"
#include "cellar/select/all.hpp"
#include "cellar/select/none.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/top_k.hpp"
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

TEST_CASE("a negative budget selects nothing, all and none ignore budgets") {
  std::vector<float> const scores{3, 1, 2};
  CHECK(chosen(select::top_k{}.with_budget(-5), scores).empty());
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
                 by_mean = reduced(select::mean_query{}, rows, n);
      std::vector<double> sums;
      for (auto const& row : rows) {
        double const top = double(*std::max_element(row.begin(), row.end()));
        double s = 0;
        for (float const x : row) s += std::exp(double(x) - top);
        sums.push_back(top + std::log(s));
      }
      for (std::size_t b = 0; b < n; ++b) {
        double softmax = -1e300, sum = 0, size = 0;
        for (std::size_t h = 0; h < group; ++h) {
          softmax = std::max(softmax, double(rows[h][b]) - sums[h]);
          sum += double(rows[h][b]);
          size += std::abs(double(rows[h][b]));
        }
        REQUIRE(double(by_softmax[b]) == Approx(softmax).margin(2e-5));
        REQUIRE(double(by_sum[b]) == Approx(sum).margin(1e-5 * size));
        REQUIRE(double(by_mean[b]) == Approx(sum / double(group)).margin(1e-5 * size));
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
  check(select::sum_of_logits{});
  check(select::mean_query{});
}

TEST_CASE("max_of_softmaxes ranks what a softmax in f32 would round to zero") {
  // weights e^-200 and e^-201: both are 0 in f32, their order is not lost here
  auto const out = reduced(select::max_of_softmaxes{}, {{0, -201, -200}}, 3);
  CHECK(out[2] > out[1]);
}

TEST_CASE("a NaN or infinite logit takes nothing from the other blocks") {
  serial_team t;
  float const nan = std::nanf("");
  auto const reduced = [&](std::vector<float> rows, std::int64_t heads) {
    std::int64_t const n = std::int64_t(rows.size()) / heads;
    std::vector<float> out(static_cast<std::size_t>(n));
    select::max_of_softmaxes{}(t, matrix_view<float const>{rows.data(), heads, n, n}, row_view<float>{out.data(), n});
    return out;
  };
  auto const clean = reduced({1, 3, 2}, 1), dirty = reduced({1, nan, 3, 2}, 1);
  CHECK(std::isnan(dirty[1]));
  CHECK((dirty[0] == clean[0] && dirty[2] == clean[1] && dirty[3] == clean[2]));
  auto const mended = reduced({1, nan, 3, 1, 2, 3}, 2);  // the other row has a number
  CHECK(mended[1] == Approx(2 - std::log(std::exp(1.) + std::exp(2.) + std::exp(3.))));
  auto const all = reduced({1, infinity, 3, infinity}, 1);
  CHECK(all[1] == Approx(-std::log(2.)));
  CHECK((all[3] == all[1] && all[0] == -infinity && all[2] == -infinity));
  auto const none = reduced({-infinity, -infinity}, 1);
  CHECK(none[0] == Approx(-std::log(2.)));
  CHECK(std::isnan(reduced({nan, nan}, 1)[0]));
}
