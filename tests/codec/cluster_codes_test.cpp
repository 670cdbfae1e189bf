#include "cellar/codec/cluster_codes.hpp"

#include <cmath>
#include <set>
#include <vector>

#include "catch.hpp"
#include "cellar/codec/product_codes.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

/// A codec that has learnt from rows. State and scratch are as large as it says.
template <int D, class Codec>
struct learnt {
  std::vector<std::byte> state;
  Codec coder;

  learnt(Codec codec, std::vector<float> const& rows) : state(std::size_t(codec.state_bytes(D)), std::byte{0xff}) {  // nothing is left as it was
    std::vector<std::byte> scratch(std::size_t(codec.train_scratch_bytes(D)), std::byte{0xff});
    serial_team t;
    codec.with_scratch(scratch.data()).train(t, rows_of<D>(rows), 0, state.data());
    coder = codec.bind(state.data());
  }
  std::vector<int> codes_of(std::vector<float> const& rows, i64 first) const {
    std::vector<std::byte> codes(rows.size() / D * 2);
    serial_team t;
    coder.at(first).encode(t, rows_of<D>(rows), row_parts<std::byte>{codes.data(), nullptr, 2, 0});
    std::vector<int> numbers;
    for (std::size_t i = 0; i < codes.size(); i += 2) numbers.push_back(int(codes[i]) + 256 * int(codes[i + 1]));
    return numbers;
  }
  std::vector<float> row_of(int cluster) const {
    std::byte const code[2] = {std::byte(cluster % 256), std::byte(cluster / 256)};
    std::vector<float> y(D);
    serial_team t;
    coder.decode(t, row_parts<std::byte const>{code, nullptr, 2, 0}, rows_of<D>(y));
    return y;
  }
};

std::vector<double> mean_of(std::vector<float> const& rows, std::size_t d) {
  std::vector<double> mean(d, 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i) mean[i % d] += double(rows[i]) * double(d) / double(rows.size());
  return mean;
}

/// How many clusters of how many segments the documentation promises.
struct promised {
  i64 segments, each;
  promised(i64 tokens, i64 most, i64 tokens_per_cluster, i64 segment_tokens) {
    auto const wanted = i64(std::floor(double(tokens) / double(tokens_per_cluster) + 0.5));
    i64 const total = std::max<i64>(1, std::min(wanted, most));
    segments = segment_tokens == 0 ? 1 : std::max<i64>(1, std::min(total, i64(std::floor(double(tokens) / double(segment_tokens) + 0.5))));
    each = total / segments;
  }
};

}  // namespace

