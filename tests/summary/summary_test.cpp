#include <cmath>

#include "catch.hpp"
#include "cellar/codec/centred.hpp"
#include "cellar/codec/fp8.hpp"
#include "cellar/codec/int4.hpp"
#include "cellar/codec/int8.hpp"
#include "cellar/codec/nvfp4.hpp"
#include "cellar/summary/box_digest.hpp"
#include "cellar/summary/mean.hpp"
#include "cellar/summary/min_max.hpp"
#include "cellar/summary/none.hpp"
#include "cellar/summary/quantized_key.hpp"
#include "cellar/summary/residual.hpp"
#include "summary/scored.hpp"

using namespace cellar;

TEST_CASE("mean scores q . mean key") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const check = [&](auto summary, double rounding) {
      auto const s = score<d>(summary, keys, block_tokens, queries, 7);
      for (std::int64_t h = 0; h < 3; ++h)
        for (std::int64_t b = 0; b < blocks; ++b) {
          double expected = 0, size = 0;
          for (int c = 0; c < d; ++c) {
            double mean = 0;
            for (int i = 0; i < block_tokens; ++i) mean += double(keys[std::size_t((b * block_tokens + i) * d + c)]) / block_tokens;
            expected += mean * double(queries[std::size_t(h * d + c)]);
            size += std::abs(mean * double(queries[std::size_t(h * d + c)]));
          }
          REQUIRE(double(s.logits[std::size_t(h)][std::size_t(b)]) == Approx(expected).margin(rounding * size + 1e-5));
        }
      REQUIRE(score<d>(summary, keys, block_tokens, queries, 1).tiles == s.tiles);  // runs of any length build the same
    };
    check(summary::mean<float>{}, 1e-6);
    check(summary::mean<>{}, 0x1p-8);
    check(summary::mean<f16>{}, 0x1p-11);
  });
}

TEST_CASE("min_max bounds every key's logit from above, and is the box's bound") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const check = [&](auto summary, double rounding) {
      auto const s = score<d>(summary, keys, block_tokens, queries, 7);
      for (std::int64_t h = 0; h < 3; ++h)
        for (std::int64_t b = 0; b < blocks; ++b) {
          double bound = 0, size = 0;
          for (int c = 0; c < d; ++c) {
            double low = 1e30, high = -1e30;
            double const q = double(queries[std::size_t(h * d + c)]);
            for (int i = 0; i < block_tokens; ++i) {
              double const k = double(keys[std::size_t((b * block_tokens + i) * d + c)]);
              low = std::min(low, k);
              high = std::max(high, k);
            }
            bound += std::max(q * low, q * high);
            size += std::max(std::abs(q * low), std::abs(q * high));
          }
          double const logit = double(s.logits[std::size_t(h)][std::size_t(b)]), slack = 1e-6 * size + 1e-6;
          REQUIRE(logit == Approx(bound).margin(rounding * size + slack));
          for (int i = 0; i < block_tokens; ++i)
            REQUIRE(logit >= product(keys.data() + (b * block_tokens + i) * d, queries.data() + h * d, d) - slack);  // slack: only f32 summation
          REQUIRE(logit >= bound - slack);
        }
      REQUIRE(score<d>(summary, keys, block_tokens, queries, 1).tiles == s.tiles);
    };
    check(summary::min_max<float>{}, 0);
    check(summary::min_max<>{}, 0x1p-7);
    check(summary::min_max<f16>{}, 0x1p-10);
  });
}

TEST_CASE("min_max rounds outwards, also at zero and up to the largest f16") {
  constexpr int d = 8;
  for (float const x : {1.0001f, -1.0001f, 1e-8f, -1e-8f, 0.0f, 65503.0f, -65503.0f, 3.0f}) {
    std::vector<float> const keys(d, x);
    for (float const sign : {1.0f, -1.0f}) {
      std::vector<float> const q(d, sign);
      CHECK(score<d>(summary::min_max<>{}, keys, 1, q, 1).logits[0][0] >= 8 * x * sign);
      CHECK(score<d>(summary::min_max<f16>{}, keys, 1, q, 1).logits[0][0] >= 8 * x * sign);
    }
  }
}

