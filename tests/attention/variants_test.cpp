#include <cmath>

#include "catch.hpp"
#include "cellar/attention/causal.hpp"
#include "cellar/attention/sliding_window.hpp"
#include "cellar/attention/soft_cap.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

/// Sees even positions only, and takes a tenth of the distance off a logit: a base that can be told from causal.
struct even_and_biased {
  float logit(float x, i64 q_position, i64 k_position) const { return x - 0.1f * float(q_position - k_position); }
  bool visible(i64, i64 k_position) const { return k_position % 2 == 0; }
};

}  // namespace

TEST_CASE("soft_cap is cap * tanh(logit / cap), within f32") {
  random_numbers r(1);
  auto const check = [&]<class Cap>(Cap) {
    double const cap = double(Cap::num) / double(Cap::den);
    attention::soft_cap<Cap> const a;
    for (int i = 0; i < 5000; ++i) {
      float const x = r.normal() * std::ldexp(1.0f, int(r.below(24)) - 12);
      double const expected = cap * std::tanh(double(x) / cap);
      REQUIRE(std::abs(double(a.logit(x, 9, 3)) - expected) <= 4 * 0x1p-23 * std::abs(expected));
    }
    for (float const x : {1e30f, infinity}) {
      CHECK(double(a.logit(x, 0, 0)) == Approx(cap));
      CHECK(double(a.logit(-x, 0, 0)) == Approx(-cap));
    }
    CHECK(a.logit(0, 0, 0) == 0);
    CHECK(std::isnan(a.logit(std::nanf(""), 0, 0)));
    for (float x = -200; x < 200; x += 0.37f) REQUIRE(a.logit(x, 0, 0) <= a.logit(x + 0.37f, 0, 0));
  };
  check(std::ratio<50>{});
  check(std::ratio<30>{});
  check(std::ratio<15, 2>{});
}

TEST_CASE("sliding_window: the last Tokens positions, its own included") {
  attention::sliding_window<3> const a;
  for (i64 q = 0; q < 12; ++q)
    for (i64 k = 0; k < 14; ++k) CHECK(a.visible(q, k) == (k == q || k == q - 1 || k == q - 2));
  CHECK(a.logit(1.25f, 5, 4) == 1.25f);
  attention::sliding_window<1> const own;
  CHECK(own.visible(7, 7));
  CHECK_FALSE(own.visible(7, 6));
  CHECK(attention::sliding_window<4096>{}.visible((i64{1} << 40) + 4095, i64{1} << 40));
  CHECK_FALSE(attention::sliding_window<4096>{}.visible((i64{1} << 40) + 4096, i64{1} << 40));
}

TEST_CASE("variants compose: a base sees capped logits and hides what it hides") {
  attention::soft_cap<std::ratio<50>, even_and_biased> const capped;
  CHECK(double(capped.logit(80, 7, 4)) == Approx(50 * std::tanh(1.6) - 0.3));
  CHECK(capped.visible(7, 4));
  CHECK_FALSE(capped.visible(7, 5));
  attention::sliding_window<4, even_and_biased> const window;
  for (i64 k = 0; k < 10; ++k) CHECK(window.visible(7, k) == (k == 4 || k == 6));
  CHECK(double(window.logit(1, 7, 4)) == Approx(0.7));
  attention::soft_cap<std::ratio<50>, attention::sliding_window<2>> const both;
  CHECK(both.visible(7, 6));
  CHECK_FALSE(both.visible(7, 5));
  CHECK_FALSE(both.visible(7, 8));
  CHECK(double(both.logit(100, 7, 6)) == Approx(50 * std::tanh(2.0)));
}
