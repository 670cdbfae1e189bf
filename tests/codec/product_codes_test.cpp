#include "cellar/codec/product_codes.hpp"

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

/// A codec that has learnt from rows, and its centroids.
template <class Codec>
struct learnt {
  std::vector<std::byte> state;
  Codec coder;
};
template <int D, class Codec>
learnt<Codec> learn(Codec coder, std::vector<float> const& rows) {
  learnt<Codec> l;
  l.state.resize(std::size_t(coder.state_bytes(D)));
  std::vector<std::byte> scratch(std::size_t(coder.train_scratch_bytes(D)));
  serial_team t;
  coder.with_scratch(scratch.data()).train(t, rows_of<D>(rows), 0, l.state.data());
  l.coder = coder.bind(l.state.data());
  return l;
}

template <int D, class Codec>
std::vector<float> round_trip(Codec const& coder, std::vector<float> const& rows, std::vector<std::byte>& codes) {
  row_bytes const size = coder.bytes(D);
  codes.assign(rows.size() / D * std::size_t(size.codes), std::byte{0xff});
  row_parts<std::byte> const at{codes.data(), nullptr, size.codes, 0};
  std::vector<float> y(rows.size());
  serial_team t;
  coder.encode(t, rows_of<D>(rows), at);
  coder.decode(t, row_parts<std::byte const>(at), rows_of<D>(y));
  return y;
}

double error_of(std::vector<float> const& x, std::vector<float> const& y) {
  double e = 0;
  for (std::size_t i = 0; i < x.size(); ++i) e += std::pow(double(x[i]) - double(y[i]), 2);
  return e;
}

}  // namespace

TEST_CASE("product codes name the nearest centroid of each part, ties to the lowest, and centroids are the means of what is nearest") {
  for_head_dims([](auto dim) {
    constexpr int d = dim, parts = 3, points = 8;
    random_numbers r(d);
    auto const rows = r.normals(200 * d), others = r.normals(40 * d);
    auto const before = learn<d>(codec::product_codes<parts, points, 6>{}, rows), after = learn<d>(codec::product_codes<parts, points, 7>{}, rows);
    auto const* const centroids = before.coder.centroids;
    auto const* const next = after.coder.centroids;
    std::vector<double> sums(std::size_t(points * d), 0.0);
    std::vector<int> counts(std::size_t(parts * points), 0);
    auto const check = [&](std::vector<float> const& x, bool counts_them) {
      std::vector<std::byte> codes;
      auto const y = round_trip<d>(before.coder, x, codes);
      for (std::size_t row = 0; row < x.size() / d; ++row)
        for (int part = 0; part < parts; ++part) {
          int const first = d * part / parts, n = d * (part + 1) / parts - first;
          auto const point_of = [&](int p) { return centroids + first * points + p * n; };
          auto const distance = [&](int p) {
            double e = 0;
            for (int c = 0; c < n; ++c) e += std::pow(double(x[row * d + std::size_t(first + c)]) - double(point_of(p)[c]), 2);
            return e;
          };
          int const code = int(codes[row * parts + std::size_t(part)]);
          REQUIRE(code < points);
          for (int p = 0; p < points; ++p) REQUIRE(distance(code) <= distance(p) * (1 + 1e-5) + 1e-12);
          for (int c = 0; c < n; ++c) {
            REQUIRE(y[row * d + std::size_t(first + c)] == point_of(code)[c]);
            if (counts_them) sums[std::size_t(first * points + code * n + c)] += double(x[row * d + std::size_t(first + c)]);
          }
          if (counts_them) ++counts[std::size_t(part * points + code)];
        }
    };
    check(rows, true);
    check(others, false);
    for (int part = 0; part < parts; ++part)
      for (int p = 0; p < points; ++p) {
        int const first = d * part / parts, n = d * (part + 1) / parts - first, count = counts[std::size_t(part * points + p)];
        for (int c = 0; c < n; ++c) {
          auto const i = std::size_t(first * points + p * n + c);
          REQUIRE(double(next[i]) == Approx(count > 0 ? sums[i] / count : double(centroids[i])).margin(1e-6));
        }
      }
  });
}

TEST_CASE("k-means loses less from turn to turn, nothing of as many rows as centroids, and knows empty prompts and equal rows") {
  constexpr int d = 64;
  random_numbers r(3);
  auto const rows = r.normals(500 * d), few = r.normals(16 * d);
  std::vector<std::byte> codes;
  double last = 1e300;
  auto const turn = [&]<int Iterations>(std::integral_constant<int, Iterations>) {
    double const e = error_of(rows, round_trip<d>(learn<d>(codec::product_codes<2, 16, Iterations>{}, rows).coder, rows, codes));
    CHECK(e < last);
    last = e;
  };
  turn(std::integral_constant<int, 0>{});
  turn(std::integral_constant<int, 1>{});
  turn(std::integral_constant<int, 2>{});
  turn(std::integral_constant<int, 8>{});
  CHECK(error_of(few, round_trip<d>(learn<d>(codec::product_codes<2, 64>{}, few).coder, few, codes)) < 1e-9);
  std::vector<float> const equal(20 * d, 1.5f);
  CHECK(error_of(equal, round_trip<d>(learn<d>(codec::product_codes<>{}, equal).coder, equal, codes)) == 0);
  CHECK(std::all_of(codes.begin(), codes.end(), [](std::byte b) { return b == std::byte{0}; }));  // ties
  auto const none = learn<d>(codec::product_codes<>{}, {});
  CHECK(error_of(std::vector<float>(d, 0.0f), round_trip<d>(none.coder, std::vector<float>(d, 2.0f), codes)) == 0);
  std::vector<float> large(64 * d, codec::product_codes<>{}.largest(d));
  for (std::size_t i = 0; i < large.size(); i += 3) large[i] = -large[i];
  for (float const x : round_trip<d>(learn<d>(codec::product_codes<>{}, large).coder, large, codes)) REQUIRE(std::isfinite(x));
}

TEST_CASE("product codes are scored as what they decode to") {
  for_head_dims([](auto dim) {
    constexpr int d = dim, lanes = 16;
    random_numbers r(d + 5);
    auto const rows = r.normals(lanes * d), q = r.normals(d);
    auto const l = learn<d>(codec::product_codes<3, 9>{}, r.normals(100 * d));
    std::vector<std::byte> codes;
    auto const y = round_trip<d>(l.coder, rows, codes);
    std::vector<std::byte> tile(codes.size()), prepared(std::size_t(l.coder.query_bytes(d)));
    for (std::size_t lane = 0; lane < lanes; ++lane)
      for (std::size_t i = 0; i < 3; ++i) tile[i * lanes + lane] = codes[lane * 3 + i];
    std::vector<float> scores(lanes);
    serial_team t;
    REQUIRE(l.coder.query_bytes(d) % 16 == 0);
    l.coder.template prepare_query<d>(t, q.data(), prepared.data());
    l.coder.template score_codes<d>(t, prepared.data(), tile.data(), nullptr, lanes, scores.data());
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      double expected = 0, size = 0;
      for (std::size_t c = 0; c < d; ++c) {
        expected += double(q[c]) * double(y[lane * d + c]);
        size += std::abs(double(q[c]) * double(y[lane * d + c]));
      }
      REQUIRE(double(scores[lane]) == Approx(expected).margin((d + 8) * 0x1p-24 * size));
    }
  });
}