TEST_CASE("cluster codes name the centroid of the smallest angle in the row's segment, and centroids are the means of their rows") {
  auto const check = [](auto dim, auto is_centred, auto tokens_per_cluster) {
    constexpr int d = dim, most = tokens_per_cluster == 6 ? 40 : 500, turns = tokens_per_cluster == 6 ? 3 : 1;
    constexpr bool centred = is_centred;
    constexpr i64 tokens = 330, segment_tokens = 100;
    promised const p(tokens, most, tokens_per_cluster, segment_tokens);
    REQUIRE((p.segments == 3 && p.each == (tokens_per_cluster == 6 ? 13 : 55)));
    auto const used = std::size_t(p.segments * p.each);
    random_numbers r(d);
    auto rows = r.normals(tokens * d);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += float(i % d % 5);  // a bias, which centring takes away
    auto const later = r.normals(20 * d);
    learnt<d, codec::cluster_codes<most, tokens_per_cluster, segment_tokens, centred, turns>> const before({}, rows);
    learnt<d, codec::cluster_codes<most, tokens_per_cluster, segment_tokens, centred, turns + 1>> const after({}, rows);
    std::vector<double> origin(d, 0.0);
    if (centred) origin = mean_of(rows, d);
    std::vector<std::vector<float>> centroids;
    for (std::size_t i = 0; i < used; ++i) centroids.push_back(before.row_of(int(i)));
    auto const cosine = [&](float const* x, int cluster) {
      double xy = 0, xx = 0, yy = 0;
      for (std::size_t c = 0; c < d; ++c) {
        double const a = double(x[c]) - origin[c], b = double(centroids[std::size_t(cluster)][c]) - origin[c];
        xy += a * b;
        xx += a * a;
        yy += b * b;
      }
      return xy / std::sqrt(xx * yy);
    };
    std::vector<double> sums(used * d, 0.0);
    std::vector<int> counts(used, 0);
    auto const check_rows = [&](std::vector<float> const& x, i64 first, bool counts_them) {
      auto const codes = before.codes_of(x, first);
      for (std::size_t row = 0; row < codes.size(); ++row) {
        i64 const position = first + i64(row);
        i64 segment = 0;  // [tokens s / segments, tokens (s + 1) / segments)
        while (segment + 1 < p.segments && position >= tokens * (segment + 1) / p.segments) ++segment;
        REQUIRE((codes[row] >= segment * p.each && codes[row] < (segment + 1) * p.each));
        double const mine = cosine(x.data() + row * d, codes[row]);
        for (i64 i = segment * p.each; i < (segment + 1) * p.each; ++i) REQUIRE(mine >= cosine(x.data() + row * d, int(i)) - 1e-5);
        if (!counts_them) continue;
        ++counts[std::size_t(codes[row])];
        for (std::size_t c = 0; c < d; ++c) sums[std::size_t(codes[row]) * d + c] += double(x[row * d + c]);
      }
      // A tile's runs give the same codes as the whole.
      for (std::size_t row = 0; row < codes.size(); row += 7) {
        std::vector<float> const one(x.begin() + i64(row) * d, x.begin() + i64(row + 1) * d);
        REQUIRE(before.codes_of(one, first + i64(row))[0] == codes[row]);
      }
    };
    check_rows(rows, 0, true);
    check_rows(later, tokens, false);
    check_rows(later, tokens + 100000, false);
    for (std::size_t i = 0; i < used; ++i) {
      auto const next = after.row_of(int(i));
      for (std::size_t c = 0; c < d; ++c)
        REQUIRE(double(next[c]) == Approx(counts[i] > 0 ? sums[i * d + c] / counts[i] : double(centroids[i][c])).margin(2e-5));
    }
  };
  for_head_dims([&](auto dim) {
    check(dim, std::false_type{}, std::integral_constant<int, 6>{});
    check(dim, std::true_type{}, std::integral_constant<int, 6>{});
    check(dim, std::false_type{}, std::integral_constant<int, 2>{});  // of one row each, and of none
  });
}

TEST_CASE("cluster codes use as many clusters as the prompt's length asks for, up to the most") {
  constexpr int d = 8;
  auto const check = [&]<int Clusters, int Each, i64 Segment>(codec::cluster_codes<Clusters, Each, Segment, false, 0> coder, i64 tokens) {
    random_numbers r(std::uint64_t(tokens) + 1);
    auto const rows = r.normals(tokens * d);
    learnt<d, decltype(coder)> const l(coder, rows);
    promised const p(tokens, Clusters, Each, Segment);
    INFO(Clusters << " clusters of " << Each << ", segments of " << Segment << ", " << tokens << " tokens");
    // Without turns the centroids are rows: their own clusters. Those in use are found by rows, all others are zero.
    auto const codes = l.codes_of(rows, 0);
    CHECK(i64(std::set<int>(codes.begin(), codes.end()).size()) == p.segments * p.each);
    for (int i = 0; i < Clusters; ++i) {
      auto const row = l.row_of(i);
      CHECK(std::any_of(row.begin(), row.end(), [](float x) { return x != 0; }) == (i < p.segments * p.each));
    }
  };
  for (i64 const tokens : {1, 2, 3, 79, 119, 120, 121, 1000}) {
    check(codec::cluster_codes<512, 80, 0, false, 0>{}, tokens);
    check(codec::cluster_codes<5, 10, 0, false, 0>{}, tokens);
    check(codec::cluster_codes<70, 16, 128, false, 0>{}, tokens);
    check(codec::cluster_codes<3, 2, 50, false, 0>{}, tokens);  // more segments than clusters
    check(codec::cluster_codes<1, 1, 10, false, 0>{}, tokens);
    check(codec::cluster_codes<2000, 1, 64, false, 0>{}, tokens);
  }
}

