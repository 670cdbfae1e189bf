#include "codec/higgs_oracle.hpp"

#include <numbers>

#include "cellar/host/vector_level.hpp"

#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

/// Mean squared error a channel of the nearest grid point, for normal vectors that no training saw.
template <int Dimension, int Points>
double grid_error(int samples) {
  random_numbers r(4711);
  double sum = 0;
  for (int i = 0; i < samples; ++i) {
    auto const x = r.normals(Dimension);
    double best = 1e30;
    for (int p = 0; p < Points; ++p) {
      double d = 0;
      for (int c = 0; c < Dimension; ++c) d += std::pow(double(x[std::size_t(c)]) - double(codec::higgs_grid<Dimension, Points>::points[p * Dimension + c]), 2);
      best = std::min(best, d);
    }
    sum += best;
  }
  return sum / samples / Dimension;
}

template <int Dimension, int Points, std::uint32_t Seed, class Scale>
void check_codec() {
  using codec_type = codec::higgs<Dimension, Points, Seed, Scale>;
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    random_numbers r(d);
    constexpr std::int64_t rows = 5;
    auto x = r.normals(rows * d, 3);
    for (int c = 0; c < d; ++c) x[std::size_t(2 * d + c)] = 0;                // a zero row
    for (int c = 0; c < d; ++c) x[std::size_t(3 * d + c)] = c == 1 ? 50 : 0;  // one channel: the rotation spreads it
    codec_type const coder;
    row_bytes const size = coder.bytes(d);
    REQUIRE(size.codes == std::int64_t(d / Dimension * std::bit_width(unsigned(Points - 1)) / 8));
    REQUIRE(size.scales == std::int64_t(sizeof(Scale)));

    std::int64_t const code_stride = size.codes + 3, scale_stride = size.scales + 1;  // unaligned on purpose
    std::vector<std::byte> codes(std::size_t(rows * code_stride), std::byte{0xab}), scales(std::size_t(rows * scale_stride), std::byte{0xcd});
    row_parts<std::byte> const to{codes.data(), scales.data(), code_stride, scale_stride};
    serial_team t;
    coder.encode(t, rows_of<d>(std::as_const(x)), to);
    for (std::int64_t row = 0; row < rows; ++row)  // nothing between the rows is touched
      for (std::int64_t i = size.codes; i < code_stride; ++i) REQUIRE(codes[std::size_t(row * code_stride + i)] == std::byte{0xab});

    std::vector<float> y(x.size());
    coder.decode(t, to, rows_of<d>(y));
    for (std::int64_t row = 0; row < rows; ++row) {
      std::vector<float> const mine(x.begin() + row * d, x.begin() + (row + 1) * d);
      double norm = 0, error = 0;
      for (float const v : mine) norm += double(v) * double(v);
      norm = std::sqrt(norm);
      double const scale = double(to_float(cellar::detail::load<Scale>(scales.data() + row * scale_stride)));
      REQUIRE(scale == Approx(norm).epsilon(0.005));
      auto const expected = higgs_oracle<Dimension, Points, Seed>::decode(codes.data() + row * code_stride, scale, d);
      for (int c = 0; c < d; ++c) {
        double const decoded = double(y[std::size_t(row * d + c)]);
        REQUIRE(decoded == Approx(expected[std::size_t(c)]).margin(1e-5 * (norm + 1)));
        error += std::pow(decoded - double(mine[std::size_t(c)]), 2);
      }
      if (row == 2) {
        REQUIRE(error == 0);
        continue;
      }
      higgs_oracle<Dimension, Points, Seed>::check_codes(mine, codes.data() + row * code_stride, scale);
      REQUIRE(error <= norm * norm);  // never worse than storing nothing

      std::vector<std::byte> one(std::size_t(size.codes + size.scales));  // a row alone gives the same bytes
      coder.encode(t, matrix_view<float const, d>{mine.data(), 1}, {one.data(), one.data() + size.codes, 0, 0});
      REQUIRE(std::equal(one.begin(), one.begin() + size.codes, codes.begin() + row * code_stride));
    }
  });
}

