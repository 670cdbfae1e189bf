// What a step says that it missed, and selections by it: against definitions in double, and at both ends.
#include <set>

#include "cache/selection.hpp"

using namespace cellar;

namespace missed_test {

namespace {

constexpr int d = 32;

template <class Scheme>
struct watched : Scheme {
  static constexpr bool estimates_missed = true;
};

using exact = watched<scheme::exact_key<d, float>>;
using bounds = watched<scheme::quest<d, float>>;
using means = watched<scheme::mean_landmark<d, float>>;
using codes = watched<scheme::yakv_centred<d, float>>;
using beside_mean_value = watched<scheme::sparq<d, float, 8>>;  // whose rest is in the output, too
struct beside_outliers : watched<scheme::mean_landmark<d, float>> {
  using outliers = cellar::select::least_cosine;
};
using guarded = scheme::yakv_guarded<d, float, std::ratio<1, 20>, std::ratio<1, 4>>;
struct guarded_blocks : watched<scheme::mean_landmark<d, float>> {
  using reduce = cellar::select::max_of_attention;
  using select = cellar::select::until_missed<std::ratio<1, 10>, std::ratio<1, 8>>;
};
struct guarded_outliers : beside_outliers {
  using reduce = cellar::select::max_of_attention;
  using select = cellar::select::until_missed<std::ratio<1, 10>, std::ratio<0>>;
};

/// Blocks that each KV head chose in each of some steps.
template <class Scheme>
std::set<std::int64_t> counts_of(trial<Scheme>& t, int steps) {
  std::set<std::int64_t> counts;
  for (int i = 0; i < steps; ++i) {
    t.step({0}, {1}, rounding);
    counts.insert(t.cache.selected(0, 0)->count);
  }
  return counts;
}

}  // namespace

TEST_CASE("what a step says that it missed is the softmax's share of the blocks that it did not read, by their summaries") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, budget const& b) {
    reference<Scheme> ref(1, 2, 3, 31, 1.0f);
    check_selection(ref, 330, b, 4, 1, 3 * rounding, 0.02);
    check_selection(ref, 330, b, 2, 3, 3 * rounding, 0.02);
  };
  for (std::int64_t const tokens : {48, 96}) {
    check(std::type_identity<exact>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<bounds>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<means>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<codes>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<beside_mean_value>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<beside_outliers>{}, {.tokens = tokens, .sinks = 2, .window = 8, .outliers = 5});
  }
}

TEST_CASE("a guarded selection takes the fewest blocks that leave less than its share of all attention, within its bounds") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, budget const& b) {
    for (float const bias : {0.0f, 1.0f}) {
      reference<Scheme> ref(1, 2, 3, 32, bias);
      check_selection(ref, 330, b, 4, 1, 3 * rounding, 0.02);
      check_selection(ref, 330, b, 2, 3, 3 * rounding, 0.02);
    }
    reference<Scheme> many(1, 1, 7, 36);  // more query rows than are looked at together
    check_selection(many, 200, b, 1, 3, 3 * rounding, 0.02);
  };
  for (std::int64_t const tokens : {64, 256}) {
    check(std::type_identity<guarded>{}, {.tokens = tokens, .sinks = 2, .window = 8});
    check(std::type_identity<guarded_blocks>{}, {.tokens = tokens, .sinks = 2, .window = 40});
    check(std::type_identity<guarded_outliers>{}, {.tokens = tokens, .sinks = 2, .window = 8, .outliers = 5});
  }
}

TEST_CASE("a guarded selection takes its least where all is near, more than that where little is, and all of its budget where that is not enough") {
  reference<guarded> ref(1, 1, 2, 33);
  {
    trial<guarded> t(ref, {300}, 8, {.tokens = 280, .window = 8});
    auto const counts = counts_of(t, 8);
    CHECK(counts.size() > 1);  // it depends on the step
    CHECK(*counts.begin() > 70);
    CHECK(*counts.rbegin() < 280);
  }
  {
    trial<guarded> t(ref, {300}, 4, {.tokens = 8, .window = 8});
    CHECK(counts_of(t, 4) == std::set<std::int64_t>{8});
  }
  {
    trial<guarded> t(ref, {300}, 4, {.tokens = 280, .window = 290});
    CHECK(counts_of(t, 4) == std::set<std::int64_t>{3});  // of the ten that there are
  }
  {
    trial<guarded> t(ref, {300}, 4, {.tokens = 16, .window = 280});  // 20 far tokens beside 280 near ones
    auto const counts = counts_of(t, 4);
    CHECK(*counts.begin() == 4);
  }
}

TEST_CASE("nothing is missed where everything is read: a budget of all blocks, a dense layer, a sequence without far blocks") {
  reference<codes> ref(2, 2, 2, 34);
  trial<codes> t(ref, {60, 5}, 4, {.tokens = 100, .window = 8, .dense_layers = 1});
  for (int i = 0; i < 3; ++i) {
    t.step({0, 1}, {1, 1}, rounding);
    for (std::int64_t who = 0; who < 2; ++who)
      for (int head = 0; head < 2; ++head) {
        auto const missed = t.cache.missed(who, head);
        REQUIRE(missed);
        REQUIRE(missed->count == 2);
        for (float const x : *missed) CHECK(x == 0);
      }
  }
  trial<codes> dense(ref, {60}, 4, {.tokens = 100, .window = 8, .dense_layers = 2});
  dense.step({0}, {1}, rounding);
  CHECK(!dense.cache.missed(0, 0));
  CHECK_THROWS_AS(dense.cache.missed(1, 0), precondition_error);
  CHECK_THROWS_AS(dense.cache.missed(0, 2), precondition_error);
}

TEST_CASE("what was missed does not depend on the number of threads") {
  std::vector<float> alone;
  for (int const threads : {1, 3}) {
    reference<guarded> ref(1, 1, 3, 35);
    host::thread_pool pool(threads);
    trial<guarded> t(ref, {5000}, 3, {.tokens = 1500, .window = 16}, host::executor(pool));
    std::vector<float> all;
    for (int i = 0; i < 3; ++i) {
      t.step({0}, {1}, rounding);
      auto const missed = *t.cache.missed(0, 0);
      all.insert(all.end(), missed.begin(), missed.end());
    }
    if (threads == 1) alone = all;
    CHECK(all == alone);
  }
}

}  // namespace missed_test