TEST_CASE("clustering narrows angles from turn to turn until nothing moves, and knows empty prompts, equal, opposite, zero and large rows") {
  constexpr int d = 64;
  random_numbers r(3);
  auto const rows = r.normals(500 * d), few = r.normals(30 * d);
  double last = -1;
  auto const turn = [&]<int Iterations>(std::integral_constant<int, Iterations>) {
    learnt<d, codec::cluster_codes<16, 10, 0, false, Iterations>> const l({}, rows);
    auto const codes = l.codes_of(rows, 0);
    double sum = 0;
    for (std::size_t row = 0; row < 500; ++row) {
      auto const y = l.row_of(codes[row]);
      double xy = 0, xx = 0, yy = 0;
      for (std::size_t c = 0; c < d; ++c) {
        xy += double(rows[row * d + c]) * double(y[c]);
        xx += double(rows[row * d + c]) * double(rows[row * d + c]);
        yy += double(y[c]) * double(y[c]);
      }
      sum += xy / std::sqrt(xx * yy);
    }
    CHECK(sum > last);
    last = sum;
    return l.state;
  };
  turn(std::integral_constant<int, 0>{});
  turn(std::integral_constant<int, 1>{});
  turn(std::integral_constant<int, 2>{});
  turn(std::integral_constant<int, 8>{});
  auto const enough = turn(std::integral_constant<int, 100>{});
  CHECK((learnt<d, codec::cluster_codes<16, 10, 0, false, 200>>({}, rows).state == enough));

  learnt<d, codec::cluster_codes<64, 1, 0, true>> const own({}, few);  // each row its own cluster
  auto const codes = own.codes_of(few, 0);
  for (std::size_t row = 0; row < 30; ++row) {
    CHECK(codes[row] == int(row));
    auto const y = own.row_of(codes[row]);
    for (std::size_t c = 0; c < d; ++c) REQUIRE(double(y[c]) == Approx(double(few[row * d + c])).margin(1e-5));
  }

  std::vector<float> equal(20 * d, 1.5f);
  learnt<d, codec::cluster_codes<8, 4>> const one({}, equal);
  for (int const code : one.codes_of(equal, 0)) CHECK(code == 0);  // ties
  for (float const x : one.row_of(0)) CHECK(double(x) == Approx(1.5));
  learnt<d, codec::cluster_codes<8, 4, 0, true>> const nowhere({}, equal);  // every difference is zero
  for (int const code : nowhere.codes_of(equal, 0)) CHECK(code == 0);
  for (float const x : nowhere.row_of(0)) CHECK(double(x) == Approx(1.5));
  for (std::size_t i = 10 * d; i < equal.size(); ++i) equal[i] *= -0.25f;
  learnt<d, codec::cluster_codes<2, 4>> const opposite({}, equal);  // of another sign, whatever the length
  auto const two = opposite.codes_of(equal, 0);
  for (std::size_t row = 0; row < 20; ++row) CHECK(two[row] == int(row) / 10);
  learnt<d, codec::cluster_codes<>> const none({}, {});
  for (int const code : none.codes_of(few, 0)) CHECK(code == 0);
  for (float const x : none.row_of(0)) CHECK(x == 0);

  std::vector<float> large(64 * d, codec::cluster_codes<>{}.largest(d));
  for (std::size_t i = 0; i < large.size(); i += 3) large[i] = -large[i];
  learnt<d, codec::cluster_codes<8, 8, 0, true>> const wide({}, large);
  for (int const code : wide.codes_of(large, 0))
    for (float const x : wide.row_of(code)) REQUIRE(std::isfinite(x));
}

