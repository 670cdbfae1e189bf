#include "cellar/codec/centred.hpp"

#include <cmath>

#include "catch.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

std::vector<double> frequencies(int d) {
  std::vector<double> f;
  for (int i = 0; i < d / 2; ++i) f.push_back(std::pow(1e4, -2.0 * i / d));
  return f;
}

/// Turns x to a position, in double, from the definition.
std::vector<double> turned(std::vector<double> const& x, rotary_pairing pairing, double position) {
  std::size_t const half = x.size() / 2;
  std::vector<double> y(x.size());
  auto const f = frequencies(int(x.size()));
  for (std::size_t i = 0; i < half; ++i) {
    std::size_t const a = pairing == rotary_pairing::adjacent ? 2 * i : i, b = pairing == rotary_pairing::adjacent ? 2 * i + 1 : i + half;
    double const angle = position * f[i];
    y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
    y[b] = x[a] * std::sin(angle) + x[b] * std::cos(angle);
  }
  return y;
}

/// Keys with a large bias before rotary embedding, as Qwen2's: [rows, d] as attended from position `first` on.
std::vector<float> biased_keys(int d, std::int64_t rows, rotary_pairing pairing, std::int64_t first, random_numbers& r) {
  auto const bias = r.normals(d, 40);
  std::vector<float> keys;
  for (std::int64_t p = 0; p < rows; ++p) {
    std::vector<double> k;
    for (int c = 0; c < d; ++c) k.push_back(double(bias[std::size_t(c)]) + double(r.normal()));
    for (double const x : turned(k, pairing, double(first + p))) keys.push_back(float(x));
  }
  return keys;
}

double squared_error(std::vector<float> const& a, std::vector<float> const& b) {
  double e = 0;
  for (std::size_t i = 0; i < a.size(); ++i) e += std::pow(double(a[i]) - double(b[i]), 2);
  return e / double(a.size());
}

template <class Codec, int D>
std::vector<float> round_trip(Codec const& coder, std::vector<float> const& x, int group) {
  row_bytes const size = coder.bytes(D);
  std::int64_t const groups = std::int64_t(x.size()) / D / group;
  std::vector<std::byte> codes(std::size_t(groups * size.codes)), scales(std::size_t(groups * size.scales));
  row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
  serial_team t;
  coder.encode(t, rows_of<D>(x), at);
  std::vector<float> y(x.size());
  coder.decode(t, at, rows_of<D>(y));
  return y;
}

}  // namespace

TEST_CASE("the rotated mean is the mean key before rotary embedding, at every position") {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
      random_numbers r(d);
      auto const f = frequencies(d);
      std::int64_t const rows = 37, first = 5;
      auto const keys = biased_keys(d, rows, pairing, first, r);
      std::vector<float> state(d);
      serial_team t;
      auto const center = codec::rotated_mean{}.with({pairing, {f.data(), d / 2}});
      REQUIRE(center.state_bytes(d) == std::int64_t(d * sizeof(float)));
      center.train(t, rows_of<d>(keys), first, reinterpret_cast<std::byte*>(state.data()));
      std::vector<double> mean(d, 0.0);
      for (std::int64_t p = 0; p < rows; ++p) {
        auto const back = turned({keys.begin() + p * d, keys.begin() + (p + 1) * d}, pairing, -double(first + p));
        for (std::size_t c = 0; c < d; ++c) mean[c] += back[c] / double(rows);
      }
      for (std::size_t c = 0; c < d; ++c) REQUIRE(double(state[c]) == Approx(mean[c]).margin(1e-4));
      auto const bound = center.bind(reinterpret_cast<std::byte*>(state.data())).at(100);
      std::vector<float> at(d);
      bound.center(t, 3, at.data());
      auto const expected = turned(mean, pairing, 103);
      for (std::size_t c = 0; c < d; ++c) REQUIRE(double(at[c]) == Approx(expected[c]).margin(2e-4));
    }
  });
}

TEST_CASE("the rotated mean of keys with a magnitude (YaRN) has it too") {
  constexpr int d = 64;
  random_numbers r(8);
  auto const f = frequencies(d);
  auto keys = biased_keys(d, 50, rotary_pairing::half_split, 7, r);
  auto const centers = [&] {  // of the keys as attended, 30 positions on
    std::vector<float> state(d), at(d);
    serial_team t;
    auto const center = codec::rotated_mean{}.with({rotary_pairing::half_split, {f.data(), d / 2}});
    center.train(t, rows_of<d>(std::as_const(keys)), 7, reinterpret_cast<std::byte*>(state.data()));
    center.bind(reinterpret_cast<std::byte*>(state.data())).at(30).center(t, 0, at.data());
    return at;
  };
  auto const plain = centers();
  for (float& k : keys) k *= 1.25f;
  auto const longer = centers();
  for (std::size_t c = 0; c < d; ++c) CHECK(longer[c] == Approx(1.25f * plain[c]).margin(1e-4));
}

TEST_CASE("centred by the rotated mean, biased keys lose what unbiased ones lose") {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    if (d < 64) return;  // few channels hold few codes: the bound below is statistical
    for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
      random_numbers r(d + 1);
      auto const f = frequencies(d);
      auto const keys = biased_keys(d, 200, pairing, 0, r);
      using coder_type = codec::centred<codec::higgs<2, 256, 1>, codec::rotated_mean>;
      coder_type coder;
      coder = coder.with({pairing, {f.data(), d / 2}});
      std::vector<std::byte> state(std::size_t(coder.state_bytes(d)));
      serial_team t;
      coder.train(t, rows_of<d>(keys), 0, state.data());
      coder = coder.bind(state.data()).at(0);
      double const centred_error = squared_error(keys, round_trip<coder_type, d>(coder, keys, 1));
      double const plain_error = squared_error(keys, round_trip<codec::higgs<2, 256, 1>, d>({}, keys, 1));
      CHECK(centred_error < 0.012);  // 0.0078 of a variance of 1
      CHECK(plain_error > 20 * centred_error);

      // Rows later in the sequence are coded by their positions.
      auto const tail = std::vector<float>(keys.begin() + 150 * d, keys.end());
      CHECK(squared_error(tail, round_trip<coder_type, d>(coder.at(150), tail, 1)) < 0.012);
      CHECK(squared_error(tail, round_trip<coder_type, d>(coder.at(0), tail, 1)) > 0.1);
    }
  });
}

TEST_CASE("centred by block means, rows keep their group's mean and lose little else") {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    using coder_type = codec::centred<codec::identity<float>, codec::block_mean<16>>;
    random_numbers r(d + 2);
    auto x = r.normals(48 * d);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += 100;
    coder_type const coder;
    REQUIRE(coder.bytes(d).codes == std::int64_t(16 * d * sizeof(float)));
    REQUIRE(coder.bytes(d).scales == std::int64_t(d * sizeof(bf16)));
    auto const y = round_trip<coder_type, d>(coder, x, 16);
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(y[i] == Approx(x[i]).epsilon(1e-6));

    using coarse = codec::centred<codec::higgs<2, 256, 1>, codec::block_mean<16>>;
    REQUIRE(coarse{}.bytes(d).codes == 16 * d / 2);
    REQUIRE(coarse{}.bytes(d).scales == std::int64_t(16 * sizeof(bf16) + d * sizeof(bf16)));
    if (d >= 64) CHECK(squared_error(x, round_trip<coarse, d>({}, x, 16)) < 0.015);
  });
}
