// The inner loops at every vector level that this processor has, the generic bodies among them, against double precision.
#include "cellar/host/vector_level.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "catch.hpp"
#include "cellar/codec/higgs.hpp"
#include "cellar/core/rotary.hpp"
#include "cellar/host/executor.hpp"
#include "cellar/select/reduce.hpp"
#include "cellar/select/top_k.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

constexpr double unit = 0x1p-24;  // of f32 rounding

/// f(a serial team) for every level.
template <class F>
void for_levels(F const& f) {
  for (host::vector_level const level : host::vector_levels) {
    if (!host::is_supported(level)) continue;
    CAPTURE(int(level));
    f(serial_team{nullptr, 0, host::kernels_of(level)});
  }
}

/// The nearest T, of any type that rows are stored in.
template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, std::int8_t>)
    return std::int8_t(std::clamp(x * 40, -128.0f, 127.0f));
  else if constexpr (std::is_same_v<T, e4m3>)
    return to_e4m3(x);
  else
    return from_float<T>(x);
}
template <class T>
float value(T x) {
  if constexpr (std::is_same_v<T, std::int8_t>)
    return float(x);
  else
    return to_float(x);
}

/// Rows of D scalars at odd addresses, no two rows at one distance, and their values.
template <class T>
struct scattered_rows {
  scattered_rows(random_numbers& r, i64 count, int d) : bytes(std::size_t(count * (d * i64(sizeof(T)) + 9) + 1)), values(std::size_t(count * d)) {
    for (i64 i = 0, at = 1; i < count; ++i) {
      std::byte* const row = bytes.data() + at;
      for (int c = 0; c < d; ++c) {
        T const x = rounded<T>(r.normal());
        std::memcpy(row + c * int(sizeof(T)), &x, sizeof x);
        values[std::size_t(i * d + c)] = value(x);
      }
      rows.push_back(row);
      at += d * i64(sizeof(T)) + i % 9;
    }
  }
  row_pointers pointers() const { return {rows.data(), i64(rows.size()), rows.data(), i64(rows.size()) / 2, 100}; }

  std::vector<std::byte> bytes;
  std::vector<float> values;
  std::vector<std::byte const*> rows;
};

template <class T>
void check_rows() {
  random_numbers r(3);
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    for (i64 const heads : {1, 2, 3, 4, 5, 7, 8, 71})
      for (i64 const count : {1, 2, 3, 7, 8, 9, 64}) {
        scattered_rows<T> const rows(r, count, d);
        auto const q = r.normals(heads * d);
        auto weights = r.normals(heads * 80);
        auto const sums = r.normals(heads * d);
        for_levels([&](serial_team t) {
          std::vector<float> logits(std::size_t(heads * 80), 7.0f), added = sums;
          dot_rows<T>(t, rows_of<d>(q), rows.pointers(), logits.data(), 80);
          add_weighted_rows<T>(t, weights.data(), 80, rows.pointers(), rows_of<d>(added));
          bool right = true;
          for (i64 h = 0; h < heads; ++h) {
            for (i64 i = 0; i < 80; ++i) {
              float const got = logits[std::size_t(h * 80 + i)];
              if (i >= count) {
                right &= got == 7.0f;
                continue;
              }
              double sum = 0, size = 0;
              for (int c = 0; c < d; ++c) {
                double const x = double(q[std::size_t(h * d + c)]) * double(rows.values[std::size_t(i * d + c)]);
                sum += x;
                size += std::abs(x);
              }
              right &= std::abs(double(got) - sum) <= (d / 8 + 4) * unit * size;
            }
            for (int c = 0; c < d; ++c) {
              double sum = double(sums[std::size_t(h * d + c)]), size = std::abs(sum);
              for (i64 i = 0; i < count; ++i) {
                double const x = double(weights[std::size_t(h * 80 + i)]) * double(rows.values[std::size_t(i * d + c)]);
                sum += x;
                size += std::abs(x);
              }
              right &= std::abs(double(added[std::size_t(h * d + c)]) - sum) <= double(2 * count + 1) * unit * size;
            }
          }
          CAPTURE(d, heads, count);
          REQUIRE(right);
          // A pair's result does not depend on what else the call computes.
          std::vector<float> alone(1), sum_alone(sums.end() - d, sums.end());
          row_pointers const last{rows.rows.data() + count - 1, 1};
          dot_rows<T>(t, matrix_view<float const, d>{q.data() + (heads - 1) * d, 1}, last, alone.data(), 1);
          add_weighted_rows<T>(t, weights.data() + (heads - 1) * 80, 80, rows.pointers(), matrix_view<float, d>{sum_alone.data(), 1});
          REQUIRE(alone[0] == logits[std::size_t((heads - 1) * 80 + count - 1)]);
          REQUIRE(std::equal(sum_alone.begin(), sum_alone.end(), added.end() - d));
        });
      }
  });
}