namespace {

template <class Codec, int D>
void check_scores(Codec coder, i64 tokens) {
  constexpr int lanes = 32;
  random_numbers r(D + 5);
  auto const rows = r.normals(lanes * D), q = r.normals(D);
  learnt<D, Codec> const l(coder, r.normals(tokens * D));
  summary::quantized_key<Codec> summary{l.coder};
  i64 const first = tokens - 47;  // a run goes over the end of a segment
  auto const codes = l.codes_of(rows, first);
  std::vector<std::byte> tile(std::size_t(summary.tile_bytes(D)), std::byte{0xff}), prepared(std::size_t(summary.prepared_bytes(1, D)));
  serial_team t;
  for (int run = 0; run < lanes; run += 9) {  // in several runs, each told where it stands
    int const n = std::min(9, lanes - run);
    summary.at(first + run).build(t, rows_of<D>(std::vector<float>(rows.begin() + run * D, rows.begin() + (run + n) * D)), n, tile.data(), run);
  }
  REQUIRE(l.coder.query_bytes(D) % 16 == 0);
  std::vector<float> scores(lanes);
  prepared_queries<std::byte, D> const to{prepared.data(), 1, nullptr};
  summary.prepare(t, rows_of<D>(q), to);
  summary.score_tile(t, prepared_queries<std::byte const, D>(to), tile.data(), matrix_view<float>{scores.data(), 1, lanes, lanes});
  for (int lane = 0; lane < lanes; ++lane) {
    REQUIRE(summary.class_of(tile.data(), lane) == codes[std::size_t(lane)]);
    auto const y = l.row_of(codes[std::size_t(lane)]);
    double expected = 0, size = 0;
    for (std::size_t c = 0; c < D; ++c) {
      expected += double(q[c]) * double(y[c]);
      size += std::abs(double(q[c]) * double(y[c]));
    }
    REQUIRE(double(scores[std::size_t(lane)]) == Approx(expected).margin(8 * (D + 8) * 0x1p-24 * (size + 1)));
    for (int other = 0; other < lane; ++other)  // one class, one logit
      if (codes[std::size_t(other)] == codes[std::size_t(lane)]) REQUIRE(scores[std::size_t(other)] == scores[std::size_t(lane)]);
  }
}

}  // namespace

TEST_CASE("cluster codes are scored as what they decode to, and rows of a class alike") {
  for_head_dims([](auto dim) {
    check_scores<codec::cluster_codes<50, 4>, dim>({}, 100);
    check_scores<codec::cluster_codes<300, 4, 32, true>, dim>({}, 410);  // codes of two bytes' worth
  });
}

TEST_CASE("classes are within their number, whatever a tile or a state holds") {
  constexpr int d = 16;
  std::vector<std::byte> const noise(64, std::byte{0xff});
  CHECK(codec::cluster_codes<300>::class_of(noise.data()) == 0);
  CHECK(codec::cluster_codes<65536>::class_of(noise.data()) == 65535);
  CHECK(codec::product_codes<1, 64>::class_of(noise.data()) == 0);
  CHECK((codec::product_codes<1, 256>::class_of(noise.data()) == 255 && codec::product_codes<1, 256>::classes() == 256));
  using coder_type = codec::cluster_codes<40, 4, 8, true>;
  for (int const fill : {0, 0x7f, 0xff}) {  // as of a snapshot that something else wrote
    std::vector<std::byte> state(std::size_t(coder_type{}.state_bytes(d)), std::byte(fill)), prepared(std::size_t(coder_type{}.query_bytes(d)));
    coder_type const coder = coder_type{}.bind(state.data()).at(5);
    std::vector<float> const q(d, 1.0f);
    std::vector<float> scores(32);
    std::byte code[2];
    serial_team t;
    coder.prepare_query<d>(t, q.data(), prepared.data());
    coder.score_codes<d>(t, prepared.data(), noise.data(), nullptr, 32, scores.data());
    coder.encode(t, rows_of<d>(q), row_parts<std::byte>{code, nullptr, 2, 0});
    CHECK(coder.class_of(code) < 40);
  }
}
