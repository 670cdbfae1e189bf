#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/codec/hadamard.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// The direction of a row: its runs of eight channels after a random rotation P, each as the nearest of 256 centroids on the sphere, a byte, which its signs
/// name. Nothing is learnt. P is a Walsh-Hadamard transform of random signs, over the largest power of two that divides the channels.
///
/// Bytes   C / 8 codes, no scales
/// Error   what is decoded has length 1, and every run the same
/// Source  ParisKV, Qi et al., arXiv:2602.07721, as its code has it (github.com/amy-77/ParisKV)
template <std::uint32_t SignSeed = 1>
struct sphere_centroids {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int run = 8, points = 256;

  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<float>; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / run, 0}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_channels : D];
      rotate_scaled(t, SignSeed, x.row(r), channels, y);
      for (int b = 0; b < channels / run; ++b) {
        unsigned centroid = 0;
        for (int i = 0; i < run; ++i) centroid |= unsigned(y[b * run + i] >= 0) << i;
        to.codes[r * to.code_stride + b] = std::byte(centroid);
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    float const unit = 1.0f / std::sqrt(float(channels) * float(rotation_width(channels)));
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float* const row = y.row(r);
      for (int c = 0; c < channels; ++c) row[c] = unsigned(from.codes[r * from.code_stride + c / run]) >> (c % run) & 1u ? unit : -unit;
      hadamard_transform(t, row, channels);
      for (int c = 0; c < channels; ++c) row[c] *= random_sign(SignSeed, c);
    }
  }

  /// The rotation of a query, but for a factor that all channels have in common. One member's work.
  template <int D, team Team>
  CELLAR_HD void rotate(Team const& t, float const* q, float* to) const {
    for (int c = 0; c < D; ++c) to[c] = q[c] * random_sign(SignSeed, c);
    hadamard_transform(t, to, D);
  }
  /// A run's centroids by falling product with that run of a rotated query, ties by the lowest. One member's work.
  ///
  /// Shapes      q [8], order [256]
  /// Complexity  those of one channel more are those so far with its sign either way: two ordered lists, which merge; 510 steps in all
  CELLAR_HD static void order_centroids(float const* q, std::uint8_t* order) {
    float products[points], merged[points];
    std::uint8_t ids[points];
    products[0] = 0;
    order[0] = 0;
    for (int i = 0; i < run; ++i) {
      int const n = 1 << i;
      bool const up = q[i] >= 0;
      float const size = up ? q[i] : -q[i];
      int a = 0, b = 0;  // of those with the sign that adds, and of the others
      for (int k = 0; k < 2 * n; ++k) {
        float const x = a < n ? products[a] + size : 0.0f, y = b < n ? products[b] - size : 0.0f;
        int const with = a < n ? order[a] | int(up) << i : 0, without = b < n ? order[b] | int(!up) << i : 0;
        bool const adds = b == n || (a < n && (x > y || (x == y && with < without)));
        merged[k] = adds ? x : y;
        ids[k] = std::uint8_t(adds ? with : without);
        (adds ? a : b) += 1;
      }
      for (int k = 0; k < 2 * n; ++k) {
        products[k] = merged[k];
        order[k] = ids[k];
      }
    }
  }
};
static_assert(row_codec<sphere_centroids<>>);

}  // namespace cellar::codec
