#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Maps keys and queries to Rank coordinates, whose products stand for q . k: the factors of a joint decomposition of a prompt's keys K and queries Q,
///
///     minimise |K - A_K B_K|^2 + |Q - A_Q B_Q|^2 + |Q K^T - A_Q A_K^T|^2     A_K = K M_K, A_Q = Q M_Q
///
/// by alternating least squares. Both A are linear in their rows for given B, so all of it is done on second moments, [head_dim, head_dim].
///
/// Template    Rank: how many, as Rank::of(channels) (codec::fixed_rank, codec::rank_share), made even; Iterations: of both factors, from the channels of most
///             product of second moments
/// State       M_K and M_Q, [2, width, head_dim] f32, per (layer, sequence, KV head); fixed by a prompt
/// Complexity  train_with: O((tokens + queries) * head_dim^2 + Iterations * head_dim^2 * Rank), on the host; a row: O(Rank * head_dim)
/// Source      LRQK, Li et al., arXiv:2510.23649, which starts from random factors and solves for a step's coordinates over the tokens chosen before
template <class Rank, int Iterations = 8>
struct joint_factors {
  static constexpr bool adds_common = false;
  float const* maps = nullptr;  // (M_K or M_Q, mapped channel, channel)
  std::byte* scratch = nullptr;

  CELLAR_HD static constexpr i64 width(i64 channels) {
    i64 const n = round_up(Rank::of(channels), 2);
    return n < channels ? n : channels;
  }
  /// M_K's rows are of length 1 at most, so a coordinate is at most the key's length: sqrt(576) times its largest channel.
  CELLAR_HD constexpr float largest(float most) const { return (most < 0x1p60f ? most : 0x1p60f) / 24; }
  CELLAR_HD i64 state_bytes(i64 channels) const { return 2 * width(channels) * channels * i64(sizeof(float)); }
  CELLAR_HD joint_factors bind(std::byte const* state) const { return {reinterpret_cast<float const*>(state), scratch}; }
  joint_factors with_scratch(std::byte* bytes) const { return {maps, bytes}; }
  i64 train_scratch_bytes(i64 channels) const {
    i64 const n = channels, w = width(channels);
    return (2 * n * n + 4 * n * w + 2 * w * w) * i64(sizeof(double));
  }

  template <team Team, int D>
  void train_with(Team& t, matrix_view<float const, D> keys, matrix_view<float const, D> queries, std::byte* state) const {
    i64 const n = keys.columns(), w = width(n);
    if (t.rank() == 0) {
      auto* const moments_k = reinterpret_cast<double*>(scratch);
      double *const moments_q = moments_k + n * n, *const map_k = moments_q + n * n, *const map_q = map_k + w * n;  // maps (mapped channel, channel)
      double *const basis = map_q + w * n, *const product = basis + w * n, *const normal = product + w * n, *const factor = normal + w * w;
      second_moments(keys, n, moments_k);
      second_moments(queries, n, moments_q);
      start(moments_k, moments_q, n, w, map_k, map_q);
      for (int turn = 0; turn < Iterations; ++turn) {
        improve(moments_k, moments_q, map_k, map_q, n, w, basis, product, normal, factor);
        improve(moments_q, moments_k, map_q, map_k, n, w, basis, product, normal, factor);
      }
      auto* const to = reinterpret_cast<float*>(state);
      for (i64 i = 0; i < w; ++i) {
        double square = 0;
        for (i64 c = 0; c < n; ++c) square += map_k[i * n + c] * map_k[i * n + c];
        double const length = std::sqrt(square);
        for (i64 c = 0; c < n; ++c) {
          to[i * n + c] = length > 0 ? float(map_k[i * n + c] / length) : 0.0f;
          to[(w + i) * n + c] = float(map_q[i * n + c] * length);
        }
      }
    }
    t.sync();
  }

  template <int D>
  CELLAR_HD float of_key(float const* x, int i) const {
    return row<D>(x, i);
  }
  template <int D>
  CELLAR_HD float of_query(float const* q, int i) const {
    return row<D>(q, int(width(D)) + i);
  }
  template <int D>
  CELLAR_HD float common(float const*) const {
    return 0;
  }