template <int Dimension, int Points>
double normal_row_error() {
  constexpr int d = 128;
  random_numbers r(5);
  codec::higgs<Dimension, Points, 1> const coder;
  row_bytes const size = coder.bytes(d);
  std::vector<std::byte> bytes(std::size_t(size.codes + size.scales));
  double error = 0, norm = 0;
  serial_team t;
  for (int i = 0; i < 2000; ++i) {
    auto const x = r.normals(d);
    std::vector<float> y(d);
    row_parts<std::byte> const at{bytes.data(), bytes.data() + size.codes, 0, 0};
    coder.encode(t, rows_of<d>(x), at);
    coder.decode(t, at, rows_of<d>(y));
    for (std::size_t c = 0; c < d; ++c) {
      error += std::pow(double(x[c]) - double(y[c]), 2);
      norm += std::pow(double(x[c]), 2);
    }
  }
  return error / norm;
}

}  // namespace

TEST_CASE("the grids are as good as stated, on a sample of their own") {
  CHECK(grid_error<4, 256>(300000) <= 0.0975);
  CHECK(grid_error<2, 16>(300000) <= 0.108);
  CHECK(grid_error<2, 256>(300000) <= 0.0081);
}

TEST_CASE("higgs stores what its definition says, without and with signs, in both kinds of code") {
  check_codec<2, 256, 0, bf16>();
  check_codec<4, 256, 1, bf16>();
  check_codec<2, 16, 0, f16>();
  check_codec<2, 16, 77, float>();
}

TEST_CASE("the error of normal rows is that of the grid") {
  CHECK(normal_row_error<4, 256>() == Approx(0.0957).margin(0.003));
  CHECK(normal_row_error<2, 16>() == Approx(0.107).margin(0.003));
  CHECK(normal_row_error<2, 256>() == Approx(0.0078).margin(0.0006));
}

TEST_CASE("random signs are balanced, differ between seeds, and are none for seed 0") {
  int sum = 0, equal = 0;
  for (int i = 0; i < 4096; ++i) {
    CHECK(codec::random_sign(0, i) == 1.0f);
    sum += int(codec::random_sign(1, i));
    equal += codec::random_sign(1, i) == codec::random_sign(2, i);
  }
  CHECK(std::abs(sum) < 4 * 64);
  CHECK(std::abs(equal - 2048) < 4 * 32);
}

TEST_CASE("rotated rows turn back to the decoded ones, rotated queries meet them with the same product, and groups score as single queries do") {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    auto const check = [&](auto coder) {
      random_numbers r(7);
      constexpr int lanes = 16, rows = 3;
      auto const x = r.normals(lanes * d), q = r.normals(rows * d);
      row_bytes const size = coder.bytes(d);
      std::vector<std::byte> codes(std::size_t(lanes * size.codes)), scales(std::size_t(lanes * size.scales)), tile(codes.size());
      row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
      for (host::vector_level const level : host::vector_levels) {
        if (!host::is_supported(level)) continue;
        serial_team t(nullptr, 0, host::kernels_of(level));
        coder.encode(t, rows_of<d>(x), at);
        std::vector<float> y(x.size()), rotated(x.size()), turned = q;
        coder.decode(t, at, rows_of<d>(y));
        coder.decode_rotated(t, at, rows_of<d>(rotated));
        coder.rotate(t, rows_of<d>(turned));
        for (std::size_t h = 0; h < rows; ++h)
          for (std::size_t lane = 0; lane < lanes; ++lane) {
            double plain = 0, there = 0;
            for (std::size_t c = 0; c < d; ++c) {
              plain += double(q[h * d + c]) * double(y[lane * d + c]);
              there += double(turned[h * d + c]) * double(rotated[lane * d + c]);
            }
            REQUIRE(there == Approx(plain).margin(1e-5 * d));
          }
        coder.rotate_back(t, rows_of<d>(rotated));
        for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(rotated[i] == Approx(y[i]).margin(2e-5));

        for (int lane = 0; lane < lanes; ++lane)
          for (std::int64_t i = 0; i < size.codes; ++i) tile[std::size_t(i * lanes + lane)] = codes[std::size_t(lane * size.codes + i)];
        std::vector<std::byte> group(std::size_t(rows * coder.query_bytes(d))), single(std::size_t(coder.query_bytes(d)));
        std::vector<float> scores(rows * lanes), one(lanes);
        coder.template prepare_group<d>(t, rows_of<d>(q), group.data());
        coder.template score_group<d>(t, group.data(), rows, tile.data(), scales.data(), lanes, matrix_view<float>{scores.data(), rows, lanes, lanes});
        for (std::size_t h = 0; h < rows; ++h) {
          coder.template prepare_query<d>(t, q.data() + h * d, single.data());
          coder.template score_codes<d>(t, single.data(), tile.data(), scales.data(), lanes, one.data());
          for (std::size_t lane = 0; lane < lanes; ++lane) REQUIRE(scores[h * lanes + lane] == one[lane]);
        }
      }
    };
    check(codec::higgs<4, 256>{});
    check(codec::higgs<2, 256, 3>{});
    check(codec::higgs<2, 16, 3>{});
  });
}

