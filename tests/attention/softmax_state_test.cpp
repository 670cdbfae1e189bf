#include "cellar/attention/softmax_state.hpp"

#include <cmath>

#include "catch.hpp"
#include "cellar/attention/causal.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

constexpr int d = 8;

struct part {
  attention::softmax_state state;
  std::vector<float> o = std::vector<float>(d, 0.f);
};

/// One part of the keys by the state's definition.
part over(std::vector<float> const& logits, std::vector<float> const& values, std::size_t begin, std::size_t end) {
  part p;
  for (std::size_t i = begin; i < end; ++i) p.state.m = std::max(p.state.m, logits[i]);
  for (std::size_t i = begin; i < end; ++i) {
    float const w = std::exp(logits[i] - p.state.m);
    p.state.l += w;
    for (std::size_t c = 0; c < d; ++c) p.o[c] += w * values[i * d + c];
  }
  return p;
}

void merge(part& into, part const& other) { attention::merge(into.state, into.o.data(), other.state, other.o.data(), d); }

}  // namespace

TEST_CASE("parts merge to the whole, in any grouping and order") {
  random_numbers r(1);
  for (float const spread : {1.0f, 30.0f, 200.0f}) {
    std::size_t const n = 60;
    auto const logits = r.normals(n, spread), values = r.normals(n * d);
    double top = -1e300, sum = 0;
    std::vector<double> expected(d, 0.0);
    for (float const x : logits) top = std::max(top, double(x));
    for (std::size_t i = 0; i < n; ++i) {
      double const w = std::exp(double(logits[i]) - top);
      sum += w;
      for (std::size_t c = 0; c < d; ++c) expected[c] += w * double(values[i * d + c]);
    }
    for (auto const& cuts : {std::vector<std::size_t>{0, 60}, {0, 1, 60}, {0, 10, 20, 30, 60}, {0, 59, 60}, {0, 0, 30, 30, 60}}) {
      part forward, backward;
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
        merge(forward, over(logits, values, cuts[i], cuts[i + 1]));
        merge(backward, over(logits, values, cuts[cuts.size() - 2 - i], cuts[cuts.size() - 1 - i]));
      }
      for (part const& p : {forward, backward}) {
        CHECK(double(p.state.m) == Approx(top));
        for (std::size_t c = 0; c < d; ++c) CHECK(double(p.o[c] / p.state.l) == Approx(expected[c] / sum).margin(2e-6));
      }
    }
  }
}

TEST_CASE("the empty state is the identity, and nothing merged with nothing is nothing") {
  random_numbers r(2);
  auto const logits = r.normals(5), values = r.normals(5 * d);
  part const some = over(logits, values, 0, 5);
  part left, right = some, empty;
  merge(left, some);
  merge(right, part{});
  for (part const& p : {left, right}) {
    CHECK(p.state.m == some.state.m);
    CHECK(p.state.l == some.state.l);
    CHECK(p.o == some.o);
  }
  merge(empty, part{});
  CHECK(empty.state.l == 0);
  CHECK(empty.state.m == -infinity);
  CHECK(empty.o == std::vector<float>(d, 0.f));
}

TEST_CASE("causal: a query sees its own position and those before") {
  attention::causal const a;
  CHECK(a.visible(5, 5));
  CHECK(a.visible(5, 0));
  CHECK_FALSE(a.visible(5, 6));
  CHECK(a.logit(1.25f, 5, 0) == 1.25f);
}
