#include "cellar/core/types.hpp"

#include <numbers>

#include "catch.hpp"
#include "cellar/core/rotary.hpp"
#include "random.hpp"

using namespace cellar;

TEST_CASE("a budget turns into tokens of the prompt") {
  CHECK(budget{.share = 0.03125}.fetched_tokens(4096) == 128);
  CHECK(budget{.share = 0.03125}.fetched_tokens(10) == 1);  // at least one token
  CHECK(budget{}.fetched_tokens(4096) == 0);
  CHECK(budget{.share = 0.5, .tokens = 7}.fetched_tokens(4096) == 7);
  CHECK(budget{.share = 1}.fetched_tokens(4096) == 4096);
}

TEST_CASE("a shape that no operation could serve is refused") {
  model_shape const good{.layers = 2, .query_heads = 14, .kv_heads = 2, .head_dim = 64};
  CHECK_NOTHROW(validate(good));
  CHECK(good.group() == 7);
  CHECK(good.scale() == 0.125f);
  auto const refused = [&](auto change, std::string const& part) {
    model_shape bad = good;
    change(bad);
    CHECK_THROWS_WITH(validate(bad), contains(part));
  };
  refused([](model_shape& s) { s.layers = 0; }, "layers");
  refused([](model_shape& s) { s.query_heads = 0; }, "query_heads");
  refused([](model_shape& s) { s.kv_heads = -1; }, "kv_heads");
  refused([](model_shape& s) { s.query_heads = 15; }, "multiple of kv_heads");
  refused([](model_shape& s) { s.head_dim = 12; }, "head_dim");
  refused([](model_shape& s) { s.head_dim = 260; }, "head_dim");
  refused([](model_shape& s) { s.head_dim = 0; }, "head_dim");
  refused([](model_shape& s) { s.head_dim = 584; }, "up to 576");
  refused([](model_shape& s) { s.softmax_scale = infinity; }, "softmax_scale");
  refused([](model_shape& s) { s.softmax_scale = -1; }, "softmax_scale");
  std::vector<double> const frequencies(31, 1.0);
  refused([&](model_shape& s) { s.rotary.inverse_frequencies = {frequencies.data(), 31}; }, "head_dim / 2");
}

TEST_CASE("an error names file and line of the caller") {
  try {
    expects(false, "a message");
    FAIL();
  } catch (precondition_error const& e) {
    CHECK_THAT(e.what(), contains("a message (") && contains("types_test.cpp:"));
  }
}

TEST_CASE("rotate turns pairs by position times frequency, in both pairings") {
  constexpr int d = 16;
  std::vector<double> frequencies;
  for (int i = 0; i < d / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / d));
  random_numbers r(3);
  auto const x = r.normals(d);
  for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
    rotary const turn{pairing, {frequencies.data(), d / 2}};
    for (i64 const position : {0, 1, 77, 131071, -5}) {
      std::vector<float> y(d), back(d);
      rotate(turn, x.data(), position, y.data());
      for (std::size_t i = 0; i < d / 2; ++i) {
        std::size_t const a = pairing == rotary_pairing::adjacent ? 2 * i : i, b = pairing == rotary_pairing::adjacent ? 2 * i + 1 : i + d / 2;
        double const turns = double(position) * frequencies[i] / (2 * std::numbers::pi);
        double const angle = (turns - std::floor(turns)) * 2 * std::numbers::pi;
        CHECK(double(y[a]) == Approx(double(x[a]) * std::cos(angle) - double(x[b]) * std::sin(angle)).margin(1e-6));
        CHECK(double(y[b]) == Approx(double(x[a]) * std::sin(angle) + double(x[b]) * std::cos(angle)).margin(1e-6));
      }
      rotate(turn, y.data(), -position, back.data());
      for (std::size_t c = 0; c < d; ++c) CHECK(back[c] == Approx(x[c]).margin(1e-6));
      rotate(turn, y.data(), -position, y.data());  // in place
      CHECK(y == back);
    }
  }
}
