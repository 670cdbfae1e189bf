#pragma once
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "cellar/summary/hash_tables.hpp"

/// What summary::hash_tables promises, by its definition in double.
namespace hashes {

/// s_0 and s_1 have signs, the others zeros too.
template <std::uint32_t Seed>
double factor(int turn, int width, int channel) {
  std::uint32_t const x = cellar::random_bits(Seed, std::uint32_t(turn * width + channel));
  return turn >= 2 && (x & 2u) ? 0 : x & 1u ? -1 : 1;
}

/// All projections of a row: of bit k of table l at [k * tables + l], and the largest |x| that one could have.
template <int K, int L, std::uint32_t Seed = 1>
std::vector<double> projections(std::vector<double> x) {
  int width = 64;
  while (width < int(x.size())) width *= 2;
  x.resize(std::size_t(width));
  auto const transformed = [&](std::vector<double> const& from, int turn) {
    std::vector<double> to(std::size_t(width), 0.0);
    for (int i = 0; i < width; ++i)
      for (int c = 0; c < width; ++c)
        to[std::size_t(i)] += (std::popcount(unsigned(i & c)) % 2 ? -1 : 1) * factor<Seed>(turn, width, c) * from[std::size_t(c)] / std::sqrt(double(width));
    return to;
  };
  x = transformed(transformed(x, 0), 1);
  int const words = (L + 31) / 32, shares = (words * 32 + width - 1) / width, run = (words + shares - 1) / shares * 32;  // tables of a share
  std::vector<double> all(std::size_t(K * L));
  for (int k = 0; k < K; ++k)
    for (int share = 0; share < shares; ++share) {
      auto const z = transformed(x, 2 + k * shares + share);
      for (int i = 0; i < run && share * run + i < L; ++i) all[std::size_t(k * L + share * run + i)] = z[std::size_t(i)];
    }
  return all;
}

/// Tables of two rows' projections that collide; a projection within `slack` of 0 may have either sign, so from `least` to `most`.
struct collisions {
  int least = 0, most = 0;
};
template <int K, int L>
collisions collide(std::vector<double> const& a, std::vector<double> const& b, double a_slack, double b_slack) {
  collisions n;
  for (int l = 0; l < L; ++l) {
    bool surely = true, maybe = true;
    for (int k = 0; k < K; ++k) {
      double const x = a[std::size_t(k * L + l)], y = b[std::size_t(k * L + l)];
      bool const is_clear = std::abs(x) > a_slack && std::abs(y) > b_slack, agrees = (x > 0) == (y > 0);
      surely &= is_clear && agrees;
      maybe &= !is_clear || agrees;
    }
    n.least += surely;
    n.most += maybe;
  }
  return n;
}

/// log of the chance that two tables or more collide, as the sum over how many do.
inline double log_chance(int k, int l, double cosine) {
  long double const p = std::max(1 - std::acos(std::clamp((long double)cosine, -1.0L, 1.0L)) / std::numbers::pi_v<long double>, 0x1p-13L);
  long double const log_all = k * std::log(p), log_not = std::log(-std::expm1(log_all));
  if (k == 0) return 0;
  std::vector<long double> terms;
  for (int j = 2; j <= l; ++j)
    terms.push_back(std::lgamma(l + 1.0L) - std::lgamma(j + 1.0L) - std::lgamma(l - j + 1.0L) + j * log_all + (l == j ? 0 : (l - j) * log_not));
  long double top = -1e4000L, sum = 0;
  for (auto const x : terms) top = std::max(top, x);
  for (auto const x : terms) sum += std::exp(x - top);
  return double(top + std::log(sum));
}

}  // namespace hashes
