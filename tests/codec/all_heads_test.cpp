// Codecs that hold the rows of all heads together, and keys before rotary embedding.
#include <cmath>

#include "catch.hpp"
#include "cellar/codec/before_rotary.hpp"
#include "cellar/codec/higgs.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "eigensolver.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

std::vector<double> frequencies(int d) {
  std::vector<double> f;
  for (int i = 0; i < d / 2; ++i) f.push_back(std::pow(1e4, -2.0 * i / d));
  return f;
}

/// Rows [tokens, heads * d], turned to positions first, first + 1, ... head by head, in double.
std::vector<float> turned(std::vector<float> const& rows, int d, int heads, rotary_pairing pairing, double first) {
  auto const f = frequencies(d);
  std::vector<float> y(rows.size());
  std::int64_t const half = d / 2;
  for (std::int64_t i = 0; i < std::int64_t(rows.size()) / d; ++i)
    for (std::int64_t p = 0; p < half; ++p) {
      std::int64_t const a = i * d + (pairing == rotary_pairing::adjacent ? 2 * p : p),
                         b = i * d + (pairing == rotary_pairing::adjacent ? 2 * p + 1 : p + half);
      double const angle = (first + double(i / heads)) * f[std::size_t(p)], x = double(rows[std::size_t(a)]), z = double(rows[std::size_t(b)]);
      y[std::size_t(a)] = float(x * std::cos(angle) - z * std::sin(angle));
      y[std::size_t(b)] = float(x * std::sin(angle) + z * std::cos(angle));
    }
  return y;
}

/// What a codec of all heads makes of rows [tokens, heads * d], head by head put together again.
template <int D, class Codec>
std::vector<float> round_trip(Codec const& coder, std::vector<float> const& x, int heads) {
  std::int64_t const columns = heads * D, tokens = std::int64_t(x.size()) / columns;
  row_bytes const size = coder.bytes(columns);
  std::vector<std::byte> codes(std::size_t(tokens * size.codes)), scales(std::size_t(tokens * size.scales) + 1);
  row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
  serial_team t;
  coder.encode(t, matrix_view<float const>{x.data(), tokens, columns, columns}, at);
  std::vector<float> y(x.size());
  for (int h = 0; h < heads; ++h) coder.of_head(h, heads).decode(t, at, matrix_view<float, D>{y.data() + h * D, tokens, columns});
  return y;
}

double squared_error(std::vector<float> const& a, std::vector<float> const& b) {
  double e = 0;
  for (std::size_t i = 0; i < a.size(); ++i) e += std::pow(double(a[i]) - double(b[i]), 2);
  return e;
}

template <int Dimension, int Points, std::uint32_t Seed = 0>
using over_all = codec::higgs<Dimension, Points, Seed, bf16, scope::all_heads>;

}  // namespace

TEST_CASE("higgs over all heads is higgs of one wide head, cut into heads") {
  auto const check = []<int D, int Heads>(std::integral_constant<int, D>, std::integral_constant<int, Heads>) {
    random_numbers r(D + Heads);
    auto const x = r.normals(5 * Heads * D, 3);
    auto const wide = [&](auto one) {
      row_bytes const size = one.bytes(Heads * D);
      std::vector<std::byte> codes(std::size_t(5 * size.codes)), scales(std::size_t(5 * size.scales));
      row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
      serial_team t;
      one.encode(t, rows_of<Heads * D>(x), at);
      std::vector<float> y(x.size());
      one.decode(t, at, rows_of<Heads * D>(y));
      return y;
    };
    REQUIRE(over_all<2, 256>{}.bytes(Heads * D).codes == Heads * D / 2);
    REQUIRE(over_all<2, 256>{}.bytes(Heads * D).scales == 2);
    REQUIRE(round_trip<D>(over_all<2, 256>{}, x, Heads) == wide(codec::higgs<2, 256>{}));
    REQUIRE(round_trip<D>(over_all<4, 256, 1>{}, x, Heads) == wide(codec::higgs<4, 256, 1>{}));
    REQUIRE(round_trip<D>(over_all<2, 16>{}, x, Heads) == wide(codec::higgs<2, 16>{}));
  };
  using std::integral_constant;
  check(integral_constant<int, 8>{}, integral_constant<int, 1>{});
  check(integral_constant<int, 64>{}, integral_constant<int, 3>{});
  check(integral_constant<int, 80>{}, integral_constant<int, 3>{});
  check(integral_constant<int, 128>{}, integral_constant<int, 2>{});
  check(integral_constant<int, 32>{}, integral_constant<int, 7>{});
}

TEST_CASE("higgs over all heads keeps its error up to the widest row") {
  random_numbers r(5);
  auto const x = r.normals(40 * 4096);
  CHECK(squared_error(x, round_trip<256>(over_all<2, 256>{}, x, 16)) / double(x.size()) < 0.0082);  // 0.0078, and bf16's scale
  CHECK(squared_error(x, round_trip<64>(over_all<4, 256>{}, x, 64)) / double(x.size()) < 0.099);    // 0.0964
}

