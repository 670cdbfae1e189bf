#include "cellar/summary/by_largest_channels.hpp"

#include <cmath>
#include <numeric>

#include "catch.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/summary/mean.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "summary/scored.hpp"

using namespace cellar;

TEST_CASE("by_largest_channels scores the query's largest channels, times the root of what they leave out") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const check = [&]<int Count>(auto base, std::integral_constant<int, Count>, std::vector<float> const& asked) {
      summary::by_largest_channels<Count, decltype(base)> const summary{};
      static_assert(block_summary<std::remove_const_t<decltype(summary)>, d>);
      auto const s = score<d>(summary, keys, block_tokens, asked, 7);
      REQUIRE(s.tiles == score<d>(base, keys, block_tokens, asked, 3).tiles);
      for (std::size_t h = 0; h < 3; ++h) {
        std::vector<std::size_t> order(d);
        std::iota(order.begin(), order.end(), std::size_t{0});
        auto const size = [&](std::size_t c) { return std::abs(double(asked[h * d + c])); };
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return size(a) > size(b); });
        order.resize(std::min<std::size_t>(d, Count));
        double all = 0, some = 0;
        for (std::size_t c = 0; c < d; ++c) all += size(c);
        for (auto const c : order) some += size(c);
        for (std::int64_t b = 0; b < blocks; ++b) {
          double expected = 0, terms = 0;
          for (auto const c : order) {
            double mean = 0;
            for (int i = 0; i < block_tokens; ++i) mean += double(keys[std::size_t(b * block_tokens + i) * d + c]) / block_tokens;
            expected += double(asked[h * d + c]) * mean * (some > 0 ? std::sqrt(all / some) : 1.0);
            terms += std::abs(double(asked[h * d + c]) * mean) * std::sqrt(double(d));
          }
          REQUIRE(double(s.logits[h][std::size_t(b)]) == Approx(expected).margin(2e-6 * terms + 1e-6));
        }
      }
    };
    using exact = summary::quantized_key<codec::identity<float>>;
    auto ties = queries;
    for (std::size_t i = 0; i < ties.size(); ++i) ties[i] = i % 3 ? 1.0f : -1.0f;
    for (auto const& asked : {queries, ties, std::vector<float>(3 * d, 0.0f)}) {
      check(summary::mean<float>{}, std::integral_constant<int, 8>{}, asked);
      check(exact{}, std::integral_constant<int, 5>{}, asked);
      check(summary::mean<float>{}, std::integral_constant<int, 1>{}, asked);
      check(exact{}, std::integral_constant<int, 1000>{}, asked);
    }
  });
}

TEST_CASE("by_largest_channels of plain tiles has plain tiles, and needs room for the queries that it makes") {
  using plain = summary::by_largest_channels<8, summary::mean<f16>>;
  using coded = summary::by_largest_channels<8, summary::quantized_key<codec::identity<f16>>>;
  CHECK(std::is_same_v<plain::plain_tiles_of, plain>);
  CHECK(std::is_void_v<coded::plain_tiles_of>);
  CHECK(plain{}.tile_bytes(64) == 16 * 64 * 2);
  CHECK(plain{}.prepared_bytes(3, 64) == 2 * 3 * 64 * 4);
}
