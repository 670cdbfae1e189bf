#include "cellar/summary/mapped.hpp"

#include <cmath>
#include <numeric>

#include "catch.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/codec/int4.hpp"
#include "cellar/codec/low_rank.hpp"
#include "cellar/codec/signs.hpp"
#include "cellar/summary/around_mean.hpp"
#include "cellar/summary/label_channels.hpp"
#include "cellar/summary/mean.hpp"
#include "cellar/summary/principal_axes.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "eigensolver.hpp"
#include "summary/scored.hpp"

using namespace cellar;

namespace {

/// A summary that has learnt from keys, and what it learnt.
template <class Summary>
struct learnt {
  std::vector<std::byte> state;
  Summary summary;
};
template <int D, class Summary>
learnt<Summary> learn(Summary summary, std::vector<float> const& keys) {
  learnt<Summary> l;
  l.state.assign(std::size_t(summary.state_bytes(D)), std::byte{0xcd});
  std::vector<std::byte> scratch;
  serial_team t;
  if constexpr (trains_in_scratch<Summary>) {
    scratch.resize(std::size_t(summary.train_scratch_bytes(D)));
    summary = summary.with_scratch(scratch.data());
  }
  summary.train(t, rows_of<D>(keys), 0, l.state.data());
  l.summary = summary.bind(l.state.data());
  return l;
}

/// The mean key of each block, in double. [block][channel]
template <int D>
std::vector<double> mean_keys(std::vector<float> const& keys, int block_tokens) {
  std::vector<double> means(keys.size() / std::size_t(block_tokens), 0.0);
  for (std::size_t i = 0; i < keys.size(); ++i) means[i / D / std::size_t(block_tokens) * D + i % D] += double(keys[i]) / block_tokens;
  return means;
}

/// Logits are expected(query, block), up to `rounding` of |q| |k|; tiles do not depend on how their blocks come.
template <int D, class Summary, class Expected>
void check_logits(Summary const& summary, std::vector<float> const& keys, int block_tokens, std::vector<float> const& queries, double rounding,
                  Expected const& expected) {
  auto const s = score<D>(summary, keys, block_tokens, queries, 7);
  auto const means = mean_keys<D>(keys, block_tokens);
  for (std::size_t h = 0; h < 3; ++h)
    for (std::size_t b = 0; b < s.logits[h].size(); ++b) {
      double q2 = 0, k2 = 0;
      for (std::size_t c = 0; c < D; ++c) {
        q2 += double(queries[h * D + c]) * double(queries[h * D + c]);
        k2 += means[b * D + c] * means[b * D + c];
      }
      double const difference = std::abs(double(s.logits[h][b]) - expected(queries.data() + h * D, means.data() + b * D));
      if (!(difference <= rounding * std::sqrt(q2 * k2) + 1e-6)) FAIL("query " << h << ", block " << b << ": off by " << difference);
    }
  for (std::int64_t const run : {1, 3}) REQUIRE(score<D>(summary, keys, block_tokens, queries, run).tiles == s.tiles);
}

}  // namespace

TEST_CASE("label channels are those of the largest sums of squares, ties to the lowest, and logits are over them alone") {
  sweep([](auto dim, int block_tokens, std::int64_t, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    random_numbers r(d + 1);
    auto prompt = r.normals(50 * d);
    for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] *= float(1 + i % d * 7 % d);  // no two channels alike
    auto const check = [&](auto summary, std::int64_t labels, double rounding) {
      using Summary = decltype(summary);
      static_assert(block_summary<Summary, d> && trained<Summary>);
      auto const l = learn<d>(summary, prompt);
      REQUIRE(l.summary.map.width(d) == labels);
      std::vector<double> sums(d, 0.0);
      for (std::size_t i = 0; i < prompt.size(); ++i) sums[i % d] += double(prompt[i]) * double(prompt[i]);
      std::vector<int> order(d);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sums[std::size_t(a)] > sums[std::size_t(b)]; });
      for (std::int64_t i = 0; i < labels; ++i) REQUIRE(l.summary.map.labels[i] == order[std::size_t(i)]);
      check_logits<d>(l.summary, keys, block_tokens, queries, rounding, [&](float const* q, double const* k) {
        double x = 0;
        for (std::int64_t i = 0; i < labels; ++i) x += double(q[order[std::size_t(i)]]) * k[order[std::size_t(i)]];
        return x;
      });
    };
    using sixteenth = summary::label_channels<codec::rank_share<1, 16>>;
    using some = summary::label_channels<codec::fixed_rank<5>>;
    check(summary::mapped<sixteenth, summary::mean<float>>{}, std::max(2, (d / 16 + 1) / 2 * 2), 1e-6);
    check(summary::mapped<some, summary::quantized_key<codec::identity<float>>>{}, 6, 1e-6);
    check(summary::mapped<some, summary::quantized_key<codec::int4<6, float>>>{}, 6, 0.3);
    check(summary::mapped<summary::label_channels<codec::fixed_rank<1000>>, summary::mean<float>>{}, d, 2e-6);

    auto const equal = learn<d>(summary::mapped<some, summary::mean<float>>{}, std::vector<float>(3 * d, 1.0f));
    auto const none = learn<d>(summary::mapped<some, summary::mean<float>>{}, {});
    auto const undefined_too = learn<d>(summary::mapped<some, summary::mean<float>>{}, std::vector<float>(d, undefined));  // a device cannot refuse them
    for (int i = 0; i < 6; ++i) {
      CHECK(equal.summary.map.labels[i] == i);
      CHECK(none.summary.map.labels[i] == i);
      CHECK(undefined_too.summary.map.labels[i] == i);
    }
  });
}