TEST_CASE("quantized_key over all heads scores each head's queries by its part of the decoded landmark") {
  auto const check = []<int D, int Heads>(std::integral_constant<int, D>, std::integral_constant<int, Heads>, auto const& coder) {
    using coder_type = std::remove_cvref_t<decltype(coder)>;
    constexpr int columns = Heads * D, tile = 32, blocks = 19, queries = 3;
    random_numbers r(D * Heads);
    for (int const block_tokens : {1, 4}) {
      auto const keys = r.normals(blocks * block_tokens * columns, 2), q = r.normals(queries * D);
      auto const summary = summary::quantized_key<coder_type>{}.of_blocks(block_tokens).of_head(0, Heads);
      std::vector<std::byte> bytes(std::size_t(summary.tile_bytes(columns)));
      REQUIRE(std::int64_t(bytes.size()) == tile * (coder.bytes(columns).codes + coder.bytes(columns).scales));
      serial_team t;
      for (int b = 0; b < blocks; b += 5) {
        int const n = std::min(5, blocks - b);
        summary.build(t, matrix_view<float const>{keys.data() + b * block_tokens * columns, n * block_tokens, columns, columns}, n, bytes.data(), b);
      }
      std::vector<float> means(blocks * columns);
      for (int b = 0; b < blocks; ++b)
        for (int c = 0; c < columns; ++c) {
          float s = 0;
          for (int i = 0; i < block_tokens; ++i) s += keys[std::size_t((b * block_tokens + i) * columns + c)];
          means[std::size_t(b * columns + c)] = s / float(block_tokens);
        }
      auto const landmarks = round_trip<D>(coder, means, Heads);
      for (int h = 0; h < Heads; ++h) {
        auto const mine = summary.of_head(h, Heads);
        std::vector<std::byte> prepared(std::size_t(mine.prepared_bytes(queries, D)));
        prepared_queries<std::byte, D> const to{prepared.data(), queries, nullptr};
        mine.prepare(t, rows_of<D>(q), to);
        std::vector<float> scores(queries * tile);
        mine.score_tile(t, prepared_queries<std::byte const, D>(to), bytes.data(), matrix_view<float>{scores.data(), queries, tile, tile});
        for (int i = 0; i < queries; ++i)
          for (int b = 0; b < blocks; ++b) {
            double expected = 0;
            for (int c = 0; c < D; ++c) expected += double(q[std::size_t(i * D + c)]) * double(landmarks[std::size_t(b * columns + h * D + c)]);
            REQUIRE(double(scores[std::size_t(i * tile + b)]) == Approx(expected).margin(1e-4 * D));
          }
      }
    }
  };
  using std::integral_constant;
  check(integral_constant<int, 64>{}, integral_constant<int, 3>{}, over_all<4, 256>{});
  check(integral_constant<int, 80>{}, integral_constant<int, 2>{}, over_all<2, 16>{});
  check(integral_constant<int, 128>{}, integral_constant<int, 8>{}, over_all<4, 256, 7>{});
}

TEST_CASE("before rotary embedding, a codec sees the keys as they were, and gives them back at their positions") {
  for_head_dims([](auto dim) {
    constexpr int d = dim;
    auto const f = frequencies(d);
    for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split})
      for (std::int64_t const first : {0, 77, 100000}) {
        random_numbers r(d);
        auto const x = r.normals(6 * d, 2), keys = turned(x, d, 1, pairing, double(first));
        rotary const embedding{pairing, {f.data(), d / 2}};
        auto const trip = [](auto const& coder, std::vector<float> const& rows) {
          row_bytes const size = coder.bytes(d);
          std::vector<std::byte> codes(std::size_t(6 * size.codes)), scales(std::size_t(6 * size.scales) + 1);
          row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
          serial_team t;
          coder.encode(t, rows_of<d>(rows), at);
          std::vector<float> y(rows.size());
          coder.decode(t, at, rows_of<d>(y));
          return y;
        };
        auto const exact = trip(codec::before_rotary<codec::identity<float>>{}.with(embedding).at(first), keys);
        for (std::size_t i = 0; i < keys.size(); ++i) REQUIRE(exact[i] == Approx(keys[i]).margin(1e-5));
        // The inner codec, on the keys as they were, then turned.
        auto const coded = turned(trip(codec::higgs<2, 256>{}, x), d, 1, pairing, double(first));
        auto const mine = trip(codec::before_rotary<codec::higgs<2, 256>>{}.with(embedding).at(first), keys);
        std::size_t off = 0;  // rounding may move a channel group across the middle of two codes
        for (std::size_t i = 0; i < keys.size(); ++i) off += std::abs(mine[i] - coded[i]) > 1e-4f;
        CHECK(off <= keys.size() / 50);
      }
  });
}

