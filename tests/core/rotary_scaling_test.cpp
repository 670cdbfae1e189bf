#include "cellar/core/rotary_scaling.hpp"

#include <vector>

#include "catch.hpp"
#include "cellar/core/rotary.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

std::vector<double> frequencies(int head_dim, auto const& compute) {
  std::vector<double> f(std::size_t(head_dim / 2));
  compute(row_view<double>{f.data(), head_dim / 2});
  return f;
}
void check(std::vector<double> const& f, std::vector<double> const& expected) {
  REQUIRE(f.size() == expected.size());
  for (std::size_t i = 0; i < f.size(); ++i) CHECK(f[i] == Approx(expected[i]).epsilon(1e-13));
}
constexpr double two_pi = 6.283185307179586;

}  // namespace

TEST_CASE("frequencies computed by hand") {
  check(frequencies(8, [](auto f) { plain_inverse_frequencies(1e4, f); }), {1, 0.1, 0.01, 0.001});
  check(frequencies(8, [](auto f) { linear_inverse_frequencies(1e4, 4, f); }), {0.25, 0.025, 0.0025, 0.00025});
  // Over the original context the pairs turn 100, 10, 1 and 0.1 times. Between 0.5 and 2: s = (1 - 0.5) / 1.5 = 1 / 3.
  check(frequencies(8, [](auto f) { llama3_inverse_frequencies(1e4, {8, 0.5, 2, 100 * two_pi}, f); }), {1, 0.1, 0.01 * (2.0 / 3 / 8 + 1.0 / 3), 0.001 / 8});
  // b(n) = log10(1000 / n): 1.3 for 50 turns, 2.7 for 2. The ramp is 0, 0, 1/2, 1 between 1 and 3.
  yarn_scaling scaling{.factor = 4, .original_context = 1000 * two_pi, .beta_fast = 50, .beta_slow = 2};
  double magnitude = 0;
  check(frequencies(8, [&](auto f) { magnitude = yarn_inverse_frequencies(1e4, scaling, f); }), {1, 0.1, 0.01 * 0.625, 0.001 / 4});
  CHECK(magnitude == Approx(1.1386294361119891).epsilon(1e-14));
  scaling.truncates = false;  // the ramp goes from log10(20) to log10(500)
  double const low = std::log10(20.0), high = std::log10(500.0), ramp = (2 - low) / (high - low);
  check(frequencies(8, [&](auto f) { yarn_inverse_frequencies(1e4, scaling, f); }), {1, 0.1, 0.01 * (ramp / 4 + 1 - ramp), 0.001 / 4});
}

TEST_CASE("frequencies of published models, by an independent program") {
  auto const llama = frequencies(128, [](auto f) { llama3_inverse_frequencies(5e5, {8, 1, 4, 8192}, f); });  // Llama 3.1
  for (auto const& [i, expected] : std::vector<std::pair<std::size_t, double>>{{0, 1.0},
                                                                               {28, 0.0032114459947525913},
                                                                               {29, 0.002166570763503359},
                                                                               {30, 0.0013718935677611381},
                                                                               {34, 0.00017850781276799638},
                                                                               {35, 9.556212353964683e-05},
                                                                               {36, 7.78465527393245e-05},
                                                                               {63, 3.068925988914511e-07}})
    CHECK(llama[i] == Approx(expected).epsilon(1e-12));
  auto const qwen = frequencies(128, [](auto f) { yarn_inverse_frequencies(1e6, {.factor = 4, .original_context = 32768}, f); });  // Qwen2.5
  for (auto const& [i, expected] : std::vector<std::pair<std::size_t, double>>{{0, 1.0},
                                                                               {23, 0.006978305848598663},
                                                                               {24, 0.005375321490790102},
                                                                               {31, 0.0008029597275452302},
                                                                               {40, 4.445698525097307e-05},
                                                                               {63, 3.102344401879299e-07}})
    CHECK(qwen[i] == Approx(expected).epsilon(1e-12));
}

