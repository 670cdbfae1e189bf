// Computes the grids of codec::higgs, points that are optimal for the normal distribution, and writes them as a header:
//
//   train_higgs_grid include/cellar/codec/higgs_grids.hpp
//
// Lloyd's algorithm on four million normal vectors, checked on as many independent ones.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numbers>
#include <random>
#include <vector>

#include "cellar/host/thread_pool.hpp"

namespace {

constexpr int samples = 4'000'000, chunk = 4000, iterations = 400;

/// Standard normal numbers by Box and Muller's transform: the same on every machine, unlike std::normal_distribution.
std::vector<float> normal_numbers(std::uint64_t seed, std::size_t count) {
  std::mt19937_64 bits(seed);
  auto const uniform = [&] { return (double(bits() >> 11) + 0.5) * 0x1p-53; };
  std::vector<float> x(count);
  for (std::size_t i = 0; i + 1 < count; i += 2) {
    double const radius = std::sqrt(-2 * std::log(uniform())), angle = 2 * std::numbers::pi * uniform();
    x[i] = float(radius * std::cos(angle));
    x[i + 1] = float(radius * std::sin(angle));
  }
  return x;
}

template <int Dimension, int Points>
class grid {
 public:
  explicit grid(std::vector<float> const& first) : points_(first.begin(), first.begin() + Points * Dimension) {}

  /// Mean squared error a channel. Unless `fixed`, every point then moves to the mean of the samples that are nearest to it.
  double pass(std::vector<float> const& x, cellar::host::thread_pool& pool, bool fixed) {
    struct sums {
      std::array<double, Points * Dimension> of{};
      std::array<std::int64_t, Points> count{};
      double error = 0;
    };
    // One sum a chunk, added in order: the result does not depend on the threads.
    std::vector<sums> parts(samples / chunk);
    std::array<float, Points * Dimension> by_coordinate;
    for (int p = 0; p < Points; ++p)
      for (int i = 0; i < Dimension; ++i) by_coordinate[std::size_t(i * Points + p)] = points_[std::size_t(p * Dimension + i)];
    pool.run(samples / chunk, [&](std::int64_t part, int) {
      sums& s = parts[std::size_t(part)];
      for (std::int64_t n = part * chunk; n < (part + 1) * chunk; ++n) {
        float const* const y = x.data() + n * Dimension;
        float distance[Points] = {};
        for (int i = 0; i < Dimension; ++i)
          for (int p = 0; p < Points; ++p) {
            float const e = y[i] - by_coordinate[std::size_t(i * Points + p)];
            distance[p] += e * e;
          }
        std::uint32_t best = ~0u;  // the bits of numbers that are not negative compare as integers
        for (int p = 0; p < Points; ++p) best = std::min(best, cellar::bit_cast<std::uint32_t>(distance[p]));
        int nearest = 0;
        while (cellar::bit_cast<std::uint32_t>(distance[nearest]) != best) ++nearest;
        s.error += double(distance[nearest]);
        ++s.count[std::size_t(nearest)];
        for (int i = 0; i < Dimension; ++i) s.of[std::size_t(nearest * Dimension + i)] += double(y[i]);
      }
    });
    sums total;
    for (sums const& s : parts) {
      total.error += s.error;
      for (std::size_t i = 0; i < s.of.size(); ++i) total.of[i] += s.of[i];
      for (std::size_t p = 0; p < Points; ++p) total.count[p] += s.count[p];
    }
    if (!fixed)
      for (int p = 0; p < Points; ++p)
        for (int i = 0; i < Dimension; ++i) {
          auto const at = std::size_t(p * Dimension + i);
          if (total.count[std::size_t(p)] > 0) points_[at] = float(total.of[at] / double(total.count[std::size_t(p)]));
        }
    return total.error / double(samples) / Dimension;
  }

  std::vector<float> const& points() const { return points_; }

 private:
  std::vector<float> points_;  // (point, coordinate)
};

template <int Dimension, int Points>
void write(std::FILE* to, cellar::host::thread_pool& pool) {
  auto const count = std::size_t(samples) * Dimension;
  std::vector<float> const training = normal_numbers(Dimension * 1000 + Points, count), independent = normal_numbers(Dimension * 1000 + Points + 1, count);
  grid<Dimension, Points> g(training);
  double error = 0;
  for (int i = 0; i < iterations; ++i) {
    error = g.pass(training, pool, false);
    std::fprintf(stderr, "\rgrid (%d, %d): iteration %d of %d, error %.6f ", Dimension, Points, i + 1, iterations, error);
  }
  double const checked = g.pass(independent, pool, true);
  std::fprintf(stderr, "\rgrid (%d, %d): mean squared error a channel %.6f on the training sample, %.6f on an independent one\n", Dimension, Points, error,
               checked);
  std::fprintf(
      to, "/// Mean squared error a channel on an independent sample: %.5f.\ntemplate <>\nstruct higgs_grid<%d, %d> {\n  static constexpr float points[] = {",
      checked, Dimension, Points);
  for (std::size_t i = 0; i < g.points().size(); ++i) std::fprintf(to, "%s%.6ff,", i % 12 == 0 ? "\n      " : " ", double(g.points()[i]));
  std::fprintf(to, "\n  };\n};\n\n");
}

}  // namespace

int main(int count, char** arguments) {
  std::FILE* const to = count == 2 ? std::fopen(arguments[1], "w") : nullptr;
  if (!to) {
    std::fprintf(stderr, "usage: train_higgs_grid HEADER (the file to write)\n");
    return 2;
  }
  std::fprintf(to,
               "#pragma once\n\nnamespace cellar::codec {\n\n"
               "/// Points that are optimal for normal vectors, [Points][Dimension]. Computed by examples/train_higgs_grid.cpp.\n"
               "template <int Dimension, int Points>\nstruct higgs_grid;\n\n// clang-format off\n");
  cellar::host::thread_pool pool;
  write<4, 256>(to, pool);
  write<2, 16>(to, pool);
  write<2, 256>(to, pool);
  std::fprintf(to, "// clang-format on\n\n}  // namespace cellar::codec\n");
  return std::fclose(to) == 0 ? 0 : 1;
}