 private:
  template <int D>
  CELLAR_HD float row(float const* x, int i) const {
    float s = 0;
    for (int c = 0; c < D; ++c) s += x[c] * maps[i * D + c];
    return s;
  }
  /// The sum of x x^T over the rows.
  template <int D>
  static void second_moments(matrix_view<float const, D> x, i64 n, double* to) {
    for (i64 i = 0; i < n * n; ++i) to[i] = 0;
    for (i64 r = 0; r < x.rows; ++r)
      for (i64 i = 0; i < n; ++i) {
        double const a = double(x(r, i));
        for (i64 j = 0; j <= i; ++j) to[i * n + j] += a * double(x(r, j));
      }
    for (i64 i = 0; i < n; ++i)
      for (i64 j = 0; j < i; ++j) to[j * n + i] = to[i * n + j];
  }
  /// Unit vectors of the channels whose keys and queries are largest together, the first of equals.
  static void start(double const* moments_k, double const* moments_q, i64 n, i64 w, double* map_k, double* map_q) {
    for (i64 i = 0; i < w * n; ++i) map_k[i] = map_q[i] = 0;
    for (i64 i = 0; i < w; ++i) {
      i64 best = -1;
      double most = -1;
      for (i64 c = 0; c < n; ++c) {
        bool is_taken = false;
        for (i64 k = 0; k < i; ++k) is_taken |= map_k[k * n + c] != 0;
        double const size = moments_k[c * n + c] * moments_q[c * n + c];
        if (!is_taken && size > most) {
          most = size;
          best = c;
        }
      }
      map_k[i * n + best] = map_q[i * n + best] = 1;
    }
  }
  /// One map anew, for the other as it is: M = (B^T + S' M') (B B^T + M'^T S' M')^-1, of B = (M^T S M)^-1 M^T S.
  static void improve(double const* moments, double const* other_moments, double* map, double const* other, i64 n, i64 w, double* basis, double* product,
                      double* normal, double* factor) {
    auto const times = [&](double const* rows, double const* m, double* to) {  // to (i, c) = row i of `rows` times m
      for (i64 i = 0; i < w; ++i)
        for (i64 c = 0; c < n; ++c) {
          double s = 0;
          for (i64 k = 0; k < n; ++k) s += rows[i * n + k] * m[k * n + c];
          to[i * n + c] = s;
        }
    };
    auto const products = [&](double const* a, double const* b, double* to, bool adds) {  // to (i, j) = row i of a . row j of b
      for (i64 i = 0; i < w; ++i)
        for (i64 j = 0; j < w; ++j) {
          double s = 0;
          for (i64 c = 0; c < n; ++c) s += a[i * n + c] * b[j * n + c];
          to[i * w + j] = adds ? to[i * w + j] + s : s;
        }
    };
    times(map, moments, product);  // M^T S
    products(product, map, normal, false);
    solve(normal, w, n, product, basis, factor);  // B
    products(basis, basis, normal, false);
    times(other, other_moments, product);
    products(product, other, normal, true);
    for (i64 i = 0; i < w * n; ++i) product[i] += basis[i];
    solve(normal, w, n, product, map, factor);
  }
  /// to = a^-1 b of a symmetric, positive a [w, w] and b [w, n], by Cholesky; what does not reach into any direction of weight is left out.
  static void solve(double const* a, i64 w, i64 n, double const* b, double* to, double* factor) {
    double trace = 0;
    for (i64 i = 0; i < w; ++i) trace += a[i * w + i];
    double const ridge = 1e-9 * trace / double(w) + 1e-300;
    for (i64 i = 0; i < w; ++i)
      for (i64 j = 0; j <= i; ++j) {
        double s = a[i * w + j] + (i == j ? ridge : 0.0);
        for (i64 k = 0; k < j; ++k) s -= factor[i * w + k] * factor[j * w + k];
        factor[i * w + j] = i == j ? std::sqrt(s > ridge ? s : ridge) : s / factor[j * w + j];
      }
    for (i64 c = 0; c < n; ++c) {
      for (i64 i = 0; i < w; ++i) {
        double s = b[i * n + c];
        for (i64 k = 0; k < i; ++k) s -= factor[i * w + k] * to[k * n + c];
        to[i * n + c] = s / factor[i * w + i];
      }
      for (i64 i = w; i-- > 0;) {
        double s = to[i * n + c];
        for (i64 k = i + 1; k < w; ++k) s -= factor[k * w + i] * to[k * n + c];
        to[i * n + c] = s / factor[i * w + i];
      }
    }
  }
};
// That it models key_map is asserted with a rank, in schemes.

}  // namespace cellar::summary