TEST_CASE("before rotary embedding over all heads, each head turns by its own pairs") {
  constexpr int d = 16, heads = 3;
  auto const f = frequencies(d);
  random_numbers r(3);
  auto const x = r.normals(9 * heads * d), keys = turned(x, d, heads, rotary_pairing::half_split, 40);
  using coder = codec::before_rotary<over_all<2, 256>>;
  auto const mine = round_trip<d>(coder{}.with({rotary_pairing::half_split, {f.data(), d / 2}}).at(40), keys, heads);
  auto const expected = turned(round_trip<d>(over_all<2, 256>{}, x, heads), d, heads, rotary_pairing::half_split, 40);
  std::size_t off = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) off += std::abs(mine[i] - expected[i]) > 1e-4f;
  CHECK(off <= keys.size() / 20);
}

TEST_CASE("low rank keeps what the best approximation of that rank keeps, before rotary embedding") {
  constexpr int d = 16, heads = 2, columns = d * heads, rank = 6;
  auto const f = frequencies(d);
  for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
    random_numbers r(11);
    std::int64_t const tokens = 90, first = 3;
    auto const basis = r.normals(columns * columns);
    std::vector<float> x(std::size_t(tokens * columns), 0.0f);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int k = 0; k < columns; ++k) {
        float const weight = r.normal() * std::exp(-0.3f * float(k));  // falling singular values
        for (int c = 0; c < columns; ++c) x[std::size_t(t * columns + c)] += weight * basis[std::size_t(k * columns + c)];
      }
    auto const keys = turned(x, d, heads, pairing, double(first));
    auto const learnt = [&](auto coder, std::vector<std::byte>& state) {
      coder = coder.with({pairing, {f.data(), d / 2}});
      state.assign(std::size_t(coder.state_bytes(columns)), std::byte{});
      std::vector<std::byte> scratch(std::size_t(coder.train_scratch_bytes(columns)));
      serial_team t;
      coder.with_scratch(scratch.data()).train(t, matrix_view<float const>{keys.data(), tokens, columns, columns}, first, state.data());
      return coder.bind(state.data()).at(first);
    };
    std::vector<std::byte> state;
    using exact = codec::low_rank<cellar::codec::fixed_rank<rank>, jacobi_eigensolver, float>;
    auto const coder = learnt(exact{}, state);
    REQUIRE(coder.bytes(columns).codes == rank * 4);
    REQUIRE(coder.state_bytes(columns) == rank * columns * 4);
    double const error = squared_error(keys, round_trip<d>(coder, keys, heads));

    // The least possible: the energy of the directions that are left, by the second moments' spectrum.
    std::vector<double> moments(columns * columns, 0.0), vectors(columns * columns);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int i = 0; i < columns; ++i)
        for (int j = 0; j < columns; ++j)
          moments[std::size_t(i * columns + j)] += double(x[std::size_t(t * columns + i)]) * double(x[std::size_t(t * columns + j)]);
    auto spectrum = moments;
    jacobi_eigensolver{}(spectrum.data(), columns, columns, vectors.data());
    double total = 0, kept = 0;
    for (int i = 0; i < columns; ++i) total += moments[std::size_t(i * columns + i)];
    for (int k = 0; k < rank; ++k)
      for (int i = 0; i < columns; ++i)
        for (int j = 0; j < columns; ++j)
          kept += vectors[std::size_t(k * columns + i)] * moments[std::size_t(i * columns + j)] * vectors[std::size_t(k * columns + j)];
    CHECK(error == Approx(total - kept).epsilon(1e-3));
    CHECK(error < 0.2 * total);
    CHECK(error > 1e-4 * total);

    // A rank of all channels loses nothing but rounding, and 16 bits add theirs.
    std::vector<std::byte> all_state, half_state;
    auto const all = round_trip<d>(learnt(codec::low_rank<cellar::codec::fixed_rank<1000>, jacobi_eigensolver, float>{}, all_state), keys, heads);
    CHECK(squared_error(keys, all) < 1e-9 * total);
    auto const half = round_trip<d>(learnt(codec::low_rank<cellar::codec::fixed_rank<rank>, jacobi_eigensolver>{}, half_state), keys, heads);
    CHECK(squared_error(keys, half) == Approx(total - kept).epsilon(0.02));
  }
}

TEST_CASE("low rank says when the eigensolver fails") {
  struct broken {
    bool operator()(double*, int, int, double*) const { return false; }
  };
  constexpr int d = 8;
  auto const f = frequencies(d);
  auto coder = codec::low_rank<cellar::codec::fixed_rank<2>, broken>{}.with({rotary_pairing::half_split, {f.data(), d / 2}});
  std::vector<float> const keys(4 * d, 1.0f);
  std::vector<std::byte> state(std::size_t(coder.state_bytes(d))), scratch(std::size_t(coder.train_scratch_bytes(d)));
  serial_team t;
  CHECK_THROWS_WITH(coder.with_scratch(scratch.data()).train(t, matrix_view<float const>{keys.data(), 4, d, d}, 0, state.data()),
                    contains("eigensolver failed"));
}
