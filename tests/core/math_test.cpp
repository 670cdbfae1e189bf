#include "cellar/core/math.hpp"

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

/// Value of a small float from its definition: sign, exponent of E bits, mantissa of M bits.
template <int E, int M>
double small_float(unsigned bits) {
  int const bias = (1 << (E - 1)) - 1;
  unsigned const exponent = bits >> M & ((1u << E) - 1), mantissa = bits & ((1u << M) - 1);
  double const sign = bits >> (E + M) ? -1 : 1;
  if (exponent == (1u << E) - 1) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(double(mantissa), 1 - bias - M);
  return sign * std::ldexp(double(mantissa) + double(1u << M), int(exponent) - bias - M);
}

/// x rounded to the type by comparing its two neighbours in double.
template <class T, int E, int M>
unsigned nearest_bits(float x, unsigned near_guess) {
  unsigned best = near_guess;
  double const limit = small_float<E, M>(((1u << E) - 2) << M | ((1u << M) - 1));
  double const step = std::ldexp(1.0, (1 << (E - 1)) - 1 - M);
  for (unsigned bits : {near_guess - 1, near_guess, near_guess + 1}) {
    if (((bits ^ near_guess) >> (E + M)) != 0) continue;
    auto const value = [&](unsigned b) {
      double const v = small_float<E, M>(b);
      return std::isinf(v) ? std::copysign(limit + step, v) : v;  // infinity stands where the next number would
    };
    if (std::isnan(value(bits))) continue;
    double const e = std::abs(value(bits) - double(x)), f = std::abs(value(best) - double(x));
    if (e < f || (e == f && bits % 2 == 0)) best = bits;
  }
  return best;
}

template <class T, int E, int M>
void check_storage_type() {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    double const expected = small_float<E, M>(bits);
    float const x = to_float(T{std::uint16_t(bits)});
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(x));
      REQUIRE(std::isnan(to_float(from_float<T>(x))));
    } else {
      REQUIRE(double(x) == expected);
      REQUIRE(from_float<T>(x).bits == bits);
    }
  }
  random_numbers r(1);
  for (int i = 0; i < 200000; ++i) {
    float const x = r.normal() * std::ldexp(1.0f, int(r.below(60)) - 40);
    unsigned const bits = from_float<T>(x).bits;
    REQUIRE(bits == nearest_bits<T, E, M>(x, bits));
  }
  REQUIRE(std::isinf(to_float(from_float<T>(std::numeric_limits<float>::infinity()))));
  REQUIRE(to_float(from_float<T>(-std::numeric_limits<float>::infinity())) == -std::numeric_limits<float>::infinity());
}

}  // namespace

TEST_CASE("bf16 holds what its bits say and rounds to nearest even") { check_storage_type<bf16, 8, 7>(); }
TEST_CASE("f16 holds what its bits say and rounds to nearest even") {
  check_storage_type<f16, 5, 10>();
  CHECK(std::isinf(to_float(from_float<f16>(65520.0f))));
  CHECK(to_float(from_float<f16>(65519.0f)) == 65504.0f);
  CHECK(to_float(from_float<f16>(-1e10f)) == -infinity);
}

TEST_CASE("rounded_down and rounded_up are the neighbours of a number, or itself") {
  random_numbers r(4);
  auto const check = [&]<class T>(T) {
    for (int i = 0; i < 20000; ++i) {
      float const x = r.normal() * std::ldexp(1.0f, int(r.below(44)) - 30);
      float const down = to_float(rounded_down<T>(x)), up = to_float(rounded_up<T>(x));
      REQUIRE((down <= x && x <= up));
      if (down == up) continue;
      float const middle = down / 2 + up / 2;  // nothing of the type lies between them
      REQUIRE((to_float(from_float<T>(middle)) == down || to_float(from_float<T>(middle)) == up));
    }
    for (float const x : {0.0f, 1.0f, -3.0f, 60000.0f}) {
      CHECK(to_float(rounded_down<T>(x)) <= x);
      CHECK(to_float(rounded_up<T>(x)) >= x);
    }
    CHECK(to_float(rounded_up<T>(1e-45f)) > 0);
    CHECK(to_float(rounded_down<T>(1e-45f)) == (std::is_same_v<T, float> ? 1e-45f : 0.0f));
    CHECK(to_float(rounded_up<T>(0.0f)) == 0);
  };
  check(float{});
  check(bf16{});
  check(f16{});
}

