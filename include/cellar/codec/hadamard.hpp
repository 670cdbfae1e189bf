#pragma once
#include <bit>

#include "cellar/core/vector.hpp"

namespace cellar::inline CELLAR_ABI::codec {

inline constexpr int max_channels = 576;  ///< Of the widest head.

/// Width of the rotation of `channels` channels: the largest power of two that divides them.
CELLAR_HD constexpr int rotation_width(i64 channels) { return int(channels & -channels); }

/// Applies the unnormalised Walsh-Hadamard transform to each run of rotation_width(channels) channels, in place. Its square is width * identity.
/// One member's work.
template <team Team>
CELLAR_HD void hadamard_transform(Team const& t, float* x, int channels) {
  int const width = rotation_width(channels);
  for (int base = 0; base < channels; base += width) hadamard(t, x + base, width);
}

/// hadamard_transform of every row, by all members: a barrier before, between its stages and after.
template <team Team, int D>
CELLAR_HD void hadamard_rows(Team& t, matrix_view<float, D> x) {
  int const channels = int(x.columns()), width = rotation_width(channels), pairs = channels / 2;
  if constexpr (std::is_same_v<Team, serial_team>) {
    for (i64 r = 0; r < x.rows; ++r) hadamard_transform(t, x.row(r), channels);
  } else {
    t.sync();
    for (int half = 1; half < width; half *= 2) {
      for (i64 i = t.rank(); i < x.rows * pairs; i += t.size()) {
        int const pair = int(i % pairs), at = pair / half * 2 * half + pair % half;
        float* const row = x.row(i / pairs);
        float const a = row[at], b = row[at + half];
        row[at] = a + b;
        row[at + half] = a - b;
      }
      t.sync();
    }
  }
}

/// The sign of channel i under a seed: +1 or -1, the same on every machine. Seed 0 means no signs.
CELLAR_HD constexpr float random_sign(std::uint32_t seed, int i) {
  if (seed == 0) return 1;
  return random_bits(seed, std::uint32_t(i)) & 1u ? -1.0f : 1.0f;
}

/// y = hadamard_transform of x times random signs, scaled to a largest magnitude of 1 first, so that no square of it overflows or vanishes. One member's work.
///
/// Shapes   x, y [channels]
/// Returns  that magnitude: 0 for a zero row, whose y is zero
template <team Team>
CELLAR_HD float rotate_scaled(Team const& t, std::uint32_t seed, float const* x, int channels, float* y) {
  float const most = largest_magnitude(t, x, channels);
  for (int c = 0; c < channels; ++c) y[c] = most > 0 ? x[c] / most * random_sign(seed, c) : 0.0f;
  hadamard_transform(t, y, channels);
  return most;
}

}  // namespace cellar::codec
