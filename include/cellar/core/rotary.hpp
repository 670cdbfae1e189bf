#pragma once
#include "cellar/core/types.hpp"

namespace cellar::inline CELLAR_ABI {

/// y = x turned to `position`: pair i by position * inverse_frequencies[i]. A negative position turns back. x and y may be the same.
///
/// Shapes      x, y [head_dim]
/// Complexity  head_dim / 2 sines and cosines, of angles in double: exact to f32 at any position
CELLAR_HD inline void rotate(rotary const& r, float const* x, double position, float* y) {
  i64 const half = r.inverse_frequencies.count;
  for (i64 i = 0; i < half; ++i) {
    double const angle = position * r.inverse_frequencies[i];
    float const c = float(std::cos(angle)), s = float(std::sin(angle));
    i64 const first = r.pairing == rotary_pairing::adjacent ? 2 * i : i;
    i64 const second = r.pairing == rotary_pairing::adjacent ? 2 * i + 1 : i + half;
    float const a = x[first], b = x[second];
    y[first] = a * c - b * s;
    y[second] = a * s + b * c;
  }
}

}  // namespace cellar
