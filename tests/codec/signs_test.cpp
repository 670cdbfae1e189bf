#include "cellar/codec/signs.hpp"

#include "codec/laws.hpp"
#include "codec/rotated.hpp"

using namespace cellar;

namespace {

template <std::uint32_t Seed, class Scale>
void check_signs() {
  codec::signs<Seed, Scale> const coder;
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels / 8, std::int64_t(sizeof(Scale))};
      },
      [](auto dim, coded_row const& row) {
        constexpr std::size_t d = dim;
        double squares = 0, sizes = 0, most = 0;
        std::vector<double> y;
        for (std::size_t i = 0; i < d; ++i) {
          y.push_back(rotated<Seed>(row.x, i));
          squares += double(row.x[i]) * double(row.x[i]);
          sizes += std::abs(y.back());
          most = std::max(most, std::abs(double(row.x[i])));
        }
        double const f = sizes > 0 ? squares / sizes : 0, stored = double(to_float(detail::load<Scale>(row.scales.data())));
        double const unit = std::is_same_v<Scale, float> ? 1e-5 : std::is_same_v<Scale, bf16> ? 0x1p-8 : 0x1p-11;
        double const least = std::is_same_v<Scale, float> ? 0x1p-147 : std::is_same_v<Scale, bf16> ? 0x1p-133 : 0x1p-24;
        REQUIRE(std::abs(stored - f) <= f * (unit + 1e-5) + least);
        std::vector<double> signs(d);
        for (std::size_t i = 0; i < d; ++i) {
          bool const is_set = int(row.codes[i / 8]) >> (i % 8) & 1;
          if (std::abs(y[i]) > 1e-5 * most) REQUIRE(is_set == (y[i] > 0));
          signs[i] = is_set ? 1 : -1;
        }
        for (std::size_t c = 0; c < d; ++c) {
          double const expected = rotated_back<Seed>(signs, c) * stored;
          REQUIRE(double(row.y[c]) == Approx(expected).epsilon(1e-5).margin(1e-5 * stored + 1e-42));
        }
      });
}

}  // namespace

TEST_CASE("signs of a rotated row, and the factor by which they have its product with itself") {
  check_signs<1, bf16>();
  check_signs<7, float>();
  check_signs<0, f16>();
}

TEST_CASE("signs are scored as what they decode to") {
  check_scores(codec::signs<>{});
  check_scores(codec::signs<3, float>{});
}

TEST_CASE("a product with signs is unbiased: over rotations its mean is the product, and its spread that of one bit a channel") {
  constexpr int d = 128, seeds = 48;
  random_numbers r(11);
  auto const x = r.normals(d), q = r.normals(d);
  double exact = 0, q2 = 0, x2 = 0;
  for (std::size_t c = 0; c < d; ++c) {
    exact += double(q[c]) * double(x[c]);
    q2 += double(q[c]) * double(q[c]);
    x2 += double(x[c]) * double(x[c]);
  }
  std::vector<double> errors;
  auto const estimate = [&]<std::uint32_t Seed>(std::integral_constant<std::uint32_t, Seed>) {
    codec::signs<Seed, float> const coder;
    std::vector<std::byte> codes(d / 8), scale(4);
    std::vector<float> y(d);
    serial_team t;
    row_parts<std::byte> const at{codes.data(), scale.data(), 0, 0};
    coder.encode(t, rows_of<d>(x), at);
    coder.decode(t, at, rows_of<d>(y));
    double product = 0, own = 0;
    for (std::size_t c = 0; c < d; ++c) {
      product += double(q[c]) * double(y[c]);
      own += double(x[c]) * double(y[c]);
    }
    REQUIRE(own == Approx(x2).epsilon(1e-5));
    errors.push_back((product - exact) / std::sqrt(q2 * x2));
  };
  [&]<std::uint32_t... Seed>(std::integer_sequence<std::uint32_t, Seed...>) { (estimate(std::integral_constant<std::uint32_t, Seed + 1>{}), ...); }
  (std::make_integer_sequence<std::uint32_t, seeds>{});
  double mean = 0, spread = 0;
  for (double const e : errors) mean += e / seeds;
  for (double const e : errors) spread += (e - mean) * (e - mean) / (seeds - 1);
  double const expected = std::sqrt((3.14159265 / 2 - 1) / d);
  CHECK(std::sqrt(spread) > expected / 2);
  CHECK(std::sqrt(spread) < expected * 2);
  CHECK(std::abs(mean) < 3 * expected / std::sqrt(double(seeds)));
}
