#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Product codes: a row falls into Parts runs of channels, and of each run the nearest of Points centroids is stored, a byte each. Centroids are learnt from a
/// prompt's rows by k-means from evenly spaced ones; ties go to the lowest, and a centroid that no row is nearest to stays.
///
/// State      [part, centroid, channel] f32: Points * head_dim * 4 bytes, per (layer, sequence, KV head); fixed by train
/// Bytes      Parts codes, no scales
/// Error      the distance to the nearest centroid
/// Complexity train: O(Iterations * tokens * Points * head_dim), on the host; a row: O(Points * head_dim); to score one: Parts look-ups
/// Source     PQCache, Zhang et al., arXiv:2407.12820 (2 parts of 6 bits). Deviation: codes of less than 8 bits take a byte; iterations are a fixed number
template <int Parts = 2, int Points = 64, int Iterations = 8>
struct product_codes {
  static_assert(Parts > 0 && Points > 0 && Points <= 256 && Iterations >= 0, "product_codes: there are parts, and 1 to 256 points of each");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;

  float const* centroids = nullptr;  // (part, centroid, channel)
  std::byte* scratch = nullptr;

  /// Squares of differences of up to 576 channels stay finite.
  CELLAR_HD constexpr float largest(i64) const { return 0x1p58f; }
  CELLAR_HD constexpr row_bytes bytes(i64) const { return {Parts, 0}; }
  CELLAR_HD i64 state_bytes(i64 channels) const { return Points * channels * i64(sizeof(float)); }
  CELLAR_HD product_codes bind(std::byte const* state) const { return {reinterpret_cast<float const*>(state), scratch}; }
  i64 train_scratch_bytes(i64 channels) const { return Points * (channels + Parts) * i64(sizeof(double)); }
  product_codes with_scratch(std::byte* to) const { return {centroids, to}; }

  /// A member learns the parts rank, rank + size, ...: nobody waits for another.
  template <team Team, int D>
  void train(Team& t, matrix_view<float const, D> rows, i64, std::byte* state) const {
    i64 const channels = rows.columns();
    auto* const points = reinterpret_cast<float*>(state);
    for (int part = int(t.rank()); part < Parts; part += int(t.size())) {
      i64 const first = begin(part, channels), n = begin(part + 1, channels) - first;
      float* const mine = points + first * Points;                                                    // (centroid, channel)
      double* const sums = reinterpret_cast<double*>(scratch) + first * Points + i64{part} * Points;  // as mine, then how many
      for (i64 p = 0; p < Points; ++p)
        for (i64 c = 0; c < n; ++c) mine[p * n + c] = rows.rows > 0 ? rows(p * rows.rows / Points, first + c) : 0.0f;
      for (int turn = 0; turn < Iterations; ++turn) {
        for (i64 i = 0; i < Points * (n + 1); ++i) sums[i] = 0;
        for (i64 r = 0; r < rows.rows; ++r) {
          int const p = nearest(mine, rows.row(r) + first, n);
          for (i64 c = 0; c < n; ++c) sums[p * n + c] += double(rows(r, first + c));
          sums[Points * n + p] += 1;
        }
        for (i64 p = 0; p < Points; ++p)
          for (i64 c = 0; c < n && sums[Points * n + p] > 0; ++c) mine[p * n + c] = float(sums[p * n + c] / sums[Points * n + p]);
      }
    }
    t.sync();
  }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    i64 const channels = x.columns();
    for (i64 i = t.rank(); i < x.rows * Parts; i += t.size()) {
      i64 const first = begin(int(i % Parts), channels), n = begin(int(i % Parts) + 1, channels) - first;
      to.codes[i / Parts * to.code_stride + i % Parts] = std::byte(nearest(centroids + first * Points, x.row(i / Parts) + first, n));
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    i64 const channels = y.columns();
    for (i64 r = t.rank(); r < y.rows; r += t.size())
      for (int part = 0; part < Parts; ++part) {
        i64 const first = begin(part, channels), n = begin(part + 1, channels) - first;
        float const* const point = centroids + first * Points + i64(from.codes[r * from.code_stride + part]) * n;
        for (i64 c = 0; c < n; ++c) y(r, first + c) = point[c];
      }
  }

  /// A prepared query is a table: its product with each centroid of each part.
  CELLAR_HD i64 query_bytes(i64) const { return round_up(Parts * Points * i64(sizeof(float)), 16); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    for (int i = int(t.rank()); i < Parts * Points; i += int(t.size())) {
      i64 const first = begin(i / Points, D), n = begin(i / Points + 1, D) - first;
      float const* const point = centroids + first * Points + i % Points * n;
      float s = 0;
      for (i64 c = 0; c < n; ++c) s += q[first + c] * point[c];
      reinterpret_cast<float*>(prepared)[i] = s;
    }
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const*, int lanes, float* scores) const {
    auto const* const table = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      float s = 0;
      for (int part = 0; part < Parts; ++part) {
        int const p = int(codes[i64{part} * lanes + lane]);
        s += table[part * Points + (p < Points ? p : 0)];  // of a lane that was not built
      }
      scores[lane] = s;
    }
  }

  CELLAR_HD static constexpr int classes() requires(Parts == 1) { return Points; }
  CELLAR_HD static int class_of(std::byte const* codes) requires(Parts == 1) { return int(*codes) < Points ? int(*codes) : 0; }

 private:
  /// The first channel of a part.
  CELLAR_HD static constexpr i64 begin(int part, i64 channels) { return channels * part / Parts; }
  CELLAR_HD static int nearest(float const* points, float const* x, i64 n) {
    float best = infinity;
    int found = 0;
    for (int p = 0; p < Points; ++p) {
      float distance = 0;
      for (i64 c = 0; c < n; ++c) distance += (x[c] - points[p * n + c]) * (x[c] - points[p * n + c]);
      if (distance < best) {
        best = distance;
        found = p;
      }
    }
    return found;
  }
};
static_assert(code_scorer<product_codes<>> && trains_in_scratch<product_codes<>> && classifying_codec<product_codes<1>>);

}  // namespace cellar::codec
