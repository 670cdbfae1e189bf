#include "cellar/codec/nvfp4.hpp"

#include "codec/laws.hpp"

using namespace cellar;

namespace {

double value_of(unsigned code) {
  double const values[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8u ? -values[code & 7u] : values[code & 7u];
}
double block_scale(std::byte b) {  // E4M3, which has a test of its own
  return double(to_float(e4m3{std::uint8_t(b)}));
}

}  // namespace

TEST_CASE("E2M1 has its sixteen values, and its thresholds go to the even code") {
  for (unsigned code = 0; code < 16; ++code) {
    CHECK(double(codec::nvfp4::from_e2m1(code)) == value_of(code));
    if (code != 8) CHECK(codec::nvfp4::to_e2m1(codec::nvfp4::from_e2m1(code)) == code);  // 8 is -0
  }
  double const thresholds[] = {0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5};
  for (unsigned i = 0; i < 7; ++i) {
    auto const x = float(thresholds[i]);
    CHECK(codec::nvfp4::to_e2m1(std::nextafter(x, 0.0f)) == i);
    CHECK(codec::nvfp4::to_e2m1(x) == i + i % 2);
    CHECK(codec::nvfp4::to_e2m1(std::nextafter(x, 9.0f)) == i + 1);
    CHECK(codec::nvfp4::to_e2m1(-x) == (i + i % 2 ? 8 + i + i % 2 : 8));
  }
  for (float const x : {6.0f, 7.0f, 1e9f, infinity}) CHECK(codec::nvfp4::to_e2m1(x) == 7);
}

TEST_CASE("nvfp4: scales and codes by their definition, errors within it, from the smallest rows to the largest") {
  codec::nvfp4 const coder;
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels / 2, (channels + 15) / 16 + 4};
      },
      [](auto dim, coded_row const& row) {
        constexpr std::size_t d = dim, blocks = (d + 15) / 16;
        double most = 0;
        for (float const x : row.x) most = std::max(most, std::abs(double(x)));
        auto const g = double(detail::load<float>(row.scales.data() + blocks));
        REQUIRE(g == Approx(most / 2688).epsilon(1e-6).margin(0x1p-149));
        bool const is_plain = g > 0x1p-120;  // else g itself has few bits
        for (std::size_t b = 0; b < blocks; ++b) {
          double of_block = 0;
          for (std::size_t c = 16 * b; c < std::min(d, 16 * b + 16); ++c) of_block = std::max(of_block, std::abs(double(row.x[c])));
          double const s = block_scale(row.scales[b]);
          REQUIRE(s >= 0);
          REQUIRE(s <= 448);
          if (is_plain) REQUIRE(std::abs(s - of_block / 6 / g) <= std::max(s / 16, 0x1p-10) * (1 + 1e-5));  // nearest E4M3, but for rounding of the quotient
          for (std::size_t c = 16 * b; c < std::min(d, 16 * b + 16); ++c) {
            unsigned const code = unsigned(row.codes[c / 2]) >> (c % 2 ? 4 : 0) & 15u;
            double const x = double(row.x[c]), y = double(row.y[c]);
            REQUIRE(y == Approx(value_of(code) * s * g).epsilon(1e-6).margin(0x1p-148));
            REQUIRE(std::abs(y - x) <= std::max(s * g, g / 170) * (1 + 1e-6) + 0x1p-138);
            if (is_plain && s > 0) {
              double const v = x / g / s;
              double nearest = 1e300;
              for (unsigned other = 0; other < 16; ++other) nearest = std::min(nearest, std::abs(value_of(other) - v));
              REQUIRE(std::abs(value_of(code) - v) <= nearest + 1e-6 * std::abs(v));
            }
          }
        }
      });
  check_scores(coder);
}

TEST_CASE("the error of normal rows is that of the format") {
  constexpr int d = 128;
  random_numbers r(5);
  codec::nvfp4 const coder;
  std::vector<std::byte> bytes(64 + 12);
  double error = 0;
  serial_team t;
  for (int i = 0; i < 2000; ++i) {
    auto const x = r.normals(d);
    std::vector<float> y(d);
    coder.encode(t, rows_of<d>(x), row_parts<std::byte>{bytes.data(), bytes.data() + 64, 0, 0});
    coder.decode(t, row_parts<std::byte const>{bytes.data(), bytes.data() + 64, 0, 0}, rows_of<d>(y));
    for (std::size_t c = 0; c < d; ++c) error += std::pow(double(x[c]) - double(y[c]), 2) / d / 2000;
  }
  CHECK(error == Approx(0.0089).margin(0.0005));
}
