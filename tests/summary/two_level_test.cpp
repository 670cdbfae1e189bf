// The laws of what has two levels: boxes hold scores, bounds hold what they cover bit for bit, groups are scored as tiles are.
#include "cellar/summary/two_level.hpp"

#include <bit>

#include "catch.hpp"
#include "cellar/codec/higgs.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/codec/int4.hpp"
#include "cellar/codec/int8.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/codec/signs.hpp"
#include "cellar/host/executor.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/summary/around_mean.hpp"
#include "cellar/summary/bounded_key.hpp"
#include "cellar/summary/box_digest.hpp"
#include "cellar/summary/by_largest_channels.hpp"
#include "cellar/summary/label_channels.hpp"
#include "cellar/summary/mapped.hpp"
#include "cellar/summary/mean.hpp"
#include "summary/scored.hpp"

using namespace cellar;

namespace {

template <class Summary>
using about_mean = summary::mapped<summary::around_mean, Summary>;
template <class Codec, int Lanes = 32>
using key = summary::quantized_key<Codec, Lanes>;

/// Keys of a sweep, some of them long, short, biased or none at all.
std::vector<float> with_extremes(std::vector<float> keys, int d) {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    std::size_t const row = i / std::size_t(d) % 9;
    keys[i] = row == 2 ? 0 : row == 3 ? keys[i] * 900 : row == 5 ? keys[i] + 40 : row == 7 ? keys[i] * 1e-18f : keys[i];
  }
  return keys;
}

/// The summary, with what it learns from the keys in `state`.
template <int D, class Summary>
Summary learnt(Summary const& summary, std::vector<float> const& keys, std::vector<std::byte>& state) {
  if constexpr (trained<Summary>) {
    state.resize(std::size_t(summary.state_bytes(D)));
    serial_team t;
    summary.train(t, rows_of<D>(keys), 0, state.data());
    return summary.bind(state.data());
  } else {
    return summary;
  }
}

/// f(summary of two levels) for every kind of level.
template <class F>
void for_levels(F const& f) {
  f(summary::two_level<summary::min_max<float>, summary::mean<float>, 16>{});
  f(summary::two_level<summary::min_max<>, summary::mean<f16>, 32>{});
  f(summary::two_level<summary::min_max<f16>, summary::min_max<>, 16>{});
  f(summary::two_level<summary::min_max<f16>, summary::box_digest<>, 16>{});
  f(summary::two_level<summary::min_max<f16>, key<codec::higgs<2, 256, 1>>, 32>{});
  f(summary::two_level<summary::min_max<f16>, key<codec::int4<>, 4>, 8>{});
  f(summary::two_level<summary::bounded_key<codec::higgs<4, 256>>, key<codec::identity<float>, 1>, 1>{});
  f(summary::two_level<summary::bounded_key<codec::int8<>>, key<codec::identity<bf16>, 1>, 1>{});
  f(summary::two_level<summary::bounded_key<codec::int4<>>, key<codec::signs<>, 1>, 3>{});
  f(summary::two_level<summary::bounded_key<codec::higgs<2, 16>>, summary::min_max<float>, 16>{});
  f(summary::two_level<about_mean<summary::bounded_key<codec::int4<>>>, key<codec::identity<float>, 1>, 1>{});
  f(summary::two_level<about_mean<summary::bounded_key<codec::higgs<4, 256>>>, key<codec::int4<>, 1>, 4>{});
  f(summary::two_level<about_mean<summary::min_max<f16>>, summary::mean<f16>, 16>{});
}

}  // namespace

