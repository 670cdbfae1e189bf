// The same attention for every shape: group sizes, head dimensions, lengths. A source of its own, since each width is code of its own.
#include "cache/reference.hpp"

using namespace cellar;

namespace shapes_test {

TEST_CASE("group sizes 1, 2, 3, 4, 7, 8 and 71") {
  for (int const group : {1, 2, 3, 4, 7, 8, 71}) {
    auto const check = [&]<class Scheme>(std::type_identity<Scheme>) {
      reference<Scheme> ref(1, 2, group, std::uint64_t(group));
      trial<Scheme> t(ref, {90, 40}, 3, {.tokens = 16, .window = 8});
      for (int i = 0; i < 3; ++i) t.step({0, 1}, {1, 1}, rounding);
    };
    check(std::type_identity<scheme::dense<32, float>>{});
    check(std::type_identity<scheme::quest<32, float>>{});
    check(std::type_identity<scheme::yakv_centred<32, float>>{});
  }
}

TEST_CASE("head dimensions 8 to 256") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(1, 1, 2, 4);
    trial<Scheme> t(ref, {100}, 2, {.tokens = 16, .window = 8});
    for (int i = 0; i < 2; ++i) t.step({0}, {1}, rounding);
  };
  [&]<int... D>(std::integer_sequence<int, D...>) {
    (check(std::type_identity<scheme::dense<D, float>>{}), ...);
    (check(std::type_identity<scheme::mean_landmark<D, float>>{}), ...);
    (check(std::type_identity<scheme::yakv_centred<D, float>>{}), ...);
  }
  (std::integer_sequence<int, 8, 80, 96, 128, 256>{});
}

TEST_CASE("lengths n * B + r for every r, with and without sinks and window, growing past seals") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    for (budget const b : {budget{.tokens = 32}, budget{.tokens = 32, .sinks = 3, .window = 7}, budget{.tokens = 32, .window = 200}})
      for (std::int64_t n = 1; n <= 2 * Scheme::block_tokens + 66; n += n < 2 * Scheme::block_tokens + 2 ? 1 : 13) {
        reference<Scheme> ref(1, 1, 2, std::uint64_t(n));
        trial<Scheme> t(ref, {n}, 20, b);
        for (int i = 0; i < 20; ++i) t.step({0}, {1}, rounding);
      }
  };
  check(std::type_identity<scheme::dense<32, float>>{});
  check(std::type_identity<scheme::quest<32, float>>{});
  check(std::type_identity<scheme::mean_landmark<32, float>>{});
  check(std::type_identity<scheme::yakv<32, float>>{});
}

}  // namespace shapes_test