template <class T, int Lanes>
void check_lanes() {
  random_numbers r(4);
  for (i64 const channels : {8, 24, 128, 512})
    for (i64 const heads : {1, 2, 3, 4, 5, 8}) {
      std::vector<T> tile(std::size_t(channels * Lanes));
      for (T& x : tile) x = rounded<T>(r.normal());
      auto const q = r.normals(heads * channels);
      for_levels([&](serial_team t) {
        std::vector<float> out(std::size_t(heads * 40), 7.0f), alone(Lanes);
        score_lanes<T>(t, q.data(), channels, heads, channels, reinterpret_cast<std::byte const*>(tile.data()), Lanes,
                       matrix_view<float>{out.data(), heads, 40, Lanes});
        bool right = true;
        for (i64 h = 0; h < heads; ++h)
          for (int b = 0; b < 40; ++b) {
            double sum = 0, size = 0;
            for (i64 c = 0; c < channels && b < Lanes; ++c) {
              double const x = double(q[std::size_t(h * channels + c)]) * double(value(tile[std::size_t(c * Lanes + b)]));
              sum += x;
              size += std::abs(x);
            }
            float const got = out[std::size_t(h * 40 + b)];
            right &= b < Lanes ? std::abs(double(got) - sum) <= double(2 * channels) * unit * size : got == 7.0f;
          }
        CAPTURE(channels, heads);
        REQUIRE(right);
        score_lanes<T>(t, q.data() + (heads - 1) * channels, channels, 1, channels, reinterpret_cast<std::byte const*>(tile.data()), Lanes,
                       matrix_view<float>{alone.data(), 1, Lanes, Lanes});
        REQUIRE(std::equal(alone.begin(), alone.end(), out.end() - 40));
      });
    }
}

template <class T>
void check_widen() {
  std::vector<T> all;
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    if constexpr (std::is_same_v<T, float>)
      all.push_back(bit_cast<float>(bits << 16 | bits));
    else if constexpr (sizeof(T) == 1)  // but for the two codes of fp8 that are no number, which codecs do not store
      all.push_back(bit_cast<T>(std::uint8_t(std::is_same_v<T, e4m3> && (bits & 0x7fu) == 0x7fu ? 0x7eu : bits)));
    else
      all.push_back(T{std::uint16_t(bits)});
  }
  for_levels([&](serial_team t) {
    for (i64 const count : {0, 1, 7, 8, 9, 65536}) {
      std::vector<float> to(std::size_t(count) + 1, 7.0f);
      widen<T>(t, reinterpret_cast<std::byte const*>(all.data()), count, to.data());
      bool right = to.back() == 7.0f;
      for (std::size_t i = 0; i < std::size_t(count); ++i) {
        float const expected = value(all[i]);
        right &= expected != expected ? to[i] != to[i] : bit_cast<std::uint32_t>(to[i]) == bit_cast<std::uint32_t>(expected);
      }
      REQUIRE(right);
    }
  });
}

double ulp(double x) { return std::ldexp(1.0, std::max(std::ilogb(x), -126) - 23); }

}  // namespace

TEST_CASE("the best vector level is supported, portable is everywhere, and executors take the best one") {
  CHECK(host::is_supported(host::vector_level::portable));
  CHECK(host::is_supported(host::best_vector_level()));
  CHECK(host::executor().kernels() == host::kernels_of(host::best_vector_level()));
  CHECK(host::executor().at_level(host::vector_level::portable).kernels() == nullptr);
  for (host::vector_level const level : host::vector_levels) {
    if (host::is_supported(level)) {
      CHECK(host::executor().at_level(level).kernels() == host::kernels_of(level));
      CHECK(level <= host::best_vector_level());
    } else {
      CHECK_THROWS_AS(host::executor().at_level(level), precondition_error);
      WARN("this processor does not run vector level " << int(level) << ": it is not tested");
    }
  }
}