TEST_CASE("box_digest scores by the middle and the mean distance from it") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    auto const check = [&](auto summary, double rounding) {
      auto const s = score<d>(summary, keys, block_tokens, queries, 7);
      for (std::int64_t h = 0; h < 3; ++h)
        for (std::int64_t b = 0; b < blocks; ++b) {
          double expected = 0, size = 0;
          for (int c = 0; c < d; ++c) {
            double low = 1e30, high = -1e30, radius = 0;
            auto const key = [&](int i) { return double(keys[std::size_t((b * block_tokens + i) * d + c)]); };
            for (int i = 0; i < block_tokens; ++i) {
              low = std::min(low, key(i));
              high = std::max(high, key(i));
            }
            double const center = (low + high) / 2, q = double(queries[std::size_t(h * d + c)]);
            for (int i = 0; i < block_tokens; ++i) radius += std::abs(key(i) - center) / block_tokens;
            expected += std::max(q * (center + radius), q * (center - radius));
            size += std::abs(q) * (std::abs(center) + radius);
          }
          REQUIRE(double(s.logits[std::size_t(h)][std::size_t(b)]) == Approx(expected).margin((rounding + 2e-6 + d * 0x1p-24) * size));
        }
      REQUIRE(score<d>(summary, keys, block_tokens, queries, 1).tiles == s.tiles);
    };
    check(summary::box_digest<float>{}, 0);
    check(summary::box_digest<>{}, 0x1p-8);
    check(summary::box_digest<f16>{}, 0x1p-11);
  });
}

TEST_CASE("box_digest of one key is that key, and the largest keys stay finite") {
  constexpr int d = 8;
  auto const check = [&](auto summary) {
    float const most = summary.largest(d);
    for (float const x : {0.0f, 1.5f, -1.5f, most, -most}) {
      std::vector<float> const keys(2 * d, x), q(d, 0.25f);
      CHECK(double(score<d>(summary, keys, 1, q, 1).logits[0][1]) == Approx(2 * double(x)).epsilon(1e-6));
      CHECK(double(score<d>(summary, keys, 2, q, 1).logits[0][0]) == Approx(2 * double(x)).epsilon(1e-6));
    }
    std::vector<float> keys(2 * d, most);
    std::fill(keys.begin(), keys.begin() + d, -most);
    CHECK(double(score<d>(summary, keys, 2, std::vector<float>(d, 0.25f), 1).logits[0][0]) == Approx(2 * double(most)).epsilon(1e-6));
  };
  check(summary::box_digest<float>{});
  check(summary::box_digest<f16>{});
  CHECK(summary::box_digest<>{}.largest(d) == largest_summand);
}

