#pragma once
#include <algorithm>
#include <array>

#include "cellar/core/math.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// The nearest of a grid's points in the plane: a square is cut into cells, and each knows the few points that are nearest to some place in it. On the host.
///
/// The point found is that of a search among all: the least squared distance in f32, ties to the lowest. 33 KiB
class nearest_in_plane {
 public:
  /// Shapes      points [count][2]; must outlive this. Requires 1 to 256 points
  /// Complexity  two million comparisons for 256 points
  nearest_in_plane(float const* points, int count) : points_(points), count_(count) {
    struct squares {
      float least, largest;  // of an interval's numbers to a coordinate
    };
    std::array<std::array<squares, 256>, 2> to{};  // of a row of cells by the first coordinate, of a cell by the second one
    auto const measure = [&](int side_at, int coordinate) {
      double const from = -half_width + side_at * width, until = from + width;
      for (int p = 0; p < count_; ++p) {
        double const x = double(points_[2 * p + coordinate]),
                     least = x < from    ? from - x
                             : x > until ? x - until
                                         : 0,
                     most = std::max(std::abs(from - x), std::abs(until - x));
        to[std::size_t(coordinate)][std::size_t(p)] = {float(least * least), float(most * most)};
      }
    };
    std::size_t group = 0;
    for (int cell = 0; cell < side * side; ++cell) {
      if (cell % side == 0) measure(cell / side, 0);
      measure(cell % side, 1);
      float bound = infinity;  // whatever lies in the cell, some point is no farther
      for (std::size_t p = 0; p < std::size_t(count_); ++p) bound = std::min(bound, to[0][p].largest + to[1][p].largest);
      first_[std::size_t(cell)] = std::uint16_t(group);
      std::array<std::uint8_t, 256> near{};
      std::size_t n = 0;
      for (std::size_t p = 0; p < std::size_t(count_); ++p)
        if (to[0][p].least + to[1][p].least <= bound * (1 + 1e-5f) + 1e-5f) near[n++] = std::uint8_t(p);  // a margin for f32
      if (group + (n + 3) / 4 > most_groups) continue;                                                    // no room: this cell searches all
      for (std::size_t k = 0; k < (n + 3) / 4 * 4; ++k) candidates_[group * 4 + k] = near[std::min(k, n - 1)];
      group += (n + 3) / 4;
    }
    first_.back() = std::uint16_t(group);
  }

  /// The index of the point nearest to (x, y). Complexity: a few distances; of all points outside the square, 4 to each side
  std::uint8_t operator()(float x, float y) const {
    float const u = (x + float(half_width)) * float(1 / width), v = (y + float(half_width)) * float(1 / width);
    if (!(u >= 0 && u < side && v >= 0 && v < side)) return nearest_of_all(x, y);
    auto const cell = std::size_t(int(u) * side + int(v));
    float best = infinity;
    int found = 0;
    std::size_t group = first_[cell];
    if (group == first_[cell + 1]) return nearest_of_all(x, y);
    do {  // nearly always once
      for (std::size_t i = 0; i < 4; ++i) take_nearer(x, y, candidates_[group * 4 + i], best, found);
    } while (++group < first_[cell + 1]);
    return std::uint8_t(found);
  }

 private:
  static constexpr int side = 64;
  static constexpr std::size_t most_groups = 6144;  // 4113 for the grid of 256 points
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
  std::array<std::uint16_t, side * side + 1> first_{};      // of each cell's candidates, in groups of four
  std::array<std::uint8_t, most_groups * 4> candidates_{};  // ascending in each cell, the last one repeated to fill a group
};

}  // namespace cellar::codec