TEST_CASE("rows of f32: dot products and weighted sums at every level") { check_rows<float>(); }
TEST_CASE("rows of f16: dot products and weighted sums at every level") { check_rows<f16>(); }
TEST_CASE("rows of bf16: dot products and weighted sums at every level") { check_rows<bf16>(); }
TEST_CASE("rows of int8: dot products and weighted sums at every level") { check_rows<std::int8_t>(); }
TEST_CASE("rows of fp8: dot products and weighted sums at every level") { check_rows<e4m3>(); }
TEST_CASE("interleaved rows are scored at every level") {
  check_lanes<float, 16>();
  check_lanes<f16, 16>();
  check_lanes<bf16, 16>();
  check_lanes<bf16, 32>();
  check_lanes<std::int8_t, 32>();
  check_lanes<e4m3, 32>();
  check_lanes<f16, 8>();
  check_lanes<bf16, 21>();
}
TEST_CASE("stored scalars are widened exactly at every level") {
  check_widen<float>();
  check_widen<f16>();
  check_widen<bf16>();
  check_widen<std::int8_t>();
  check_widen<e4m3>();
}

TEST_CASE("products element by element at every level") {
  random_numbers r(12);
  for (i64 n = 0; n <= 40; ++n) {
    auto const x = r.normals(n), by = r.normals(n);
    for_levels([&](serial_team t) {
      auto y = x;
      y.push_back(7.0f);
      multiply(t, y.data(), by.data(), n);
      for (std::size_t i = 0; i < std::size_t(n); ++i) REQUIRE(y[i] == x[i] * by[i]);
      REQUIRE(y.back() == 7.0f);
    });
  }
}

TEST_CASE("four-bit codes become their table's numbers, at every level") {
  random_numbers r(14);
  auto const table = r.normals(16);
  for (i64 const n : {0, 1, 2, 15, 16, 17, 31, 32, 48, 100, 128}) {
    std::vector<std::byte> codes(std::size_t(n + 1) / 2);
    for (auto& c : codes) c = std::byte(r.below(256));
    for_levels([&](serial_team t) {
      std::vector<float> to(std::size_t(n) + 1, 7.0f);
      nibble_values(t, codes.data(), n, table.data(), to.data());
      for (i64 i = 0; i < n; ++i) REQUIRE(to[std::size_t(i)] == table[std::size_t(int(codes[std::size_t(i / 2)]) >> (i % 2 ? 4 : 0) & 15)]);
      REQUIRE(to.back() == 7.0f);
    });
  }
}

TEST_CASE("numbers are rounded to stored scalars as from_float does, and checked against a bound, at every level") {
  auto const check = [&]<class T>(std::type_identity<T>) {
    random_numbers r(15);
    auto x = r.normals(2000, 1e3);
    for (std::uint32_t i = 0; i < 60000; ++i) x.push_back(bit_cast<float>(i * 71581u));  // all exponents, ties, infinity
    for (float const y : {0.0f, -0.0f, 65504.0f, 65519.0f, 65520.0f, 1e30f, infinity, -infinity, 1e-40f, -1e-8f, undefined}) x.push_back(y);
    for_levels([&](serial_team t) {
      for (i64 const n : {i64{0}, i64{1}, i64{7}, i64{8}, i64{9}, i64(x.size())}) {
        std::vector<std::byte> to(std::size_t(n) * sizeof(T) + 1, std::byte{7});
        narrow<T>(t, x.data() + x.size() - n, n, to.data());
        for (i64 i = 0; i < n; ++i) {
          T got;
          std::memcpy(&got, to.data() + i * i64(sizeof(T)), sizeof(T));
          float const from = x[x.size() - std::size_t(n - i)], expected = to_float(from_float<T>(from));
          REQUIRE((from != from ? to_float(got) != to_float(got) : bit_cast<std::uint32_t>(to_float(got)) == bit_cast<std::uint32_t>(expected)));
        }
        REQUIRE(to.back() == std::byte{7});
      }
      for (i64 const n : {1, 5, 8, 16, 21})
        for (i64 at = -1; at < n; ++at)
          for (float const y : {2.0f, -2.0f, 2.5f, -2.5f, infinity, -infinity, undefined}) {
            std::vector<T> some(std::size_t(n), from_float<T>(-1));
            if (at >= 0) some[std::size_t(at)] = from_float<T>(y);
            bool const expected = at < 0 || std::abs(y) <= 2;
            REQUIRE(are_within<T>(t, reinterpret_cast<std::byte const*>(some.data()), n, 2) == expected);
          }
    });
  };
  check(std::type_identity<float>{});
  check(std::type_identity<f16>{});
  check(std::type_identity<bf16>{});
}

