#pragma once
#include <algorithm>
#include <array>
#include <vector>

#include "cellar/core/math.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// The nearest of a grid's points in the plane: a square is cut into cells, and each knows the few points that are nearest to some place in it. On the host.
///
/// The point found is that of a search among all: the least squared distance in f32, ties to the lowest. Allocates at construction
class nearest_in_plane {
 public:
  /// Shapes  points [count][2]; must outlive this. Requires 1 to 256 points
  nearest_in_plane(float const* points, int count) : points_(points), count_(count) {
    auto const distances = [](double from, double to, double x) {  // least and largest of an interval's numbers to x
      return std::array<double, 2>{x < from ? from - x : x > to ? x - to : 0, std::max(std::abs(from - x), std::abs(to - x))};
    };
    std::vector<double> least(std::size_t(count), 0.0);
    for (int cell = 0; cell < side * side; ++cell) {
      double const u = -half_width + cell / side * width, v = -half_width + cell % side * width;
      double bound = 1e300;  // whatever lies in the cell, some point is no farther
      for (int p = 0; p < count; ++p) {
        auto const a = distances(u, u + width, double(points[2 * p])), b = distances(v, v + width, double(points[2 * p + 1]));
        least[std::size_t(p)] = a[0] * a[0] + b[0] * b[0];
        bound = std::min(bound, a[1] * a[1] + b[1] * b[1]);
      }
      first_[std::size_t(cell)] = std::uint32_t(candidates_.size() / 4);
      for (int p = 0; p < count; ++p)
        if (least[std::size_t(p)] <= bound * (1 + 1e-5) + 1e-5) candidates_.push_back(std::uint8_t(p));  // a margin for f32
      while (candidates_.size() % 4 != 0) candidates_.push_back(candidates_.back());
    }
    first_.back() = std::uint32_t(candidates_.size() / 4);
  }

  /// The index of the point nearest to (x, y). Complexity: a few distances; of all points outside the square, 4 to each side
  std::uint8_t operator()(float x, float y) const {
    float const u = (x + float(half_width)) * float(1 / width), v = (y + float(half_width)) * float(1 / width);
    if (!(u >= 0 && u < side && v >= 0 && v < side)) return nearest_of_all(x, y);
    auto const cell = std::size_t(int(u) * side + int(v));
    float best = infinity;
    int found = 0;
    std::uint32_t group = first_[cell];
    do {  // nearly always once
      for (int i = 0; i < 4; ++i) take_nearer(x, y, candidates_[group * 4 + std::size_t(i)], best, found);
    } while (++group < first_[cell + 1]);
    return std::uint8_t(found);
  }

 private:
  static constexpr int side = 64;
  static constexpr double half_width = 4, width = 2 * half_width / side;

  void take_nearer(float x, float y, int p, float& best, int& found) const {
    float const a = x - points_[2 * p], b = y - points_[2 * p + 1];
    float const d = a * a + b * b;
    found = d < best ? p : found;
    best = d < best ? d : best;
  }
  std::uint8_t nearest_of_all(float x, float y) const {
    float best = infinity;
    int found = 0;
    for (int p = 0; p < count_; ++p) take_nearer(x, y, p, best, found);
    return std::uint8_t(found);
  }

  float const* points_;
  int count_;
  std::array<std::uint32_t, side * side + 1> first_{};  // of each cell's candidates, in groups of four
  std::vector<std::uint8_t> candidates_;                // ascending in each cell, the last one repeated to fill a group
};

}  // namespace cellar::codec
