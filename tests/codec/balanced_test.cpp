#include "cellar/codec/balanced.hpp"

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "cellar/codec/higgs.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/codec/signs.hpp"
#include "eigensolver.hpp"
#include "random.hpp"

using namespace cellar;

namespace balanced_test {

namespace {

constexpr int d = 32;
using exact = codec::identity<float>;
template <class Base, int Rank>
using balanced = codec::balanced<Base, codec::fixed_rank<Rank>, jacobi_eigensolver>;
static_assert(code_scorer<balanced<exact, 16>, d> && query_trained<balanced<exact, 16>> && trains_in_scratch<balanced<exact, 16>>);

/// Rows whose channels are mixed and of very different sizes.
std::vector<float> rows_of_shape(random_numbers& random, i64 rows, double decay, int step) {
  auto x = random.normals(rows * d);
  for (i64 r = 0; r < rows; ++r) {
    float* const row = x.data() + r * d;
    for (int c = 0; c < d; ++c) row[c] *= float(std::pow(decay, (c * step) % d));
    for (int c = 1; c < d; ++c) row[c] += 0.4f * row[c - 1];
  }
  return x;
}
matrix_view<float const, d> view(std::vector<float> const& x) { return {x.data(), i64(x.size()) / d}; }

template <class Codec>
Codec learn(Codec const& codec, std::vector<float> const& keys, std::vector<float> const& queries, std::vector<std::byte>& state) {
  state.assign(std::size_t(codec.state_bytes(d)) + 16, std::byte{0});
  std::vector<std::byte> scratch(std::size_t(codec.train_scratch_bytes(d)) + 16);
  serial_team t;
  codec.with_scratch(scratch.data()).train_with(t, view(keys), view(queries), state.data());
  return codec.bind(state.data());
}

/// Root mean square of (q . x - the score of x's code), over that of q . x.
template <class Codec>
double logit_error(Codec const& coder, std::vector<float> const& keys, std::vector<float> const& queries, double* decoded = nullptr) {
  serial_team t;
  row_bytes const size = coder.bytes(d);
  double off = 0, all = 0, apart = 0;
  for (i64 r = 0; r < i64(keys.size()) / d; ++r) {
    std::vector<std::byte> codes(std::size_t(size.codes) + 1), scales(std::size_t(size.scales) + 1), prepared(std::size_t(coder.query_bytes(d)) + 64);
    row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
    coder.encode(t, matrix_view<float const, d>{keys.data() + r * d, 1}, at);
    float back[d];
    coder.decode(t, row_parts<std::byte const>(at), matrix_view<float, d>{back, 1});
    for (i64 q = 0; q < i64(queries.size()) / d; ++q) {
      auto* const record = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(prepared.data()), 16));
      coder.template prepare_query<d>(t, queries.data() + q * d, record);
      float score = 0;
      coder.template score_codes<d>(t, record, codes.data(), scales.data(), 1, &score);
      double exact_logit = 0, of_decoded = 0;
      for (int c = 0; c < d; ++c) {
        exact_logit += double(queries[std::size_t(q * d + c)]) * double(keys[std::size_t(r * d + c)]);
        of_decoded += double(queries[std::size_t(q * d + c)]) * double(back[c]);
      }
      off += (exact_logit - double(score)) * (exact_logit - double(score));
      apart += (of_decoded - double(score)) * (of_decoded - double(score));
      all += exact_logit * exact_logit;
    }
  }
  if (decoded) *decoded = std::sqrt(apart / all);
  return std::sqrt(off / all);
}

}  // namespace

TEST_CASE("balanced coordinates of full rank lose nothing, and a score is the product with the decoded row") {
  random_numbers random(1);
  auto const keys = rows_of_shape(random, 300, 0.9, 1), queries = rows_of_shape(random, 80, 0.85, 5);
  std::vector<std::byte> state;
  double decoded = 1;
  CHECK(logit_error(learn(balanced<exact, 1000>{}, keys, queries, state), keys, queries, &decoded) < 1e-5);
  CHECK(decoded < 1e-5);
  CHECK(logit_error(learn(balanced<codec::higgs<4, 256>, 16>{}, keys, queries, state), keys, queries, &decoded) > 0.01);
  CHECK(decoded < 1e-5);
}

