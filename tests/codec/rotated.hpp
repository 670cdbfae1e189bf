#pragma once
#include <bit>
#include <cmath>
#include <vector>

#include "cellar/codec/hadamard.hpp"

/// Row i of the rotation of random signs, times x, in double: blocks of the largest power of two that divides the channels.
template <std::uint32_t Seed>
double rotated(std::vector<float> const& x, std::size_t i) {
  std::size_t const width = x.size() & (~x.size() + 1), first = i / width * width;
  double y = 0;
  for (std::size_t c = first; c < first + width; ++c)
    y += (std::popcount(unsigned((i - first) & (c - first))) % 2 ? -1 : 1) * double(cellar::codec::random_sign(Seed, int(c))) * double(x[c]);
  return y / std::sqrt(double(width));
}
/// Channel c of what the rotation turns back.
template <std::uint32_t Seed>
double rotated_back(std::vector<double> const& y, std::size_t c) {
  std::size_t const width = y.size() & (~y.size() + 1);
  double x = 0;
  for (std::size_t i = c / width * width; i < c / width * width + width; ++i) x += (std::popcount(unsigned(i % width & c % width)) % 2 ? -1 : 1) * y[i];
  return x * double(cellar::codec::random_sign(Seed, int(c))) / std::sqrt(double(width));
}