TEST_CASE("a group's bound is at least every fine score of its blocks, as both are computed, and groups are scored as tiles are") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& plain, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const keys = with_extremes(plain, d);
    for_levels([&]<class Summary>(Summary const& untaught) {
      std::vector<std::byte> state;
      Summary const summary = learnt<d>(untaught, keys, state);
      static_assert(two_level_summary<Summary, d> && Summary::rule::is_exact);
      auto const s = score<d>(summary, keys, block_tokens, queries, 7);
      constexpr int G = Summary::group_blocks, groups = Summary::tile_blocks / G;
      std::vector<std::byte> prepared(std::size_t(summary.prepared_bytes(3, d)) + 16), scratch(std::size_t(summary.scratch_bytes(d)) + 16);
      for (vector_kernels const* const kernels : {static_cast<vector_kernels const*>(nullptr), host::executor().kernels()}) {
        serial_team t(nullptr, 0, kernels);
        prepared_queries<std::byte, d> const to{prepared.data(), 3, scratch.data()};
        summary.prepare(t, rows_of<d>(queries), to);
        for (std::int64_t tile = 0; tile * Summary::tile_blocks < blocks; ++tile) {
          auto const* const at = s.tiles.data() + tile * summary.tile_bytes(d);
          std::vector<float> bounds(3 * groups), fine(3 * G);
          summary.score_groups(t, prepared_queries<std::byte const, d>(to), at, matrix_view<float>{bounds.data(), 3, groups, groups});
          for (int g = 0; g < groups; ++g) {
            summary.score_group(t, prepared_queries<std::byte const, d>(to), at, g, matrix_view<float>{fine.data(), 3, G, G});
            for (int i = 0; i < G; ++i)
              if (std::int64_t const b = tile * Summary::tile_blocks + g * G + i; b < blocks)
                for (std::size_t h = 0; h < 3; ++h) {
                  float const x = fine[h * G + std::size_t(i)], bound = bounds[h * groups + std::size_t(g)];
                  if (!kernels) REQUIRE(std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(s.logits[h][std::size_t(b)]));
                  if (!(bound >= x)) FAIL("dimension " << d << ", block " << b << ": the bound " << bound << " of " << x);
                }
          }
        }
      }
      REQUIRE(score<d>(summary, keys, block_tokens, queries, 1).logits == s.logits);
    });
  });
}

TEST_CASE("a bound holds where a rotated code's product is nothing but rounding") {
  constexpr int d = 64;
  summary::two_level<summary::min_max<float>, key<codec::higgs<2, 256, 1>, 1>, 1> const two;
  random_numbers r(12);
  auto const keys = r.normals(1600 * d);
  std::vector<float> queries(d * d, 0.0f);  // one channel each: of some keys it is next to 0, and the sum of rotated products is not
  for (std::size_t c = 0; c < d; ++c) queries[c * d + c] = 1;
  auto const s = score<d>(two, keys, 1, queries, 16);
  std::vector<std::byte> prepared(std::size_t(two.prepared_bytes(d, d)) + 16);
  serial_team t;
  prepared_queries<std::byte, d> const to{prepared.data(), d, nullptr};
  two.prepare(t, rows_of<d>(std::as_const(queries)), to);
  std::vector<float> bounds(d * 16);
  std::int64_t wrong = 0;
  for (std::int64_t tile = 0; tile < 100; ++tile) {
    two.score_groups(t, prepared_queries<std::byte const, d>(to), s.tiles.data() + tile * two.tile_bytes(d), matrix_view<float>{bounds.data(), d, 16, 16});
    for (std::size_t h = 0; h < d; ++h)
      for (std::size_t b = 0; b < 16; ++b) wrong += !(bounds[h * 16 + b] >= s.logits[h][std::size_t(tile) * 16 + b]);
  }
  CHECK(wrong == 0);
}

TEST_CASE("bounds are about as tight as their definition") {
  constexpr int d = 64;
  random_numbers r(5);
  auto const keys = r.normals(64 * d), q = r.normals(d);
  auto const s = score<d>(summary::min_max<float>{}, keys, 16, q, 1);
  auto const fine = [&](auto const& two) {
    auto const tiles = score<d>(two, keys, 1, q, 64).tiles;
    std::vector<std::byte> prepared(std::size_t(two.prepared_bytes(1, d)) + 16);
    serial_team t;
    prepared_queries<std::byte, d> const to{prepared.data(), 1, nullptr};
    two.prepare(t, rows_of<d>(q), to);
    std::vector<float> bounds(64);
    two.score_groups(t, prepared_queries<std::byte const, d>(to), tiles.data(), matrix_view<float>{bounds.data(), 1, 64, 64});
    return bounds;
  };
  auto const boxes = fine(summary::two_level<summary::min_max<float>, summary::mean<float>, 16>{});
  for (std::size_t g = 0; g < 4; ++g) CHECK(boxes[g] == Approx(s.logits[0][g]).epsilon(2e-3));
  auto const codes = fine(summary::two_level<summary::bounded_key<codec::int8<>>, key<codec::identity<float>, 1>, 1>{});
  for (std::size_t b = 0; b < 32; ++b) {
    double const exact = product(keys.data() + b * d, q.data(), d);
    CHECK(double(codes[b]) - exact < 0.03 * double(d));  // |q| |key| is about d, the code's error a hundredth of it
    CHECK(double(codes[b]) >= exact);
  }
}