TEST_CASE("queries of a group score as each alone, where the inner codec scores groups") {
  using coder_type = balanced<codec::higgs<4, 256>, 16>;
  static_assert(group_code_scorer<coder_type, d> && coder_type::query_group == 4 && !group_code_scorer<balanced<codec::signs<>, 16>, d>);
  random_numbers random(7);
  auto const keys = rows_of_shape(random, 96, 0.9, 1), queries = rows_of_shape(random, 80, 0.85, 5);
  std::vector<std::byte> state;
  auto const coder = learn(coder_type{}, keys, queries, state);
  constexpr int lanes = 32;
  row_bytes const size = coder.bytes(d);
  std::vector<std::byte> codes(std::size_t(lanes * size.codes)), scales(std::size_t(lanes * size.scales)), tile(codes.size());
  serial_team t;
  coder.encode(t, matrix_view<float const, d>{keys.data(), lanes}, row_parts<std::byte>{codes.data(), scales.data(), size.codes, size.scales});
  for (i64 lane = 0; lane < lanes; ++lane)
    for (i64 i = 0; i < size.codes; ++i) tile[std::size_t(i * lanes + lane)] = codes[std::size_t(lane * size.codes + i)];
  for (int const count : {1, 2, 3, 4}) {
    std::vector<std::byte> together(std::size_t(count * coder.query_bytes(d))), alone(std::size_t(coder.query_bytes(d)));
    std::vector<float> scores(std::size_t(count * lanes)), one(lanes);
    coder.template prepare_group<d>(t, matrix_view<float const, d>{queries.data(), count}, together.data());
    coder.template score_group<d>(t, together.data(), count, tile.data(), scales.data(), lanes, matrix_view<float>{scores.data(), count, lanes, lanes});
    for (int q = 0; q < count; ++q) {
      coder.template prepare_query<d>(t, queries.data() + q * d, alone.data());
      coder.template score_codes<d>(t, alone.data(), tile.data(), scales.data(), lanes, one.data());
      REQUIRE(std::vector<float>(scores.begin() + q * lanes, scores.begin() + (q + 1) * lanes) == one);
    }
  }
}

TEST_CASE("rows and queries have the same second moments in balanced coordinates, one for each axis, descending") {
  random_numbers random(2);
  auto const keys = rows_of_shape(random, 400, 0.85, 1), queries = rows_of_shape(random, 200, 0.8, 7);
  std::vector<std::byte> state;
  auto const coder = learn(balanced<exact, 16>{}, keys, queries, state);
  auto const moments = [&](std::vector<float> const& x, int map, double ridge) {  // with the ridge that the axes are found with
    std::vector<double> m(16 * 16, 0.0);
    i64 const rows = i64(x.size()) / d;
    double square = 0;
    for (float const y : x) square += double(y) * double(y) / double(x.size());
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j)
        for (int c = 0; c < d; ++c)
          m[std::size_t(i * 16 + j)] += ridge * square * double(coder.maps[(map * 16 + i) * d + c]) * double(coder.maps[(map * 16 + j) * d + c]);
    for (i64 r = 0; r < rows; ++r) {
      double y[16] = {};
      for (int i = 0; i < 16; ++i)
        for (int c = 0; c < d; ++c) y[i] += double(coder.maps[(map * 16 + i) * d + c]) * double(x[std::size_t(r * d + c)]);
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) m[std::size_t(i * 16 + j)] += y[i] * y[j] / double(rows);
    }
    return m;
  };
  auto const of_keys = moments(keys, 0, 1e-6), of_queries = moments(queries, 1, 1e-4);
  double const ratio = of_queries[0] / of_keys[0];  // one factor for all axes: it is the same in both maps, inverted
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      double const size = std::sqrt(of_keys[std::size_t(17 * i)] * of_keys[std::size_t(17 * j)]);
      CHECK(of_queries[std::size_t(16 * i + j)] / ratio == Approx(of_keys[std::size_t(16 * i + j)]).margin(1e-3 * size));
      if (i != j) CHECK(std::abs(of_keys[std::size_t(16 * i + j)]) < 1e-3 * size);
    }
  for (int i = 1; i < 16; ++i) CHECK(of_keys[std::size_t(17 * i)] <= of_keys[std::size_t(17 * (i - 1))] * 1.0001);
}

TEST_CASE("codes in balanced coordinates err less in products, at the same bytes and at half of them") {
  random_numbers random(3);
  auto const keys = rows_of_shape(random, 300, 0.9, 1), queries = rows_of_shape(random, 100, 0.9, d - 1);  // large where keys are small
  std::vector<std::byte> state, half;
  double const plain = logit_error(codec::higgs<4, 256>{}, keys, queries);
  CHECK(logit_error(learn(balanced<codec::higgs<4, 256>, d>{}, keys, queries, state), keys, queries) < 0.7 * plain);
  CHECK(logit_error(learn(balanced<codec::higgs<4, 256>, d / 2>{}, keys, queries, half), keys, queries) < 0.85 * plain);
}

TEST_CASE("nothing to learn from is no error, and a library that fails is one") {
  std::vector<float> const none, zeros(std::size_t(3 * d), 0.0f), ones(std::size_t(d), 1.0f);
  for (auto const* keys : {&none, &zeros, &ones})
    for (auto const* queries : {&zeros, &ones}) {
      std::vector<std::byte> state;
      auto const coder = learn(balanced<exact, 16>{}, *keys, *queries, state);
      for (int i = 0; i < 2 * 16 * d; ++i) REQUIRE(is_finite(coder.maps[i]));
    }
  struct broken {
    bool operator()(double*, int, int, double*) const { return false; }
  };
  std::vector<std::byte> state;
  CHECK_THROWS_WITH(learn(codec::balanced<exact, codec::fixed_rank<8>, broken>{}, ones, ones, state), contains("eigensolver failed"));
}

}  // namespace balanced_test
