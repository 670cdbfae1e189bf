#pragma once
#include <bit>
#include <cmath>
#include <vector>

#include "catch.hpp"
#include "cellar/codec/higgs.hpp"

/// The rotation from its definition: an explicit matrix of signs, entry (i, j) = (-1)^popcount(i & j), in double.
inline std::vector<double> rotated(std::vector<double> const& x) {
  std::size_t const width = std::size_t(cellar::codec::rotation_width(std::int64_t(x.size())));
  std::vector<double> y(x.size(), 0.0);
  for (std::size_t base = 0; base < x.size(); base += width)
    for (std::size_t i = 0; i < width; ++i)
      for (std::size_t j = 0; j < width; ++j) y[base + i] += (std::popcount(i & j) % 2 ? -1.0 : 1.0) * x[base + j] / std::sqrt(double(width));
  return y;
}

/// What HIGGS codes must be and stand for, in double.
template <int Dimension, int Points, std::uint32_t Seed>
struct higgs_oracle {
  using grid = cellar::codec::higgs_grid<Dimension, Points>;

  static int code(std::byte const* codes, int sub) {
    int const byte = int(codes[Points == 16 ? sub / 2 : sub]);
    return Points == 16 ? byte >> (4 * (sub % 2)) & 15 : byte;
  }
  /// What stored bytes stand for.
  static std::vector<double> decode(std::byte const* codes, double scale, int channels) {
    std::vector<double> y;
    for (int sub = 0; sub < channels / Dimension; ++sub)
      for (int c = 0; c < Dimension; ++c) y.push_back(double(grid::points[code(codes, sub) * Dimension + c]) * scale / std::sqrt(double(channels)));
    auto x = rotated(y);  // the rotation is its own inverse
    for (int c = 0; c < channels; ++c) x[std::size_t(c)] *= double(cellar::codec::random_sign(Seed, c));
    return x;
  }
  /// Each code is a nearest point, but for rounding.
  static void check_codes(std::vector<float> const& x, std::byte const* codes, double scale) {
    int const channels = int(x.size());
    std::vector<double> y;
    for (int c = 0; c < channels; ++c)
      y.push_back(double(x[std::size_t(c)]) * double(cellar::codec::random_sign(Seed, c)) * std::sqrt(double(channels)) / scale);
    y = rotated(y);
    for (int sub = 0; sub < channels / Dimension; ++sub) {
      auto const distance = [&](int point) {
        double d = 0;
        for (int c = 0; c < Dimension; ++c) d += std::pow(y[std::size_t(sub * Dimension + c)] - double(grid::points[point * Dimension + c]), 2);
        return d;
      };
      double best = 1e30;
      for (int p = 0; p < Points; ++p) best = std::min(best, distance(p));
      REQUIRE(distance(code(codes, sub)) <= best + 1e-4);
    }
  }
};