TEST_CASE("bounded_key is a bound by itself, of blocks of any length, about a mean too") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& plain, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const keys = with_extremes(plain, d);
    auto const check = [&]<class Summary>(Summary const& untaught) {
      static_assert(covering_summary<Summary, d> && Summary::is_upper_bound);
      std::vector<std::byte> state;
      Summary const summary = learnt<d>(untaught, keys, state);
      auto const s = score<d>(summary, keys, block_tokens, queries, 7);
      for (std::int64_t h = 0; h < 3; ++h)
        for (std::int64_t b = 0; b < blocks; ++b)
          for (int i = 0; i < block_tokens; ++i)
            REQUIRE(double(s.logits[std::size_t(h)][std::size_t(b)]) >= product(keys.data() + (b * block_tokens + i) * d, queries.data() + h * d, d));
      REQUIRE(score<d>(summary, keys, block_tokens, queries, 1).tiles == s.tiles);
    };
    check(summary::bounded_key<codec::higgs<4, 256>>{});
    check(summary::bounded_key<codec::int8<>>{});
    check(summary::bounded_key<codec::int4<>>{});
    check(about_mean<summary::bounded_key<codec::int4<>>>{});
    check(about_mean<summary::bounded_key<codec::higgs<4, 256>>>{});
    check(about_mean<summary::min_max<float>>{});
  });
}

TEST_CASE("a mean that is taken off keeps what all keys share out of a bound's error") {
  constexpr int d = 64;
  random_numbers r(6);
  auto keys = r.normals(64 * d);
  auto const shared = r.normals(d), q = r.normals(d);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] += 50 * shared[i % d];
  auto const excess = [&](auto const& untaught) {
    std::vector<std::byte> state;
    auto const summary = learnt<d>(untaught, keys, state);
    auto const s = score<d>(summary, keys, 1, q, 64);
    double most = 0;
    for (std::size_t b = 0; b < 64; ++b) most = std::max(most, double(s.logits[0][b]) - product(keys.data() + b * d, q.data(), d));
    return most;
  };
  double const plain = excess(summary::bounded_key<codec::int4<>>{}), about = excess(about_mean<summary::bounded_key<codec::int4<>>>{});
  INFO(plain << " without, " << about << " about the mean");
  CHECK(about < plain / 10);
  CHECK(about < 0.5 * double(d));  // |q| |difference| is about d, and its code's error some tenths of it at most
}

TEST_CASE("only maps that shift keep bounds") {
  static_assert(about_mean<summary::min_max<>>::is_upper_bound && !about_mean<summary::mean<>>::is_upper_bound &&
                !covering_summary<about_mean<summary::mean<>>>);
  static_assert(!summary::mapped<summary::label_channels<codec::fixed_rank<8>>, summary::min_max<>>::is_upper_bound);
}

TEST_CASE("what derives from a summary with boxes has none of its own") {
  static_assert(boxed_summary<summary::mean<>> && !boxed_summary<summary::by_largest_channels<8, summary::mean<>>>);
  static_assert(boxed_summary<key<codec::higgs<2, 256>>> && !two_level_summary<summary::mean<>>);
}

TEST_CASE("max_of_logits is the largest of a block's rows, and NaN gives way") {
  float const rows[] = {1, undefined, -3, undefined, -infinity, 4, undefined, -1, undefined, infinity};
  std::vector<float> out(5);
  serial_team t;
  select::max_of_logits{}(t, matrix_view<float const>{rows, 2, 5, 5}, row_view<float>{out.data(), 5});
  CHECK(out[0] == 4);
  CHECK(out[1] != out[1]);
  CHECK(out[2] == -1);
  CHECK(out[3] != out[3]);
  CHECK(out[4] == infinity);
}
