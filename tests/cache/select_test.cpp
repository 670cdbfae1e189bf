#include "cache/selection.hpp"

using namespace cellar;

namespace select_test {

namespace {

constexpr int d = 32;

template <class Scheme>
void check_selection_of_random_keys(float bias, std::int64_t new_tokens = 1) {
  reference<Scheme> ref(1, 2, 3, 11, bias);
  check_selection(ref, 230, {.tokens = 48, .sinks = 2, .window = 8}, 6, new_tokens, 3 * rounding);
}

template <int D>
struct block_mean_landmarks : scheme::yakv<D, float> {  // landmarks centred on the mean of 64 tokens: exact but for that mean's rounding
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::identity<float>, cellar::codec::block_mean<64>>>;
};

struct by_box_digest : scheme::quest<d, float> {
  using summary = cellar::summary::box_digest<float>;
};
struct by_residual : scheme::yakv<d, float> {
  using summary = cellar::summary::residual<cellar::codec::identity<f16>, cellar::codec::identity<float>, 24>;
};
struct by_int8 : scheme::yakv<d, float> {
  using summary = cellar::summary::quantized_key<cellar::codec::int8<>>;
};
struct by_int4 : scheme::yakv<d, float> {
  using summary = cellar::summary::quantized_key<cellar::codec::int4<>>;
};

struct by_mean_query : scheme::yakv<d, float> {
  using reduce = cellar::select::mean_query;
};
struct by_sum : scheme::quest<d, float> {
  using reduce = cellar::select::sum_of_logits;
};

}  // namespace

TEST_CASE("selected blocks are those of the highest scores, by each scheme's own definition") {
  check_selection_of_random_keys<scheme::mean_landmark<d, float>>(0);
  check_selection_of_random_keys<scheme::quest<d, float>>(0);
  check_selection_of_random_keys<scheme::yakv<d, float>>(0);
  check_selection_of_random_keys<scheme::yakv_centred<d, float>>(0);
  check_selection_of_random_keys<scheme::yakv_centred<d, float>>(3);
  check_selection_of_random_keys<block_mean_landmarks<d>>(0);
  check_selection_of_random_keys<by_mean_query>(0);
  check_selection_of_random_keys<by_sum>(0);
  check_selection_of_random_keys<by_box_digest>(0);
  check_selection_of_random_keys<by_residual>(3);
  check_selection_of_random_keys<by_int8>(0);
  check_selection_of_random_keys<by_int4>(0);
}

TEST_CASE("several query tokens select together, by the reduction over all their heads") {
  check_selection_of_random_keys<scheme::mean_landmark<d, float>>(0, 3);
  check_selection_of_random_keys<scheme::yakv_centred<d, float>>(3, 3);
  check_selection_of_random_keys<by_mean_query>(0, 3);
  check_selection_of_random_keys<by_sum>(0, 3);
}

TEST_CASE("equal keys tie, and ties go to the first blocks") {
  using Scheme = scheme::mean_landmark<d, float>;
  reference<Scheme> ref(1, 1, 2, 12);
  auto s = ref.sequence(160, 170);
  for (std::int64_t p = 1; p < 170; ++p) std::copy_n(ref.row(s.keys, s, 0, 0), d, ref.row(s.keys, s, 0, p));
  std::vector<float> keys, values, q = ref.random().normals(2 * d), out(q.size());
  host::executor const on;
  cache<Scheme> c(on, ref.shape(), {.sequences = 1, .tokens = 170}, {.tokens = 40});
  auto const id = c.begin_prompt(ref.staging(s, keys, values));
  c.finish_prompt(on, id);
  batch_entry const one{id, 1};
  c.plan(on, {&one, 1});
  c.append(on, 0, packed_heads<float const>(ref.row(s.keys, s, 0, 160), 1, 1, d), packed_heads<float const>(ref.row(s.values, s, 0, 160), 1, 1, d));
  c.attend(on, 0, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
  auto const ids = *c.selected(0, 0);
  REQUIRE(ids.count == 5);
  for (std::int64_t i = 0; i < 5; ++i) CHECK(number(ids[i]) == i);
}

TEST_CASE("the published budgets are shares and tokens of the prompt") {
  reference<scheme::yakv<d>> ref(1, 1, 1, 13);
  trial<scheme::yakv<d>> t(ref, {640, 33}, 1, scheme::yakv<d>::published);
  t.step({0, 1}, {1, 1}, 1, false);
  CHECK(t.cache.selected(0, 0)->count == 20);  // 3.125 % of 640
  CHECK(t.cache.selected(1, 0)->count == 0);   // all of it is in the window
  CHECK(t.cache.selected_blocks(t.ids[1]) == 1);
}

}  // namespace select_test
