// An attention variant of one's own: a bias that grows with distance, as of ALiBi (Press et al., arXiv:2108.12409), with one slope for all heads.
#include <cstdio>
#include <ratio>

#include "problem.hpp"

/// logit - Slope * (query position - key position). A variant sees no head: models with a slope for each need a cache, or a step of operations, a slope.
template <class Slope>
struct linear_bias {
  static constexpr float slope = float(double(Slope::num) / double(Slope::den));

  CELLAR_HD float logit(float x, cellar::i64 q_position, cellar::i64 k_position) const { return x - slope * float(q_position - k_position); }
  CELLAR_HD bool visible(cellar::i64 q_position, cellar::i64 k_position) const { return k_position <= q_position; }
};
static_assert(cellar::attention_variant<linear_bias<std::ratio<1, 256>>>);

struct biased : cellar::scheme_defaults<64> {
  static constexpr cellar::budget published{.sinks = 4, .window = 64};
  using attention = linear_bias<std::ratio<1, 256>>;
};

int main() {
  problem const p = random_problem(2);
  auto const got = decode<biased>(p);
  double const error = relative_error(got, exact(p, [](double x, cellar::i64 q, cellar::i64 k) { return x - double(q - k) / 256; }));
  double const without = relative_error(got, exact(p));
  std::printf("relative error %.4f; of attention without the bias %.4f\n", error, without);
  return error < 0.01 && without > 0.1 ? 0 : 1;
}
