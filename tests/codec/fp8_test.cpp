#include "cellar/codec/fp8.hpp"

#include "codec/laws.hpp"

using namespace cellar;

namespace {

/// The value of a code by the format's definition; 0x7f and 0xff are NaN.
double value_of(unsigned code) {
  int const exponent = int(code >> 3 & 15u), mantissa = int(code & 7u);
  double const magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80u ? -magnitude : magnitude;
}

/// The nearest of all finite codes, ties to the even one.
unsigned nearest(double x) {
  unsigned const sign = std::signbit(x) ? 0x80u : 0;
  unsigned best = sign;
  for (unsigned code = sign; code < sign + 0x7f; ++code) {
    double const e = std::abs(value_of(code) - x), f = std::abs(value_of(best) - x);
    if (e < f || (e == f && code % 2 == 0)) best = code;
  }
  return best;
}

template <class Scale>
void check_scaled() {
  codec::fp8_e4m3<Scale> const coder;
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels, std::int64_t(sizeof(Scale))};
      },
      [](auto dim, coded_row const& row) {
        constexpr int d = dim;
        double most = 0;
        for (float const x : row.x) most = std::max(most, std::abs(double(x)));
        auto const s = double(to_float(detail::load<Scale>(row.scales.data())));
        double const unit = std::is_same_v<Scale, float> ? 0x1p-24 : std::is_same_v<Scale, bf16> ? 0x1p-7 : 0x1p-10;
        double const least = std::is_same_v<Scale, float> ? 0x1p-149 : std::is_same_v<Scale, bf16> ? 0x1p-133 : 0x1p-24;
        REQUIRE(s >= most / 448 * (1 - 0x1p-23) - 0x1p-149);
        REQUIRE(s <= most / 448 * (1 + unit) + least);
        for (std::size_t c = 0; c < d; ++c) {
          double const x = double(row.x[c]), y = double(row.y[c]);
          auto const code = unsigned(row.codes[c]);
          REQUIRE((code & 0x7fu) != 0x7fu);
          REQUIRE(y == Approx(value_of(code) * s).epsilon(1e-7).margin(0x1p-149));
          REQUIRE(std::abs(y - x) <= std::max(std::abs(x) / 16, s / 1024) * (1 + 1e-6) + 0x1p-140);
          if (s > 0) REQUIRE(std::abs(value_of(code) - x / s) <= std::abs(value_of(nearest(x / s)) - x / s) + 1e-6 * std::abs(x / s));
        }
      });
  check_scores(coder);
}

}  // namespace

TEST_CASE("all 256 codes of E4M3 have their values, and come back from them") {
  for (unsigned code = 0; code < 256; ++code) {
    float const x = to_float(e4m3{std::uint8_t(code)});
    if ((code & 0x7fu) == 0x7fu) {
      CHECK(std::isnan(x));
      CHECK(to_e4m3(x).bits == code);
    } else {
      CHECK(double(x) == value_of(code));
      CHECK(std::signbit(x) == (code >= 0x80));
      CHECK(to_e4m3(x).bits == code);
    }
  }
}

TEST_CASE("E4M3 rounds to the nearest code, ties to even, and saturates") {
  random_numbers r(1);
  auto const check = [](float x) {
    if (to_e4m3(x).bits != nearest(double(x))) FAIL(x << ": " << int(to_e4m3(x).bits) << " for " << nearest(double(x)));
  };
  for (unsigned code = 0; code < 0x7e; ++code) {  // midpoints, and the numbers beside them
    auto const middle = float((value_of(code) + value_of(code + 1)) / 2);
    for (float const x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      check(x);
      check(-x);
    }
  }
  for (int i = 0; i < 20000; ++i) check(r.normal() * std::ldexp(1.0f, int(r.below(30)) - 18));
  for (float const x : {448.0f, 463.9f, 464.0f, 480.0f, 1e9f, infinity}) {
    CHECK(to_e4m3(x).bits == 0x7e);
    CHECK(to_e4m3(-x).bits == 0xfe);
  }
  CHECK(std::isnan(to_float(to_e4m3(std::nanf("")))));
  CHECK(to_e4m3(1e-45f).bits == 0);
  CHECK(to_e4m3(-0.0f).bits == 0x80);
}

TEST_CASE("fp8 with a scale: within its error, from the smallest rows to the largest") {
  check_scaled<bf16>();
  check_scaled<float>();
  check_scaled<f16>();
}

TEST_CASE("fp8 without a scale stores each channel's nearest code, and saturates beyond 448") {
  codec::fp8_e4m3<codec::unscaled> const coder;
  CHECK(coder.largest(64) == 448.0f);
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels, 0};
      },
      [](auto, coded_row const& row) {
        for (std::size_t c = 0; c < row.x.size(); ++c) {
          REQUIRE(unsigned(row.codes[c]) == nearest(double(row.x[c])));
          REQUIRE(double(row.y[c]) == value_of(unsigned(row.codes[c])));
          REQUIRE(std::abs(double(row.y[c]) - double(row.x[c])) <= std::max(std::abs(double(row.x[c])) / 16, 0x1p-10));
        }
      });
  check_scores(coder);
  std::vector<float> const x{1000, -1000, 1, 449, infinity, -infinity, 0, 2};
  std::vector<std::byte> codes(8);
  std::vector<float> y(8);
  serial_team t;
  coder.encode(t, rows_of<8>(x), row_parts<std::byte>{codes.data(), nullptr, 8, 0});
  coder.decode(t, row_parts<std::byte const>{codes.data(), nullptr, 8, 0}, rows_of<8>(y));
  CHECK(y == std::vector<float>{448, -448, 1, 448, 448, -448, 0, 2});
}