TEST_CASE("residual scores q . (decoded mean of a tile + decoded difference)") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    using vector = std::vector<double>;
    auto const decoded = [](auto const& coder, std::byte const* codes, std::byte const* scales) {  // codecs have tests of their own
      std::vector<float> y(d);
      serial_team t;
      coder.decode(t, row_parts<std::byte const>{codes, scales, 0, 0}, rows_of<d>(y));
      return vector(y.begin(), y.end());
    };
    auto const coded = [&](auto const& coder, vector const& x) {  // coded and decoded
      std::vector<float> const row(x.begin(), x.end());
      row_bytes const size = coder.bytes(d);
      std::vector<std::byte> bytes(std::size_t(size.codes + size.scales) + 1);
      serial_team t;
      coder.encode(t, rows_of<d>(row), row_parts<std::byte>{bytes.data(), bytes.data() + size.codes, 0, 0});
      return decoded(coder, bytes.data(), bytes.data() + size.codes);
    };
    auto const distance = [](vector const& a, vector const& b) {
      double e = 0;
      for (std::size_t c = 0; c < d; ++c) e += std::pow(a[c] - b[c], 2);
      return std::sqrt(e);
    };
    auto const landmark = [&](std::int64_t b) {
      vector x(d, 0.0);
      for (std::int64_t i = b * block_tokens; i < (b + 1) * block_tokens; ++i)
        for (std::size_t c = 0; c < d; ++c) x[c] += double(keys[std::size_t(i) * d + c]) / block_tokens;
      return x;
    };
    // Codes are found in the tile by its definition. That they are the nearest is seen by the error: rounding may decide between two of one distance.
    auto const check = [&]<int Landmarks>(auto mean_codec, auto residual_codec, std::integral_constant<int, Landmarks>, std::int64_t run) {
      summary::residual<decltype(mean_codec), decltype(residual_codec), Landmarks> const summary;
      static_assert(block_summary<std::remove_const_t<decltype(summary)>, d>);
      auto const s = score<d>(summary, keys, block_tokens, queries, run);
      row_bytes const of_mean = mean_codec.bytes(d), of_one = residual_codec.bytes(d);
      constexpr std::int64_t unit = decltype(residual_codec)::code_unit;
      REQUIRE(summary.tile_bytes(d) == of_mean.codes + of_mean.scales + Landmarks * (of_one.codes + of_one.scales));
      for (std::int64_t first = 0; first < blocks; first += Landmarks) {
        std::int64_t const in_mean = std::min({run, std::int64_t{Landmarks}, blocks - first});  // of the run that begins the tile
        vector mean(d, 0.0);
        for (std::int64_t b = first; b < first + in_mean; ++b)
          for (std::size_t c = 0; c < d; ++c) mean[c] += landmark(b)[c] / double(in_mean);
        auto const* const tile = s.tiles.data() + first / Landmarks * summary.tile_bytes(d);
        auto const* const stored_mean = tile + Landmarks * (of_one.codes + of_one.scales);
        auto const middle = decoded(mean_codec, stored_mean, stored_mean + of_mean.codes);
        double const size = distance(mean, vector(d, 0.0));
        REQUIRE(distance(middle, mean) == Approx(distance(coded(mean_codec, mean), mean)).epsilon(0.02).margin(1e-6 * size));
        for (std::int64_t b = first; b < std::min(blocks, first + Landmarks); ++b) {
          std::vector<std::byte> codes(std::size_t(of_one.codes));
          for (std::int64_t i = 0; i < of_one.codes; ++i) codes[std::size_t(i)] = tile[(i / unit * Landmarks + b - first) * unit + i % unit];
          auto const rest = decoded(residual_codec, codes.data(), tile + Landmarks * of_one.codes + (b - first) * of_one.scales);
          vector difference = landmark(b);
          for (std::size_t c = 0; c < d; ++c) difference[c] -= middle[c];
          double const error = distance(rest, difference), best = distance(coded(residual_codec, difference), difference);
          if (std::abs(error - best) > 0.02 * best + 2e-6 * (size + distance(landmark(b), vector(d, 0.0))))
            FAIL("block " << b << ": off by " << error << " for " << best);
          for (std::size_t h = 0; h < 3; ++h) {
            double expected = 0, terms = 0;
            for (std::size_t c = 0; c < d; ++c) {
              expected += double(queries[h * d + c]) * (middle[c] + rest[c]);
              terms += std::abs(double(queries[h * d + c])) * (std::abs(middle[c]) + std::abs(rest[c]));
            }
            double const off = std::abs(double(s.logits[h][std::size_t(b)]) - expected);
            if (off > 2e-5 * terms + 1e-5) FAIL("block " << b << ": " << s.logits[h][std::size_t(b)] << " for " << expected);
          }
        }
      }
    };
    for (std::int64_t const run : {std::int64_t{1}, std::int64_t{3}, std::int64_t{1} << 40}) {
      check(codec::identity<float>{}, codec::identity<float>{}, std::integral_constant<int, 16>{}, run);
      check(codec::identity<bf16>{}, codec::higgs<4, 256>{}, std::integral_constant<int, 8>{}, run);
      check(codec::higgs<2, 256>{}, codec::higgs<4, 256>{}, std::integral_constant<int, 5>{}, run);
      check(codec::int8<>{}, codec::int4<>{}, std::integral_constant<int, 32>{}, run);
    }
  });
}