TEST_CASE("numbers over a scale become int8 and fp8 as in double: nearest, ties to even, saturated, at every level") {
  random_numbers r(16);
  std::vector<float> x = r.normals(2000, 40);
  for (int i = -1100; i <= 1100; ++i) x.push_back(float(i) * 0.5f);  // ties of integers, beyond 127 and 448
  for (std::uint32_t code = 0; code < 0x7e; ++code)                  // fp8: each number and halfway to the next one
    for (float const sign : {1.0f, -1.0f}) {
      float const a = to_float(e4m3{std::uint8_t(code)}), b = to_float(e4m3{std::uint8_t(code + 1)});
      x.insert(x.end(), {sign * a, sign * (a + b) / 2, std::nextafter(sign * (a + b) / 2, 0.0f), std::nextafter(sign * (a + b) / 2, sign * 1e9f)});
    }
  for (float const y : {0.0f, -0.0f, 1e-30f, -1e-30f, 3e38f, -3e38f}) x.push_back(y);
  std::vector<double> values;  // of fp8, by code
  for (std::uint32_t code = 0; code < 0x7f; ++code) values.push_back(double(to_float(e4m3{std::uint8_t(code)})));
  for_levels([&](serial_team t) {
    for (float const scale : {1.0f, 0.37f, 0.0f})
      for (i64 const n : {i64{1}, i64{7}, i64{8}, i64{13}, i64(x.size())}) {
        float const* const from = x.data() + x.size() - n;
        std::vector<std::byte> bytes(std::size_t(n) + 1, std::byte{7}), fp8(std::size_t(n) + 1, std::byte{7});
        quantize<std::int8_t>(t, from, n, scale, bytes.data());
        quantize<e4m3>(t, from, n, scale, fp8.data());
        float most = 0;
        for (i64 i = 0; i < n; ++i) {
          most = std::max(most, std::abs(from[i]));
          double const y = scale > 0 ? double(from[i] / scale) : 0.0;
          REQUIRE(int(std::int8_t(bytes[std::size_t(i)])) == int(std::nearbyint(std::clamp(y, -127.0, 127.0))));
          auto const code = std::uint8_t(fp8[std::size_t(i)]);
          REQUIRE((code >= 0x80u) == std::signbit(y));
          std::size_t best = 0;
          for (std::size_t c = 1; c < values.size(); ++c) {
            double const d = std::abs(values[c] - std::abs(y)), least = std::abs(values[best] - std::abs(y));
            if (d < least || (d == least && c % 2 == 0)) best = c;
          }
          REQUIRE(std::size_t(code & 0x7fu) == best);
        }
        REQUIRE((bytes.back() == std::byte{7} && fp8.back() == std::byte{7}));
        CHECK(largest_magnitude(t, from, n) == most);
      }
    CHECK(largest_magnitude(t, x.data(), 0) == 0);
  });
}