TEST_CASE("principal axes are those of the largest variance around the mean, and logits are of the coordinates in them") {
  for_head_dims([](auto dim) {
    constexpr int d = dim;
    if constexpr (d <= 96) {  // Jacobi's rotations are slow
      random_numbers r(d + 2);
      auto const bias = r.normals(d, 30);  // of every key: it has no variance
      auto keys = r.normals(40 * d), queries = r.normals(3 * d);
      for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = keys[i] * float(1 + i % d * 5 % d) + bias[i % d];
      std::vector<double> covariance(d * d, 0.0), mean(d, 0.0);
      for (std::size_t i = 0; i < keys.size(); ++i) mean[i % d] += double(keys[i]) / 40;
      for (std::size_t a = 0; a < d; ++a)
        for (std::size_t b = 0; b < d; ++b)
          for (std::size_t k = 0; k < keys.size(); k += d) covariance[a * d + b] += (double(keys[k + a]) - mean[a]) * (double(keys[k + b]) - mean[b]);
      std::vector<double> vectors(d * d);
      jacobi_eigensolver{}(covariance.data(), d, d, vectors.data());
      auto const check = [&](auto summary, std::size_t axes) {
        using Summary = decltype(summary);
        static_assert(block_summary<Summary, d> && trains_in_scratch<Summary> && key_map<decltype(summary.map), d>);
        auto const l = learn<d>(summary, keys);
        REQUIRE(std::size_t(l.summary.map.width(d)) == axes);
        for (int const block_tokens : {1, 8})
          check_logits<d>(l.summary, keys, block_tokens, queries, 1e-5, [&](float const* q, double const* k) {
            double x = 0;
            for (std::size_t i = 0; i < axes; ++i) {
              double of_q = 0, of_k = 0;
              for (std::size_t c = 0; c < d; ++c) {
                of_q += double(q[c]) * vectors[i * d + c];
                of_k += k[c] * vectors[i * d + c];
              }
              x += of_q * of_k;
            }
            return x;
          });
      };
      check(summary::mapped<summary::principal_axes<codec::rank_share<1, 4>, jacobi_eigensolver>, summary::mean<float>>{}, d / 4);
      check(summary::mapped<summary::principal_axes<codec::fixed_rank<1000>, jacobi_eigensolver>, summary::quantized_key<codec::identity<float>>>{}, d);
    }
  });
  struct broken {
    bool operator()(double*, int, int, double*) const { return false; }
  };
  CHECK_THROWS_WITH(learn<8>(summary::mapped<summary::principal_axes<codec::fixed_rank<2>, broken>, summary::mean<float>>{}, std::vector<float>(16, 1.0f)),
                    contains("eigensolver failed"));
}

TEST_CASE("keys around their mean lose nothing by an exact summary, and little by signs beside a bias") {
  sweep([](auto dim, int block_tokens, std::int64_t, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    random_numbers r(d + 3);
    auto const bias = r.normals(d, 20);
    auto biased = keys;
    for (std::size_t i = 0; i < biased.size(); ++i) biased[i] += bias[i % d];
    auto const l = learn<d>(summary::mapped<summary::around_mean, summary::quantized_key<codec::identity<float>>>{}, biased);
    for (std::size_t c = 0; c < d; ++c) {
      double mean = 0;
      for (std::size_t k = 0; k < biased.size(); k += d) mean += double(biased[k + c]) * double(d) / double(biased.size());
      REQUIRE(double(l.summary.map.mean[c]) == Approx(mean).margin(1e-6 * 30));
    }
    auto const product_of = [](float const* q, double const* k) {
      double x = 0;
      for (std::size_t c = 0; c < d; ++c) x += double(q[c]) * k[c];
      return x;
    };
    check_logits<d>(l.summary, biased, block_tokens, queries, 1e-6, product_of);
    if constexpr (d >= 64) {
      auto const one_bit = learn<d>(summary::mapped<summary::around_mean, summary::quantized_key<codec::signs<1, float>>>{}, biased);
      check_logits<d>(one_bit.summary, biased, block_tokens, queries, 0.05, product_of);  // of |q| |k|, most of which is the bias
    }
  });
}

TEST_CASE("mapped keys as large as a summary allows stay finite, and bytes are those of the mapped width") {
  constexpr int d = 64;
  auto const check = [](auto summary) {
    float const most = summary.largest(d);
    std::vector<float> keys(8 * d, most);
    for (std::size_t i = 0; i < keys.size(); i += 3) keys[i] = -most;
    auto const l = learn<d>(summary, keys);
    auto const s = score<d>(l.summary, keys, 2, std::vector<float>(d, 1e-3f), 7);
    for (float const x : s.logits[0]) CHECK(std::isfinite(x));
  };
  using labels = summary::label_channels<codec::rank_share<1, 16>>;
  check(summary::mapped<labels, summary::quantized_key<codec::int4<64>>>{});
  check(summary::mapped<labels, summary::mean<float>>{});
  check(summary::mapped<summary::around_mean, summary::quantized_key<codec::signs<>>>{});
  check(summary::mapped<summary::principal_axes<codec::fixed_rank<16>, jacobi_eigensolver>, summary::mean<f16>>{});
  CHECK(summary::mapped<labels, summary::quantized_key<codec::int4<64>>>{}.tile_bytes(d) == 32 * (2 + 4));
  CHECK(summary::mapped<labels, summary::quantized_key<codec::int4<64>>>{}.state_bytes(d) == 4 * 4 + 64 * 4);
  CHECK(summary::mapped<summary::around_mean, summary::quantized_key<codec::signs<>>>{}.tile_bytes(d) == 32 * (8 + 2));
  CHECK(summary::mapped<summary::principal_axes<codec::fixed_rank<16>, jacobi_eigensolver>, summary::mean<>>{}.tile_bytes(d) == 16 * 16 * 2);
}