TEST_CASE("scaled frequencies agree with the cases of their definitions, in any shape") {
  for (int const d : {8, 24, 64, 80, 128, 256})
    for (double const theta : {1e4, 5e5, 1e6})
      for (double const factor : {1.0, 4.0, 32.0})
        for (double const context : {100.0, 512.0, 8192.0, 131072.0}) {
          auto const plain = frequencies(d, [&](auto f) { plain_inverse_frequencies(theta, f); });
          auto const linear = frequencies(d, [&](auto f) { linear_inverse_frequencies(theta, factor, f); });
          auto const llama = frequencies(d, [&](auto f) { llama3_inverse_frequencies(theta, {factor, 1, 4, context}, f); });
          double magnitude = 0;
          auto const yarn = frequencies(d, [&](auto f) { magnitude = yarn_inverse_frequencies(theta, {.factor = factor, .original_context = context}, f); });
          CHECK(magnitude == Approx(0.1 * std::log(factor) + 1));
          double low = std::floor(d * std::log(context / (32 * two_pi)) / (2 * std::log(theta)));
          double high = std::ceil(d * std::log(context / (1 * two_pi)) / (2 * std::log(theta)));
          low = low < 0 ? 0 : low;
          high = high > d - 1 ? d - 1 : high;
          if (low == high) high += 0.001;
          for (std::size_t i = 0; i < plain.size(); ++i) {
            double const f = 1 / std::pow(theta, 2 * double(i) / d), wave = two_pi / f;
            CHECK(plain[i] == Approx(f).epsilon(1e-13));
            CHECK(linear[i] == Approx(f / factor).epsilon(1e-13));
            double expected = f;
            if (wave > context / 1)
              expected = f / factor;
            else if (wave >= context / 4)
              expected = (1 - (context / wave - 1) / 3) * f / factor + (context / wave - 1) / 3 * f;
            CHECK(llama[i] == Approx(expected).epsilon(1e-12));
            double const ramp = double(i) <= low ? 0 : double(i) >= high ? 1 : (double(i) - low) / (high - low);
            CHECK(yarn[i] == Approx(f / factor * ramp + f * (1 - ramp)).epsilon(1e-12));
          }
          if (factor == 1)
            for (auto const& f : {linear, llama, yarn}) check(f, plain);
        }
}

TEST_CASE("mistaken parameters are refused") {
  std::vector<double> f(4);
  row_view<double> const to{f.data(), 4};
  CHECK_THROWS_WITH(plain_inverse_frequencies(1, to), contains("theta"));
  CHECK_THROWS_WITH(plain_inverse_frequencies(1e4, {}), contains("there must be frequencies"));
  CHECK_THROWS_WITH(linear_inverse_frequencies(1e4, 0, to), contains("factor"));
  CHECK_THROWS_WITH(llama3_inverse_frequencies(1e4, {8, 4, 1, 8192}, to), contains("low_frequency_factor"));
  CHECK_THROWS_WITH(yarn_inverse_frequencies(1e4, {.factor = -1}, to), contains("factor"));
  CHECK_THROWS_WITH(yarn_inverse_frequencies(1e4, {.beta_fast = 1, .beta_slow = 2}, to), contains("beta_fast"));
}

TEST_CASE("a magnitude on the keys stays on them when they are turned, there and back") {
  constexpr int d = 16;
  auto const f = frequencies(d, [](auto to) { yarn_inverse_frequencies(1e4, {}, to); });
  random_numbers r(3);
  auto const x = r.normals(d);
  rotary const turn{rotary_pairing::half_split, {f.data(), d / 2}};
  float const magnitude = 1.138629f;
  std::vector<float> key(d), back(d);
  rotate(turn, x.data(), 1000, key.data());
  for (float& k : key) k *= magnitude;  // as an engine with YaRN embeds it
  rotate(turn, key.data(), -1000, back.data());
  for (std::size_t c = 0; c < d; ++c) CHECK(back[c] == Approx(magnitude * x[c]).margin(1e-6));
}