TEST_CASE("exp is right within 2 ulp down to -87, and 0 at -104, beyond, and at -infinity, at every level") {
  for_levels([&](serial_team t) {
    std::vector<float> x{0.0f, -0.0f, -1e-30f, -87.0f, -88.0f, -95.0f, -103.9f, -104.0f, -105.0f, -1000.0f, -3e38f, -infinity};
    random_numbers r(5);
    for (int i = 0; i < 200000; ++i) x.push_back(float(-87.0 * double(r.below(1 << 30)) / double(1 << 30)));
    for (float const reference : {0.0f, 3.5f, -20.0f}) {
      auto shifted = x;
      for (float& y : shifted) y += reference;
      auto exps = shifted;
      float const sum = exponentials(t, exps.data(), i64(exps.size()), reference);
      double exact_sum = 0, worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        double const argument = double(shifted[i] - reference), expected = std::exp(argument);
        exact_sum += expected;
        if (argument >= -87) worst = std::max(worst, std::abs(double(exps[i]) - expected) / ulp(expected));
        if (argument < -87 && argument > -104) REQUIRE(std::abs(double(exps[i]) - expected) <= 0x1p-126 * 2e-7 + 0x1p-149);
        if (argument <= -104) REQUIRE(exps[i] == 0.0f);
      }
      CHECK(worst <= 2);
      CHECK(double(sum) == Approx(exact_sum).epsilon(1e-4));
      CHECK(double(sum_of_exponentials(t, shifted.data(), i64(x.size()), reference)) == Approx(exact_sum).epsilon(1e-4));
    }
    for (i64 n = 0; n <= 20; ++n) {  // tails
      std::vector<float> some(std::size_t(n) + 1, -1.0f);
      CHECK(double(sum_of_exponentials(t, some.data(), n, 0)) == Approx(double(n) * std::exp(-1.0)).margin(1e-12));
      CHECK(double(exponentials(t, some.data(), n, 0)) == Approx(double(n) * std::exp(-1.0)).margin(1e-12));
      CHECK(some.back() == -1.0f);
    }
    std::vector<float> some{-1.0f, undefined, -2.0f};
    CHECK(double(sum_of_exponentials(t, some.data(), 3, 0)) == Approx(std::exp(-1.0) + std::exp(-2.0)));
    CHECK(std::isnan(exponentials(t, some.data(), 3, 0)));
  });
}

TEST_CASE("the largest, and what is raised, pass NaN over at every level") {
  random_numbers r(6);
  for_levels([&](serial_team t) {
    CHECK(largest_of(t, nullptr, 0) == -infinity);
    for (i64 n = 1; n <= 40; ++n) {
      auto x = r.normals(n), to = r.normals(n);
      for (i64 i = 0; i < n; i += 5) x[std::size_t(i)] = undefined;
      for (i64 i = 0; i < n; i += 3) to[std::size_t(i)] = undefined;
      if (n % 4 == 0) x[std::size_t(n - 1)] = infinity;
      float top = -infinity;
      for (float const y : x)
        if (y > top) top = y;
      CHECK(largest_of(t, x.data(), n) == top);
      auto raised = to;
      raised.push_back(7.0f);
      raise(t, raised.data(), x.data(), n, 0.25f);
      for (std::size_t i = 0; i < std::size_t(n); ++i) {
        float const y = x[i] - 0.25f;
        if (std::isnan(y) && std::isnan(to[i]))
          REQUIRE(std::isnan(raised[i]));
        else
          REQUIRE(raised[i] == (std::isnan(y) ? to[i] : std::isnan(to[i]) ? y : std::max(y, to[i])));
      }
      REQUIRE(raised.back() == 7.0f);
    }
  });
}

TEST_CASE("turns by the table are those of angles in double, at every level, and beyond the table too") {
  random_numbers r(11);
  for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split})
    for (int const d : {8, 24, 80, 128}) {
      std::vector<double> frequencies;
      for (int i = 0; i < d / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / d));
      rotary turn{pairing, {frequencies.data(), d / 2}};
      constexpr i64 positions = 1000;
      std::vector<float> table(std::size_t(turn_floats(turn, positions)) + 1, 7.0f);
      fill_turns(turn, positions, table.data());
      REQUIRE(table.back() == 7.0f);
      turn.turns = {table.data(), turn_floats(turn, positions)};
      auto const x = r.normals(d);
      for_levels([&](serial_team const& level) {
        for (i64 const position : {0, 1, 63, 64, 65, 127, 500, 999, 1023, 1024, 131071, -1, -64, -700, -5000}) {
          std::vector<float> y(std::size_t(d) + 1, 7.0f);
          rotate(turn, x.data(), position, y.data(), level.kernels());
          REQUIRE(y.back() == 7.0f);
          for (std::size_t i = 0; i < std::size_t(d / 2); ++i) {
            bool const adjacent = pairing == rotary_pairing::adjacent;
            std::size_t const a = adjacent ? 2 * i : i, b = adjacent ? 2 * i + 1 : i + std::size_t(d / 2);
            double const angle = double(position) * frequencies[i];
            REQUIRE(double(y[a]) == Approx(double(x[a]) * std::cos(angle) - double(x[b]) * std::sin(angle)).margin(2e-6));
            REQUIRE(double(y[b]) == Approx(double(x[a]) * std::sin(angle) + double(x[b]) * std::cos(angle)).margin(2e-6));
          }
          for (i64 i = 0; i < d / 2; ++i) {
            float c = 0, sine = 0;
            turn_of(turn, i, position, c, sine);
            double const angle = double(position) * frequencies[std::size_t(i)];
            REQUIRE(std::abs(double(c) - std::cos(angle)) <= 2e-7);
            REQUIRE(std::abs(double(sine) - std::sin(angle)) <= 2e-7);
          }
          auto in_place = x;
          rotate(turn, in_place.data(), position, in_place.data(), level.kernels());
          REQUIRE(std::equal(in_place.begin(), in_place.end(), y.begin()));
        }
      });
    }
}