TEST_CASE("ordered_bits sorts as numbers do, NaN first") {
  std::vector<float> const ascending{-infinity, -3e38f, -1.5f, -1e-45f, 0.0f, 1e-45f, 1e-30f, 1.0f, 3e38f, infinity};
  for (std::size_t i = 0; i + 1 < ascending.size(); ++i) CHECK(ordered_bits(ascending[i]) < ordered_bits(ascending[i + 1]));
  CHECK(ordered_bits(-0.0f) == ordered_bits(0.0f));
  for (float const x : ascending) CHECK(from_ordered_bits(ordered_bits(x)) == x);
  CHECK(std::isnan(from_ordered_bits(ordered_bits(std::nanf("")))));
  CHECK(ordered_bits(std::nanf("")) < ordered_bits(-infinity));
  CHECK(ordered_bits(-std::nanf("")) < ordered_bits(-infinity));
}

TEST_CASE("is_finite refuses infinities and NaN only") {
  for (float x : {0.0f, -0.0f, 1e-45f, 3.4e38f, -3.4e38f}) CHECK(is_finite(x));
  for (float x : {infinity, -infinity, std::nanf("")}) CHECK_FALSE(is_finite(x));
}

TEST_CASE("exponential is within 2 ulp on the softmax range and vanishes below it") {
  for (double x = -87; x <= 0; x += 0.00173) {
    double const exact = std::exp(double(float(x)));
    float const ulp = std::nextafter(float(exact), infinity) - float(exact);
    REQUIRE(std::abs(double(exponential(float(x))) - exact) <= 2.0 * double(ulp));
  }
  CHECK(exponential(0.0f) == 1.0f);
  CHECK(exponential(-105.0f) == 0.0f);
  CHECK(exponential(-infinity) == 0.0f);
}

TEST_CASE("exponential of anything a softmax may meet: falls to zero and never below, subnormals included") {  // H19
  double const least = 0x1p-149;
  float before = exponential(-87.0f);
  for (float x = -87; x >= -105; x = std::nextafter(x, -infinity) - 1e-5f) {
    double const exact = std::exp(double(x));
    float const y = exponential(x);
    REQUIRE(std::abs(double(y) - exact) <= std::max(2.0 * least, 2 * 0x1p-23 * exact));  // 2 ulp, of subnormals too
    REQUIRE(y >= 0);
    REQUIRE(y <= before);
    before = y;
  }
  for (float const x : {-104.0f, -105.0f, -1e3f, -1e4f, -1e30f, -largest<float>, -infinity}) {
    CHECK(exponential(x) == 0.0f);
    CHECK(!std::signbit(exponential(x)));
  }
  for (float const x : {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-39f, -1e-39f, -0x1p-26f}) CHECK(exponential(x) == 1.0f);
  CHECK(std::isnan(exponential(std::nanf(""))));
}

TEST_CASE("dot agrees with a sum in double") {
  random_numbers r(2);
  auto const check = [&]<int D>(std::integral_constant<int, D>) {
    auto const a = r.normals(D), b = r.normals(D);
    double exact = 0, size = 0;
    for (std::size_t i = 0; i < D; ++i) {
      exact += double(a[i]) * double(b[i]);
      size += std::abs(double(a[i]) * double(b[i]));
    }
    CHECK(std::abs(double(dot<D>(a.data(), b.data())) - exact) <= size * D * 0x1p-24);
  };
  check(std::integral_constant<int, 8>{});
  check(std::integral_constant<int, 24>{});
  check(std::integral_constant<int, 64>{});
  check(std::integral_constant<int, 256>{});
}

TEST_CASE("ceil_div and round_up count in 64 bits") {
  CHECK(ceil_div(0, 7) == 0);
  CHECK(ceil_div(1, 7) == 1);
  CHECK(ceil_div(7, 7) == 1);
  CHECK(ceil_div(8, 7) == 2);
  CHECK(round_up(i64{1} << 33, 64) == i64{1} << 33);
  CHECK(round_up((i64{1} << 33) + 1, 64) == (i64{1} << 33) + 64);
}
