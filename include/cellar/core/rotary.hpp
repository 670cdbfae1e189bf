#pragma once
#include "cellar/core/types.hpp"
#include "cellar/core/vector.hpp"

namespace cellar::inline CELLAR_ABI {

/// Positions are taken apart as turn_run * a + b for rotary::turns: the turn to a position is one product of two table entries.
inline constexpr i64 turn_run = 64;

/// Numbers of the table of turns to the positions [0, positions): (turn_run + ceil(positions / turn_run)) * head_dim.
CELLAR_HD inline i64 turn_floats(rotary const& r, i64 positions) { return (turn_run + ceil_div(positions, turn_run)) * 2 * r.inverse_frequencies.count; }

/// Fills the table that rotary::turns may view: cosines [pair], then sines [pair], of the positions 0 .. turn_run - 1, then of 0, turn_run, 2 * turn_run, ...
///
/// Shapes      to [turn_floats(r, positions)]
/// Complexity  a cosine and a sine for each pair of numbers, of angles in double
inline void fill_turns(rotary const& r, i64 positions, float* to) {
  i64 const half = r.inverse_frequencies.count, entries = turn_floats(r, positions) / (2 * half);
  for (i64 e = 0; e < entries; ++e)
    for (i64 i = 0; i < half; ++i) {
      double const angle = double(e < turn_run ? e : (e - turn_run) * turn_run) * r.inverse_frequencies[i];
      to[e * 2 * half + i] = float(std::cos(angle));
      to[(e * 2 + 1) * half + i] = float(std::sin(angle));
    }
}

/// Cosine and sine of the turn of pair i to a position, within 2e-7: from the table where it reaches there, else of an angle in double.
CELLAR_HD inline void turn_of(rotary const& r, i64 i, i64 position, float& cosine, float& sine) {
  i64 const half = r.inverse_frequencies.count, p = position < 0 ? -position : position, coarse = turn_run + p / turn_run;
  if ((coarse + 1) * 2 * half <= r.turns.count) {
    float const *const f = r.turns.data + p % turn_run * 2 * half + i, *const c = r.turns.data + coarse * 2 * half + i;
    cosine = f[0] * c[0] - f[half] * c[half];
    sine = f[half] * c[0] + f[0] * c[half];
    if (position < 0) sine = -sine;
  } else {
    double const angle = double(position) * r.inverse_frequencies[i];
    cosine = float(std::cos(angle));
    sine = float(std::sin(angle));
  }
}

/// y = x turned to `position`: pair i by position * inverse_frequencies[i]. A negative position turns back. x and y may be the same.
///
/// Lengths stay as they are: keys that carry a magnitude (YaRN, core/rotary_scaling.hpp) keep it at every position.
///
/// Shapes      x, y [head_dim]
/// Complexity  head_dim / 2 sines and cosines, or products where rotary::turns reaches the position
CELLAR_HD inline void rotate(rotary const& r, float const* x, i64 position, float* y, [[maybe_unused]] vector_kernels const* kernels = nullptr) {
  i64 const half = r.inverse_frequencies.count, p = position < 0 ? -position : position, coarse = turn_run + p / turn_run;
  if constexpr (!is_device_pass)
    if (kernels && r.pairing == rotary_pairing::half_split && half % 8 == 0 && (coarse + 1) * 2 * half <= r.turns.count)
      return kernels->turn(x, half, r.turns.data + p % turn_run * 2 * half, r.turns.data + coarse * 2 * half, position < 0, y);
  for (i64 i = 0; i < half; ++i) {
    float c = 1, s = 0;
    turn_of(r, i, position, c, s);
    i64 const first = r.pairing == rotary_pairing::adjacent ? 2 * i : i;
    i64 const second = r.pairing == rotary_pairing::adjacent ? 2 * i + 1 : i + half;
    float const a = x[first], b = x[second];
    y[first] = a * c - b * s;
    y[second] = a * s + b * c;
  }
}

}  // namespace cellar
