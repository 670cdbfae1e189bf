#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Maps keys to a few of their channels, those of the largest sum of squares over a prompt's keys; ties go to the lowest channel.
///
/// Template  Count: how many, as Count::of(channels) (codec::fixed_rank, codec::rank_share), made even and at least 2
/// State     [width] channels, and [head_dim] sums, per (layer, sequence, KV head)
/// Source    Double Sparsity, Yang et al., arXiv:2408.07092, whose channels are chosen offline
template <class Count>
struct label_channels {
  static constexpr bool adds_common = false;
  std::int32_t const* labels = nullptr;  // (mapped channel), by falling sum

  CELLAR_HD static constexpr i64 width(i64 channels) {
    i64 const n = round_up(Count::of(channels), 2);
    return n < 2 ? 2 : n < channels ? n : channels;
  }
  CELLAR_HD constexpr float largest(float most) const { return most; }
  CELLAR_HD i64 state_bytes(i64 channels) const { return width(channels) * i64(sizeof(std::int32_t)) + channels * i64(sizeof(float)); }
  CELLAR_HD label_channels bind(std::byte const* state) const { return {reinterpret_cast<std::int32_t const*>(state)}; }

  template <team Team, int D>
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64, std::byte* state) const {
    int const n = int(keys.columns()), taken = int(width(n));
    auto* const to = reinterpret_cast<std::int32_t*>(state);
    auto* const sums = reinterpret_cast<float*>(to + taken);
    for (int c = int(t.rank()); c < n; c += int(t.size())) {
      double s = 0;
      for (i64 r = 0; r < keys.rows; ++r) s += double(keys(r, c)) * double(keys(r, c));
      sums[c] = float(s);
    }
    t.sync();
    for (int c = int(t.rank()); c < n; c += int(t.size())) {
      std::uint32_t const mine = ordered_bits(sums[c]);
      int before = 0;
      for (int other = 0; other < n; ++other) before += ordered_bits(sums[other]) > mine || (ordered_bits(sums[other]) == mine && other < c);
      if (before < taken) to[before] = c;
    }
    t.sync();
  }

  template <int D>
  CELLAR_HD float of_key(float const* x, int i) const {
    return x[labels[i]];
  }
  template <int D>
  CELLAR_HD float of_query(float const* q, int i) const {
    return q[labels[i]];
  }
  template <int D>
  CELLAR_HD float common(float const*) const {
    return 0;
  }
};
// That it models key_map is asserted with counts, in schemes: a summary includes no codec.

}  // namespace cellar::summary