TEST_CASE("the Walsh-Hadamard transform at every width and level") {
  random_numbers r(7);
  for (int channels : {1, 2, 4, 8, 16, 24, 64, 80, 96, 128, 200, 256, 1024}) {
    int const width = codec::rotation_width(channels);
    auto const x = r.normals(channels);
    for_levels([&](serial_team t) {
      auto y = x;
      y.push_back(7.0f);
      codec::hadamard_transform(t, y.data(), channels);
      for (int i = 0; i < channels; ++i) {
        double sum = 0;
        for (int j = 0; j < width; ++j) {
          double const term = double(x[std::size_t(i / width * width + j)]);
          sum += __builtin_parity(unsigned(i % width & j)) ? -term : term;
        }
        REQUIRE(double(y[std::size_t(i)]) == Approx(sum).margin(1e-6 * width));
      }
      REQUIRE(y.back() == 7.0f);
    });
  }
}

namespace {

/// Codes are nearest points, decoded points are the grid's, scores from codes are sums of table entries.
template <int Dimension, int Points>
void check_grid() {
  using grid = codec::higgs_grid<Dimension, Points>;
  random_numbers r(8);
  constexpr int count = 4096;
  auto y = r.normals(count * Dimension);
  for (int k = 0; k < 16; ++k) y[std::size_t(k)] *= 1e6f;  // far outside
  std::vector<float> by_coordinate(std::size_t((Dimension + 1) * Points));
  for (int p = 0; p < Points; ++p)
    for (int i = 0; i < Dimension; ++i) {
      float const x = grid::points[p * Dimension + i];
      by_coordinate[std::size_t(i * Points + p)] = x;
      by_coordinate[std::size_t(Dimension * Points + p)] += x * x / 2;
    }
  for_levels([&](serial_team t) {
    std::vector<std::uint8_t> codes(count + 1, 0xee);
    nearest_points<Dimension, Points>(t, y.data(), count, by_coordinate.data(), codes.data());
    REQUIRE(codes.back() == 0xee);
    for (int k = 0; k < count; ++k) {
      double best = std::numeric_limits<double>::infinity(), chosen = 0, size = 0;
      for (int p = 0; p < Points; ++p) {
        double d = 0;
        for (int i = 0; i < Dimension; ++i) d += std::pow(double(y[std::size_t(k * Dimension + i)]) - double(grid::points[p * Dimension + i]), 2);
        best = std::min(best, d);
        if (p == codes[std::size_t(k)]) chosen = d;
      }
      for (int i = 0; i < Dimension; ++i) size += std::pow(double(y[std::size_t(k * Dimension + i)]), 2) + 10;
      REQUIRE(chosen - best <= 16 * unit * size);
    }
    for (int const n : {0, 1, 3, 5, 64}) {
      std::vector<float> points(std::size_t(n * Dimension) + 1, 7.0f);
      grid_points<Dimension>(t, codes.data(), n, grid::points, 0.5f, points.data());
      for (int k = 0; k < n; ++k)
        for (int i = 0; i < Dimension; ++i) REQUIRE(points[std::size_t(k * Dimension + i)] == grid::points[codes[std::size_t(k)] * Dimension + i] * 0.5f);
      REQUIRE(points.back() == 7.0f);
    }
  });
}

}  // namespace

TEST_CASE("codes are the nearest grid points, and decode to them, at every level") {
  check_grid<2, 16>();
  check_grid<2, 256>();
  check_grid<4, 256>();
}

