#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/core/eigensolver.hpp"
#include "cellar/core/error.hpp"
#include "cellar/core/rotary.hpp"

namespace cellar::inline CELLAR_ABI::codec {

template <class E>
concept symmetric_eigensolver = cellar::symmetric_eigensolver<E>;  ///< As interop/lapack.hpp has one.

/// How many directions low_rank keeps: a number, or a share of the channels of all heads, rounded down, at least one.
template <int Rank>
struct fixed_rank {
  CELLAR_HD static constexpr i64 of(i64 channels) { return Rank < channels ? Rank : channels; }
};
template <int Numerator, int Denominator>
struct rank_share {
  CELLAR_HD static constexpr i64 of(i64 channels) { return channels * Numerator / Denominator > 0 ? channels * Numerator / Denominator : 1; }
};

/// The keys of all heads before rotary embedding as coefficients of their Rank leading directions: the truncated singular value decomposition of the
/// prompt's keys [tokens, heads * head_dim]. A head is rebuilt from its part of the basis and turned to its position.
///
/// Rows that come after the prompt are projected on its directions.
///
/// Template  Rank: fixed_rank, clipped to the number of channels, or rank_share; Scalar: of coefficients and basis
/// State     the basis, [Rank, heads * head_dim] Scalar, per (layer, sequence); fixed by train
/// Bytes     Rank * sizeof(Scalar) a token, for all heads
/// Error     that of the best approximation of that rank to the prompt's keys, and Scalar's rounding
/// Errors    std::runtime_error from train where the eigensolver fails
/// Complexity  train: O(tokens * channels^2) and the eigensolver; a row: O(Rank * channels)
/// Source    ShadowKV, Sun et al., arXiv:2410.21465 (rank 160). It has U S V of torch.svd; this is X V and V, the same product
template <class Rank, symmetric_eigensolver Eigensolver, storage_scalar Scalar = bf16>
struct low_rank : bound_head<scope::all_heads> {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::all_heads;
  static constexpr int token_group = 1;

  rotary embedding;
  Scalar const* basis = nullptr;  // (direction, channel)
  std::byte* scratch = nullptr;
  i64 position = 0;

  CELLAR_HD static constexpr i64 rank(i64 channels) { return Rank::of(channels); }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {rank(channels) * i64(sizeof(Scalar)), 0}; }
  /// A coefficient is at most the row's length: sqrt(4096) times its largest channel, twice that for the turn.
  CELLAR_HD constexpr float largest(i64) const { return (cellar::largest<Scalar> < 0x1p63f ? cellar::largest<Scalar> : 0x1p63f) / 128; }

  CELLAR_HD low_rank of_head(int h, int n) const {
    low_rank c = *this;
    c.head = h;
    c.heads = n;
    return c;
  }
  CELLAR_HD low_rank with(rotary const& r) const {
    low_rank c = *this;
    c.embedding = r;
    return c;
  }
  CELLAR_HD low_rank at(i64 first) const {
    low_rank c = *this;
    c.position = first;
    return c;
  }
  CELLAR_HD low_rank bind(std::byte const* state) const {
    low_rank c = *this;
    c.basis = reinterpret_cast<Scalar const*>(state);
    return c;
  }
  low_rank with_scratch(std::byte* bytes) const {
    low_rank c = *this;
    c.scratch = bytes;
    return c;
  }

  CELLAR_HD i64 state_bytes(i64 channels) const { return rank(channels) * channels * i64(sizeof(Scalar)); }
  i64 train_scratch_bytes(i64 channels) const { return leading_directions_doubles(channels, rank(channels)) * i64(sizeof(double)); }

  /// Sums the keys' second moments in double, and takes their leading eigenvectors: the right singular vectors of the keys.
  template <team Team, int D>
  void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    i64 const n = keys.columns(), directions = rank(n);
    double const* const vectors = leading_directions<Eigensolver, float>(
        t, keys.rows, n, directions, [&](i64 r, float* to) { turn_back(keys.row(r), n, first_position + r, to); }, reinterpret_cast<double*>(scratch));
    if (!vectors) cellar::detail::raise(std::runtime_error("codec::low_rank: the eigensolver failed on a prompt's keys"));
    auto* const to = reinterpret_cast<Scalar*>(state);
    for (i64 i = t.rank(); i < directions * n; i += t.size()) to[i] = from_float<Scalar>(float(vectors[i]));
    t.sync();
  }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    i64 const n = x.columns();
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float row[max_row_channels];
      turn_back(x.row(r), n, position + r, row);
      for (i64 i = 0; i < rank(n); ++i) {
        float s = 0;
        for (i64 c = 0; c < n; ++c) s += row[c] * to_float(basis[i * n + c]);
        cellar::detail::store(to.codes + r * to.code_stride + i * i64(sizeof(Scalar)), from_float<Scalar>(s));
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    i64 const channels = y.columns(), n = heads * channels;
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float* const out = y.row(r);
      for (i64 c = 0; c < channels; ++c) out[c] = 0;
      for (i64 i = 0; i < rank(n); ++i) {
        float const s = to_float(cellar::detail::load<Scalar>(from.codes + r * from.code_stride + i * i64(sizeof(Scalar))));
        Scalar const* const direction = basis + i * n + head * channels;
        for (i64 c = 0; c < channels; ++c) out[c] += s * to_float(direction[c]);
      }
      rotate(embedding, out, position + r, out, cellar::detail::kernels_of(t));
    }
  }

 private:
  CELLAR_HD void turn_back(float const* x, i64 n, i64 at, float* y) const {
    i64 const head_dim = 2 * embedding.inverse_frequencies.count;
    for (i64 first = 0; first < n; first += head_dim) rotate(embedding, x + first, -at, y + first);
  }
};

}  // namespace cellar::codec