TEST_CASE("residuals of keys around a common mean are coded finer than the keys") {
  constexpr int d = 64;
  random_numbers r(9);
  auto const bias = r.normals(d, 10);
  auto keys = r.normals(32 * d);
  auto const queries = r.normals(d);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] += bias[i % d];
  auto const error = [&](auto const& summary) {
    auto const s = score<d>(summary, keys, 1, queries, 1000);
    double e = 0;
    for (std::int64_t b = 0; b < 32; ++b) e += std::pow(double(s.logits[0][std::size_t(b)]) - product(keys.data() + b * d, queries.data(), d), 2);
    return e;
  };
  CHECK(error(summary::residual<codec::int8<>, codec::higgs<4, 256>, 32>{}) < 0.1 * error(summary::quantized_key<codec::higgs<4, 256>>{}));
}

TEST_CASE("quantized_key scores q . (centre + decoded landmark)") {
  sweep([](auto dim, int block_tokens, std::int64_t blocks, std::vector<float> const& keys, std::vector<float> const& queries) {
    constexpr int d = dim;
    std::vector<double> frequencies;
    for (int i = 0; i < d / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / d));
    // landmarks: what is left of the mean key without the mean centre, coded and decoded by the codec itself, which has its own test
    auto const check = [&](auto summary, auto base, auto const& center_of) {
      auto const s = score<d>(summary, keys, block_tokens, queries, std::int64_t{1} << 40);
      for (std::int64_t const run : {1, 3}) {
        auto const in_runs = score<d>(summary, keys, block_tokens, queries, run);
        if (!summary.stores_mean) REQUIRE(in_runs.tiles == s.tiles);
        if (summary.stores_mean)  // another centre, that of the first run; what is coded exactly is the same key
          for (std::size_t h = 0; h < 3; ++h)
            for (std::size_t b = 0; b < std::size_t(blocks); ++b) REQUIRE(in_runs.logits[h][b] == Approx(s.logits[h][b]).margin(2e-6 * d * 10));
      }
      for (std::int64_t b = 0; b < blocks; ++b) {
        std::vector<double> center(d, 0.0);
        std::vector<float> landmark(d), decoded(d);
        for (int i = 0; i < block_tokens; ++i) {
          std::vector<double> const one = center_of(b, i);
          for (std::size_t c = 0; c < d; ++c) {
            center[c] += one[c] / block_tokens;
            landmark[c] += float((double(keys[std::size_t(b * block_tokens + i) * d + c]) - one[c]) / block_tokens);
          }
        }
        row_bytes const size = base.bytes(d);
        std::vector<std::byte> bytes(std::size_t(size.codes + size.scales));
        row_parts<std::byte> const at{bytes.data(), bytes.data() + size.codes, 0, 0};
        serial_team t;
        base.encode(t, rows_of<d>(std::as_const(landmark)), at);
        base.decode(t, at, rows_of<d>(decoded));
        for (std::size_t h = 0; h < 3; ++h) {
          double expected = 0, terms = 0;
          for (std::size_t c = 0; c < d; ++c) {
            expected += double(queries[h * d + c]) * (center[c] + double(decoded[c]));
            terms += std::abs(double(queries[h * d + c])) * (std::abs(center[c]) + std::abs(double(decoded[c])));
          }
          // Rounding of f32 sums of d terms and of f32 angles. With these inputs no landmark lies so near the middle of two codes that the order of a
          // sum decides between them: it would be off by a code.
          double const difference = std::abs(double(s.logits[h][std::size_t(b)]) - expected);
          if (difference > 2e-5 * terms + 1e-5) FAIL("block " << b << ": " << s.logits[h][std::size_t(b)] << " for " << expected);
        }
      }
    };
    auto const no_center = [](std::int64_t, int) { return std::vector<double>(d, 0.0); };
    check(summary::quantized_key<codec::identity<float>>{}.of_blocks(block_tokens), codec::identity<float>{}, no_center);
    if (block_tokens == 1) {
      check(summary::quantized_key<codec::higgs<4, 256>>{}, codec::higgs<4, 256>{}, no_center);
      check(summary::quantized_key<codec::higgs<2, 256, 1>>{}, codec::higgs<2, 256, 1>{}, no_center);
      check(summary::quantized_key<codec::higgs<2, 16>>{}, codec::higgs<2, 16>{}, no_center);
      check(summary::quantized_key<codec::fp8_e4m3<>>{}, codec::fp8_e4m3<>{}, no_center);
      check(summary::quantized_key<codec::fp8_e4m3<codec::unscaled>>{}, codec::fp8_e4m3<codec::unscaled>{}, no_center);
      check(summary::quantized_key<codec::int8<>>{}, codec::int8<>{}, no_center);
      check(summary::quantized_key<codec::int4<>>{}, codec::int4<>{}, no_center);
      check(summary::quantized_key<codec::nvfp4>{}, codec::nvfp4{}, no_center);
    }
    for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
      std::vector<float> mean(d);
      for (std::size_t c = 0; c < d; ++c) mean[c] = 30.0f * keys[c];
      auto const center_of = [&](std::int64_t b, int i) {  // the mean turned to the token's position, in double
        std::vector<double> y(d);
        for (std::size_t k = 0; k < d / 2; ++k) {
          std::size_t const p = pairing == rotary_pairing::adjacent ? 2 * k : k, q = pairing == rotary_pairing::adjacent ? 2 * k + 1 : k + d / 2;
          double const angle = double(b * block_tokens + i) * frequencies[k];
          y[p] = double(mean[p]) * std::cos(angle) - double(mean[q]) * std::sin(angle);
          y[q] = double(mean[p]) * std::sin(angle) + double(mean[q]) * std::cos(angle);
        }
        return y;
      };
      using coder = codec::centred<codec::identity<float>, codec::rotated_mean>;
      auto const summary =
          summary::quantized_key<coder>{}.of_blocks(block_tokens).with({pairing, {frequencies.data(), d / 2}}).bind(reinterpret_cast<std::byte*>(mean.data()));
      check(summary, codec::identity<float>{}, center_of);
    }
    using block_coder = codec::centred<codec::identity<float>, codec::block_mean<16>>;
    auto const mean_of_tile = [&](std::int64_t b, int) {  // stored in bf16
      std::int64_t const first = b / 16 * 16, last = std::min(blocks, first + 16);
      std::vector<double> mean(d, 0.0);
      for (std::size_t c = 0; c < d; ++c) {
        float sum = 0;
        for (std::int64_t i = first * block_tokens; i < last * block_tokens; ++i) sum += keys[std::size_t(i) * d + c];
        mean[c] = double(to_float(from_float<bf16>(sum / float((last - first) * block_tokens))));
      }
      return mean;
    };
    check(summary::quantized_key<block_coder>{}.of_blocks(block_tokens), codec::identity<float>{}, mean_of_tile);
  });
}

TEST_CASE("a landmark's bytes are the codec's, and a centre's mean is shared by a tile") {
  CHECK(summary::quantized_key<codec::higgs<4, 256>>{}.tile_bytes(64) == 32 * (16 + 2));
  CHECK(summary::quantized_key<codec::centred<codec::higgs<4, 256>, codec::rotated_mean>>{}.tile_bytes(64) == 32 * (16 + 2));
  CHECK(summary::quantized_key<codec::centred<codec::higgs<4, 256>, codec::block_mean<64>>>{}.tile_bytes(64) == 64 * (16 + 2) + 64 * 2);
  CHECK(summary::mean<>{}.tile_bytes(64) == 16 * 64 * 2);
  CHECK(summary::min_max<>{}.tile_bytes(64) == 16 * 64 * 4);
  CHECK(summary::box_digest<>{}.tile_bytes(64) == 16 * 64 * 4);
  CHECK(summary::residual<codec::int8<>, codec::higgs<4, 256>, 16>{}.tile_bytes(64) == 16 * (16 + 2) + 64 + 2);
  CHECK(summary::none{}.tile_bytes(64) == 0);
}