TEST_CASE("scores from codes are the sums of table entries, for groups of one to four queries, at every level") {
  random_numbers r(9);
  auto const check = [&]<int Points>(std::integral_constant<int, Points>) {
    constexpr int per_byte = Points == 16 ? 2 : 1;
    for (int const bytes : {1, 5, 32})
      for (int const lanes : {1, 7, 8, 16, 19, 32, 64, 65, 128, 133})
        for (int const group : {1, 2, 3, 4}) {
          auto table = r.normals(bytes * per_byte * Points * group);
          table.push_back(undefined);  // may be read, and must not matter
          std::vector<std::byte> codes(std::size_t(bytes * lanes));
          for (auto& c : codes) c = std::byte(r.below(256));
          std::vector<bf16> scales;
          for (int i = 0; i < lanes; ++i) scales.push_back(from_float<bf16>(r.normal()));
          for_levels([&](serial_team t) {
            std::vector<float> out(std::size_t(group * 140), 7.0f);
            score_codes<Points, bf16>(t, table.data(), group, codes.data(), bytes, reinterpret_cast<std::byte const*>(scales.data()), lanes,
                                      matrix_view<float>{out.data(), group, 140, lanes});
            for (int g = 0; g < group; ++g)
              for (int lane = 0; lane < 140; ++lane) {
                float const got = out[std::size_t(g * 140 + lane)];
                if (lane >= lanes) {
                  REQUIRE(got == 7.0f);
                  continue;
                }
                double sum = 0, size = 0;
                for (int byte = 0; byte < bytes; ++byte) {
                  auto const code = int(codes[std::size_t(byte * lanes + lane)]);
                  for (int half = 0; half < per_byte; ++half) {
                    int const point = Points == 16 ? code >> (4 * half) & 15 : code, at = byte * per_byte + half;
                    double const x = double(table[std::size_t(Points == 16 ? (at * group + g) * 16 + point : (at * 256 + point) * group + g)]);
                    sum += x;
                    size += std::abs(x);
                  }
                }
                double const scale = double(to_float(scales[std::size_t(lane)]));
                REQUIRE(std::abs(double(got) - scale * sum) <= (bytes * per_byte + 2) * unit * size * std::abs(scale));
              }
          });
        }
  };
  check(std::integral_constant<int, 256>{});
  check(std::integral_constant<int, 16>{});
}

TEST_CASE("top-k takes the highest scores, ties to the lowest id, NaN last, at every level") {
  random_numbers r(10);
  auto const check = [&](std::vector<float> const& scores) {
    i64 const n = i64(scores.size());
    std::vector<i64> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) {
      float const x = scores[std::size_t(a)], y = scores[std::size_t(b)];
      return std::isnan(y) ? !std::isnan(x) : x > y;
    });
    for (i64 const k : {i64{1}, i64{2}, n / 3, n / 2, n - 1, n}) {
      if (k < 1 || k > n) continue;
      std::vector<i64> expected(order.begin(), order.begin() + k);
      std::sort(expected.begin(), expected.end());
      for_levels([&](serial_team const& level) {
        std::byte shared[select::top_k::shared_bytes];
        serial_team t(shared, sizeof shared, level.kernels());
        std::vector<logical_block> ids(std::size_t(k) + 1, logical_block{-7});
        REQUIRE(select::top_k{k}(t, row_view<float const>{scores.data(), n}, row_view<logical_block>{ids.data(), k}) == k);
        REQUIRE(number(ids.back()) == -7);
        for (std::size_t i = 0; i < std::size_t(k); ++i) REQUIRE(number(ids[i]) == expected[i]);
      });
    }
  };
  for (i64 const n : {1, 2, 7, 8, 9, 100, 1000, 70001}) {
    check(r.normals(n));
    auto ties = r.normals(n);
    for (float& x : ties) x = std::floor(x);  // -0 and 0 among them
    check(ties);
    auto odd = r.normals(n);
    for (std::size_t i = 0; i < odd.size(); ++i) odd[i] = i % 7 == 0 ? undefined : i % 11 == 0 ? infinity : i % 13 == 0 ? -infinity : odd[i];
    check(odd);
    check(std::vector<float>(std::size_t(n), undefined));
    check(std::vector<float>(std::size_t(n), -infinity));
  }
}
