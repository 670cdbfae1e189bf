#pragma once
#include <cstdint>
#include <random>
#include <vector>

#include "cellar/core/view.hpp"

/// Inputs for tests: normal numbers, the same in every run of a program.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : engine_(seed) {}

  float normal() { return distribution_(engine_); }
  std::int64_t below(std::int64_t n) { return std::int64_t(engine_() % std::uint64_t(n)); }
  std::vector<float> normals(std::int64_t n, float scale = 1) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& y : x) y = scale * normal();
    return x;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> distribution_;
};

/// A matrix over a vector of rows of D.
template <int D>
cellar::matrix_view<float const, D> rows_of(std::vector<float> const& x) {
  return {x.data(), std::int64_t(x.size()) / D};
}
template <int D>
cellar::matrix_view<float, D> rows_of(std::vector<float>& x) {
  return {x.data(), std::int64_t(x.size()) / D};
}
