#pragma once
#include "cellar/core/eigensolver.hpp"
#include "cellar/core/error.hpp"
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Maps keys as attended to their leading coordinates in the axes of largest variance over a prompt's keys.
///
/// Template    Rank: how many, as Rank::of(channels) (codec::fixed_rank, codec::rank_share), made even
/// State       [width, head_dim] f32, per (layer, sequence, KV head)
/// Errors      std::runtime_error from train where the eigensolver fails
/// Complexity  train: O(tokens * head_dim^2) and the eigensolver, on the host; a row: O(width * head_dim)
/// Source      Loki, Singhania et al., arXiv:2406.02542, whose axes are of a calibration set
template <class Rank, symmetric_eigensolver Eigensolver>
struct principal_axes {
  static constexpr bool adds_common = false;
  float const* axes = nullptr;  // (mapped channel, channel)
  std::byte* scratch = nullptr;

  CELLAR_HD static constexpr i64 width(i64 channels) {
    i64 const n = round_up(Rank::of(channels), 2);
    return n < channels ? n : channels;
  }
  /// A coordinate is at most the row's length: sqrt(576) times its largest channel.
  CELLAR_HD constexpr float largest(float most) const { return most / 24; }
  CELLAR_HD i64 state_bytes(i64 channels) const { return width(channels) * channels * i64(sizeof(float)); }
  CELLAR_HD principal_axes bind(std::byte const* state) const { return {reinterpret_cast<float const*>(state), scratch}; }
  principal_axes with_scratch(std::byte* bytes) const { return {axes, bytes}; }
  i64 train_scratch_bytes(i64 channels) const { return (leading_directions_doubles(channels, width(channels)) + channels) * i64(sizeof(double)); }

  template <team Team, int D>
  void train(Team& t, matrix_view<float const, D> keys, i64, std::byte* state) const {
    i64 const n = keys.columns(), taken = width(n);
    auto* const mean = reinterpret_cast<double*>(scratch);  // (channel)
    for (i64 c = t.rank(); c < n; c += t.size()) {
      double s = 0;
      for (i64 r = 0; r < keys.rows; ++r) s += double(keys(r, c));
      mean[c] = keys.rows > 0 ? s / double(keys.rows) : 0;
    }
    double const* const vectors = leading_directions<Eigensolver, double>(
        t, keys.rows, n, taken,
        [&](i64 r, double* to) {
          for (i64 c = 0; c < n; ++c) to[c] = double(keys(r, c)) - mean[c];
        },
        mean + n);
    if (!vectors) cellar::detail::raise(std::runtime_error("summary::principal_axes: the eigensolver failed on a prompt's keys"));
    for (i64 i = t.rank(); i < taken * n; i += t.size()) reinterpret_cast<float*>(state)[i] = float(vectors[i]);
    t.sync();
  }

  template <int D>
  CELLAR_HD float of_key(float const* x, int i) const {
    float s = 0;
    for (int c = 0; c < D; ++c) s += x[c] * axes[i * D + c];
    return s;
  }
  template <int D>
  CELLAR_HD float of_query(float const* q, int i) const {
    return of_key<D>(q, i);
  }
  template <int D>
  CELLAR_HD float common(float const*) const {
    return 0;
  }
};
// That it models key_map is asserted with an eigensolver, in tests.

}  // namespace cellar::summary