TEST_CASE("scores from codes are q . decoded row") {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    auto const check = [&](auto coder) {
      random_numbers r(6);
      constexpr int lanes = 16;
      auto const x = r.normals(lanes * d), q = r.normals(d);
      row_bytes const size = coder.bytes(d);
      std::vector<std::byte> codes(std::size_t(lanes * size.codes)), scales(std::size_t(lanes * size.scales) + 1), tile(codes.size());
      serial_team t;
      row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
      coder.encode(t, rows_of<d>(x), at);
      for (int lane = 0; lane < lanes; ++lane)
        for (std::int64_t i = 0; i < size.codes; ++i) tile[std::size_t(i * lanes + lane)] = codes[std::size_t(lane * size.codes + i)];
      std::vector<float> y(x.size()), scores(lanes);
      coder.decode(t, at, rows_of<d>(y));
      std::vector<std::byte> prepared(std::size_t(coder.query_bytes(d)));
      coder.template prepare_query<d>(t, q.data(), prepared.data());
      coder.template score_codes<d>(t, prepared.data(), tile.data(), scales.data(), lanes, scores.data());
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        double expected = 0, size_of_terms = 0;
        for (std::size_t c = 0; c < d; ++c) {
          expected += double(q[c]) * double(y[lane * d + c]);
          size_of_terms += std::abs(double(q[c]) * double(y[lane * d + c]));
        }
        REQUIRE(double(scores[lane]) == Approx(expected).margin(1e-5 * size_of_terms + 1e-6));
      }
    };
    check(codec::higgs<4, 256>{});
    check(codec::higgs<2, 256, 3>{});
    check(codec::higgs<2, 16, 3>{});
  });
}

TEST_CASE("the search by cells finds the nearest point of the plane, ties to the lowest, inside the square, on its cells' edges and outside") {
  auto const check = [](std::vector<float> const& points) {
    int const count = int(points.size() / 2);
    codec::nearest_in_plane const nearest(points.data(), count);
    random_numbers r(13);
    auto y = r.normals(200000, 1.5);
    for (std::size_t i = 0; i < 20000; ++i) y[i] = std::round(y[i] * 8) / 8;  // corners of cells
    for (int p = 0; p < count; ++p)                                           // halfway between two points: ties, or nearly
      for (int i = 0; i < 2; ++i) y.push_back((points[std::size_t(2 * p + i)] + points[std::size_t((2 * p + 14) % (2 * count) + i)]) / 2);
    for (float const x : {-4.0f, 4.0f, std::nextafter(4.0f, 0.0f), 1e6f, -1e6f}) y.insert(y.end(), {x, 0.3f, 0.3f, x, x, x});
    for (std::size_t i = 0; i < y.size(); i += 2) {
      float best = infinity;
      int expected = -1;
      for (int p = 0; p < count; ++p) {
        float const a = y[i] - points[std::size_t(2 * p)], b = y[i + 1] - points[std::size_t(2 * p + 1)];
        float const d = a * a + b * b;
        if (d < best) {
          best = d;
          expected = p;
        }
      }
      REQUIRE(int(nearest(y[i], y[i + 1])) == expected);
    }
  };
  using grid = codec::higgs_grid<2, 256>;
  check({grid::points, grid::points + 512});
  check({0, 0});
  std::vector<float> lattice;  // ties everywhere, two points at one place
  for (int i = 0; i < 64; ++i) lattice.insert(lattice.end(), {float(i % 8) - 3.5f, float(i / 8) - 3.5f});
  lattice.insert(lattice.end(), {0.5f, 0.5f});
  check(lattice);
}
