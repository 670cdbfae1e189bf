// What ParisKV codes of keys: runs of a rotated row as directions in four bits a channel, or as centroids on the sphere.
#include <numeric>

#include "cellar/codec/direction_codes.hpp"
#include "cellar/codec/sphere_centroids.hpp"
#include "codec/laws.hpp"
#include "codec/rotated.hpp"

using namespace cellar;

namespace {

constexpr double magnitudes[8] = {0.0420, 0.1266, 0.2130, 0.3025, 0.3973, 0.5001, 0.6169, 0.7633};

template <std::uint32_t Seed, class Scale>
void check_directions() {
  check_codec_laws(
      codec::direction_codes<Seed, Scale>{},
      [](std::int64_t channels) {
        return row_bytes{channels / 2, channels / 8 * std::int64_t(sizeof(Scale))};
      },
      [](auto dim, coded_row const& row) {
        constexpr std::size_t d = dim;
        double most = 0;
        for (float const x : row.x) most = std::max(most, std::abs(double(x)));
        double const unit = std::is_same_v<Scale, float> ? 1e-5 : std::is_same_v<Scale, bf16> ? 0x1p-8 : 0x1p-11;
        double const least = std::is_same_v<Scale, float> ? 0x1p-140 : std::is_same_v<Scale, bf16> ? 0x1p-133 : 0x1p-24;
        std::vector<double> values(d);
        for (std::size_t run = 0; run < d / 8; ++run) {
          double u[8], length = 0, along = 0;
          for (std::size_t i = 0; i < 8; ++i) length += std::pow(u[i] = rotated<Seed>(row.x, run * 8 + i), 2);
          length = std::sqrt(length);
          bool const is_something = length > 1e-5 * most && length > 0;
          for (std::size_t i = 0; i < 8; ++i) {
            int const code = int(row.codes[run * 4 + i / 2]) >> (4 * (i % 2)) & 15;
            double const chosen = magnitudes[code & 7];
            values[run * 8 + i] = code & 8 ? chosen : -chosen;
            if (!is_something) continue;
            u[i] /= length;
            if (std::abs(u[i]) > 1e-4) REQUIRE(bool(code & 8) == (u[i] > 0));
            for (double const other : magnitudes) REQUIRE(std::abs(std::abs(u[i]) - chosen) <= std::abs(std::abs(u[i]) - other) + 3e-4);  // four digits
            along += chosen * std::abs(u[i]);
          }
          double const w = double(to_float(detail::load<Scale>(row.scales.data() + run * sizeof(Scale)))), expected = is_something ? length / along : 0;
          REQUIRE(std::abs(w - expected) <= expected * (unit + 1e-4) + least + 1e-5 * most);
          for (std::size_t i = 0; i < 8; ++i) values[run * 8 + i] *= w;
        }
        double size = 0;
        for (double const x : values) size = std::max(size, std::abs(x));
        for (std::size_t c = 0; c < d; ++c) REQUIRE(double(row.y[c]) == Approx(rotated_back<Seed>(values, c)).epsilon(1e-5).margin(1e-4 * size + 1e-42));
      });
}

}  // namespace

TEST_CASE("direction codes are the nearest magnitudes of each run's direction, and weights give a run itself along it") {
  check_directions<1, bf16>();
  check_directions<5, float>();
  check_directions<0, f16>();
}

TEST_CASE("direction codes are scored as what they decode to") {
  check_scores(codec::direction_codes<>{});
  check_scores(codec::direction_codes<3, float>{});
}

TEST_CASE("direction codes estimate products of normal rows within their error") {
  constexpr int d = 128;
  random_numbers r(3);
  double error = 0, size = 0;
  serial_team t;
  codec::direction_codes<> const coder;
  for (int i = 0; i < 200; ++i) {
    auto const x = r.normals(d);
    std::vector<std::byte> codes(d / 2), scales(d / 4);
    std::vector<float> y(d);
    row_parts<std::byte> const at{codes.data(), scales.data(), 0, 0};
    coder.encode(t, rows_of<d>(x), at);
    coder.decode(t, at, rows_of<d>(y));
    for (std::size_t c = 0; c < d; ++c) {
      error += std::pow(double(x[c] - y[c]), 2);
      size += std::pow(double(x[c]), 2);
    }
  }
  CHECK(error / size > 0.003);
  CHECK(error / size < 0.012);
}

TEST_CASE("sphere centroids are the signs of each rotated run, and what they decode to has length one") {
  auto const check = []<std::uint32_t Seed>(std::integral_constant<std::uint32_t, Seed>) {
    check_codec_laws(
        codec::sphere_centroids<Seed>{},
        [](std::int64_t channels) {
          return row_bytes{channels / 8, 0};
        },
        [](auto dim, coded_row const& row) {
          constexpr std::size_t d = dim;
          double most = 0;
          for (float const x : row.x) most = std::max(most, std::abs(double(x)));
          std::vector<double> values(d);
          for (std::size_t i = 0; i < d; ++i) {
            bool const is_set = int(row.codes[i / 8]) >> (i % 8) & 1;
            if (double const y = rotated<Seed>(row.x, i); std::abs(y) > 1e-5 * most) REQUIRE(is_set == (y > 0));
            values[i] = (is_set ? 1 : -1) / std::sqrt(double(d));
          }
          for (std::size_t c = 0; c < d; ++c) REQUIRE(double(row.y[c]) == Approx(rotated_back<Seed>(values, c)).margin(1e-6));
        });
  };
  check(std::integral_constant<std::uint32_t, 1>{});
  check(std::integral_constant<std::uint32_t, 9>{});
}

TEST_CASE("centroids are ordered by their product with a query, ties by the lowest") {
  random_numbers r(4);
  for (int turn = 0; turn < 200; ++turn) {
    auto q = r.normals(8);
    if (turn % 4 == 1)
      for (float& x : q) x = std::round(2 * x);  // many ties, sums exact
    if (turn % 4 == 2) q[std::size_t(r.below(8))] = 0;
    if (turn == 3) q.assign(8, 0.0f);
    if (turn == 7) q.assign(8, -1.0f);
    auto const product = [&](int centroid) {
      double s = 0;
      for (int i = 0; i < 8; ++i) s += centroid >> i & 1 ? double(q[std::size_t(i)]) : -double(q[std::size_t(i)]);
      return s;
    };
    std::vector<int> expected(256);
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return product(a) > product(b) + 1e-6; });
    std::uint8_t order[256];
    codec::sphere_centroids<>::order_centroids(q.data(), order);
    for (int i = 0; i < 256; ++i) {
      REQUIRE(product(order[i]) == Approx(product(expected[std::size_t(i)])).margin(2e-6));
      if (turn % 4 == 1 || turn == 3 || turn == 7) REQUIRE(int(order[i]) == expected[std::size_t(i)]);
    }
  }
}
