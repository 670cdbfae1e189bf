#pragma once
#include <cmath>

#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// The number of a row's cluster, 16 bits a row. Clusters are learnt from a prompt's rows by k-means of cosines: a row is of the cluster whose centroid makes
/// the smallest angle with it, and a centroid is the mean of its rows. Ties go to the lowest number; an empty cluster keeps its centroid.
///
/// Segments are clustered apart, which is what makes long prompts affordable: a row knows its segment by its position, and rows after the prompt are of the
/// last one. A prompt of n tokens has round(n / SegmentTokens) segments of equal size, and as many clusters in each.
///
/// Template   Clusters: at most, of the whole prompt; TokensPerCluster: on average, as long as Clusters allows; SegmentTokens: 0 is one segment; Centred:
///            angles are those of differences from the mean of all rows; Iterations: at most, fewer where nothing changes any more
/// State      how many there are, [cluster] lengths, [channel] mean, [cluster / 32, channel, cluster % 32] unit vectors, f32: (head_dim + 1) * Clusters * 4
///            bytes and a little, per (layer, sequence, KV head), whatever the prompt's length; fixed by train
/// Bytes      2 a row, no scales
/// Error      what a row differs from its centroid
/// Complexity train: O(Iterations * tokens * clusters of a segment * head_dim), on the host; to encode a row: O(clusters of a segment * head_dim); a query:
///            O(clusters * head_dim); to score a row: one look-up. Sums have one order at every vector level: all find the same clusters
/// Source     ClusterKV, Liu et al., arXiv:2412.03213, from random rows, of which ours are evenly spaced; segments and centring: RetroInfer, Chen et al.,
///            arXiv:2505.02922, which assigns rows to clusters of other segments at the end
template <int Clusters = 512, int TokensPerCluster = 80, i64 SegmentTokens = 0, bool Centred = false, int Iterations = 20>
struct cluster_codes {
  static_assert(Clusters > 0 && Clusters <= 65536, "cluster_codes: 1 to 65536 clusters have numbers of 16 bits");
  static_assert(TokensPerCluster > 0 && SegmentTokens >= 0 && Iterations >= 0, "cluster_codes: a cluster has tokens, and nothing is negative");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 2;
  static constexpr int lanes = 32;  ///< Unit vectors that lie interleaved.

  std::byte const* state = nullptr;
  i64 position = 0;  // of the first row
  std::byte* scratch = nullptr;

  /// Differences of rows, and their products with unit vectors, stay finite.
  CELLAR_HD constexpr float largest(i64) const { return 0x1p120f; }
  CELLAR_HD constexpr row_bytes bytes(i64) const { return {2, 0}; }
  CELLAR_HD i64 state_bytes(i64 channels) const {
    return i64(sizeof(counts)) + (padded + (Centred ? round_up(channels, 4) : 0) + padded * channels) * i64(sizeof(float));
  }
  CELLAR_HD cluster_codes bind(std::byte const* from) const { return {from, position, scratch}; }
  CELLAR_HD cluster_codes at(i64 first) const { return {state, first, scratch}; }
  i64 train_scratch_bytes(i64 channels) const { return (most_in_segment * (channels + 1) + channels) * i64(sizeof(double)); }
  cluster_codes with_scratch(std::byte* to) const { return {state, position, to}; }

  /// Rows are those of positions 0, 1, ...; one member learns.
  template <team Team, int D>
  void train(Team& t, matrix_view<float const, D> rows, i64, std::byte* to) const {
    if (t.rank() == 0) {
      i64 const channels = rows.columns(), n = rows.rows;
      auto const learnt = in<float>(to, channels);
      counts& c = *reinterpret_cast<counts*>(to);
      i64 const wanted = (n + TokensPerCluster / 2) / TokensPerCluster, total = wanted < 1 ? 1 : wanted < Clusters ? wanted : Clusters;
      i64 segments = 1;
      if constexpr (SegmentTokens > 0) segments = (n + SegmentTokens / 2) / SegmentTokens;
      segments = segments < 1 ? 1 : segments < total ? segments : total;
      c = {n, std::int32_t(segments), std::int32_t(total / segments)};
      for (i64 i = 0; i < padded; ++i) learnt.lengths[i] = 0;
      for (i64 i = 0; i < padded * channels; ++i) learnt.directions[i] = 0;
      auto* const sums = reinterpret_cast<double*>(scratch);  // (cluster, channel)
      double* const sizes = sums + most_in_segment * channels;
      auto* const row = reinterpret_cast<float*>(sizes + most_in_segment);
      if constexpr (Centred) {
        for (i64 i = 0; i < channels; ++i) sums[i] = 0;
        for (i64 r = 0; r < n; ++r)
          for (i64 i = 0; i < channels; ++i) sums[i] += double(rows(r, i));
        for (i64 i = 0; i < channels; ++i) learnt.mean[i] = n > 0 ? float(sums[i] / double(n)) : 0.0f;
      }
      auto const centre = [&](i64 r) { difference(learnt, channels, rows.row(r), row); };
      auto const place = [&](i64 cluster, auto const& coordinate) {  // whether that moves it
        double square = 0;
        for (i64 i = 0; i < channels; ++i) square += coordinate(i) * coordinate(i);
        double const length = std::sqrt(square);
        bool moves = learnt.lengths[cluster] != float(length);
        learnt.lengths[cluster] = float(length);
        for (i64 i = 0; i < channels; ++i) {
          float& x = learnt.directions[(cluster / lanes * channels + i) * lanes + cluster % lanes];
          float const y = length > 0 ? float(coordinate(i) / length) : 0.0f;
          moves |= x != y;
          x = y;
        }
        return moves;
      };
      for (i64 s = 0; s < segments && n > 0; ++s) {
        i64 const begin = n * s / segments, end = n * (s + 1) / segments, first = s * c.each, each = c.each;
        for (i64 p = 0; p < each; ++p) {  // in the middle of equal runs
          centre(begin + (2 * p + 1) * (end - begin) / (2 * each));
          place(first + p, [&](i64 i) { return double(row[i]); });
        }
        for (int turn = 0; turn < Iterations; ++turn) {
          for (i64 i = 0; i < each * channels; ++i) sums[i] = 0;
          for (i64 p = 0; p < each; ++p) sizes[p] = 0;
          for (i64 r = begin; r < end; ++r) {
            centre(r);
            i64 const p = nearest(learnt.directions, channels, row, int(first), int(first + each)) - first;
            for (i64 i = 0; i < channels; ++i) sums[p * channels + i] += double(row[i]);
            sizes[p] += 1;
          }
          bool moves = false;
          for (i64 p = 0; p < each; ++p)
            if (sizes[p] > 0) moves |= place(first + p, [&](i64 i) { return sums[p * channels + i] / sizes[p]; });
          if (!moves) break;
        }
      }
    }
    t.sync();
  }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    i64 const channels = x.columns();
    auto const learnt = in<float const>(state, channels);
    counts const c = known();
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[!Centred ? 1 : D == dynamic ? max_row_channels : D];
      float const* row = x.row(r);
      if constexpr (Centred) {
        difference(learnt, channels, row, y);
        row = y;
      }
      i64 const p = position + r, segment = p < c.tokens ? ((p + 1) * c.segments - 1) / c.tokens : c.segments - 1;
      int const first = int(segment) * c.each;
      detail::store(to.codes + r * to.code_stride, std::uint16_t(nearest(learnt.directions, channels, row, first, first + c.each)));
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    i64 const channels = y.columns();
    auto const learnt = in<float const>(state, channels);
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      i64 const p = class_of(from.codes + r * from.code_stride);
      for (i64 i = 0; i < channels; ++i) {
        float const x = learnt.lengths[p] * learnt.directions[(p / lanes * channels + i) * lanes + p % lanes];
        y(r, i) = Centred ? x + learnt.mean[i] : x;
      }
    }
  }

  /// A prepared query is a table: its product with each centroid.
  CELLAR_HD i64 query_bytes(i64) const { return padded * i64(sizeof(float)); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    auto const learnt = in<float const>(state, D);
    auto* const table = reinterpret_cast<float*>(prepared);
    counts const c = known();
    i64 const used = i64{c.segments} * c.each;
    float common = 0;
    if constexpr (Centred)
      for (int i = 0; i < D; ++i) common += q[i] * learnt.mean[i];
    if (t.size() == 1) {
      for (i64 p = 0; p < used; p += lanes)
        score_lanes<float>(t, q, D, 1, D, reinterpret_cast<std::byte const*>(learnt.directions + p * D), lanes, matrix_view<float>{table + p, 1, lanes, lanes});
    } else {  // a member for each cluster, not for each lane
      for (i64 p = t.rank(); p < used; p += t.size()) {
        float const* const direction = learnt.directions + p / lanes * D * lanes + p % lanes;
        float s = 0;
        for (int i = 0; i < D; ++i) s += q[i] * direction[i * lanes];
        table[p] = s;
      }
    }
    for (i64 p = t.rank(); p < used; p += t.size()) table[p] = table[p] * learnt.lengths[p] + common;
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const*, int count, float* scores) const {
    auto const* const table = reinterpret_cast<float const*>(prepared);
    counts const c = known();
    int const used = c.segments * c.each;
    for (int lane = int(t.rank()); lane < count; lane += int(t.size())) {
      int const p = class_of(codes + lane * code_unit);
      scores[lane] = table[p < used ? p : 0];  // of a lane that was not built
    }
  }

  CELLAR_HD static constexpr int classes() { return Clusters; }
  CELLAR_HD static int class_of(std::byte const* codes) {
    int const p = detail::load<std::uint16_t>(codes);
    return p < Clusters ? p : 0;
  }

 private:
  /// Of the prompt, and clusters of each segment.
  struct counts {
    i64 tokens;
    std::int32_t segments, each;
  };
  template <class Float>
  struct centroids {
    Float *lengths, *mean, *directions;
  };
  static constexpr i64 padded = round_up(Clusters, lanes);
  /// Segments are at most half as long again as SegmentTokens.
  static constexpr i64 most_in_segment =
      SegmentTokens > 0 && SegmentTokens * 3 / 2 / TokensPerCluster + 2 < Clusters ? SegmentTokens * 3 / 2 / TokensPerCluster + 2 : Clusters;

  template <class Float, class Byte>
  CELLAR_HD static centroids<Float> in(Byte* memory, i64 channels) {
    auto* const lengths = reinterpret_cast<Float*>(memory + sizeof(counts));
    return {lengths, lengths + padded, lengths + padded + (Centred ? round_up(channels, 4) : 0)};
  }
  /// Within bounds, whatever a state holds.
  CELLAR_HD counts known() const {
    counts c = *reinterpret_cast<counts const*>(state);
    c.segments = c.segments < 1 ? 1 : c.segments < Clusters ? c.segments : Clusters;
    int const most = Clusters / c.segments;
    c.each = c.each < 1 ? 1 : c.each < most ? c.each : most;
    return c;
  }
  template <class Float>
  CELLAR_HD static void difference(centroids<Float> const& learnt, i64 channels, float const* x, float* y) {
    for (i64 i = 0; i < channels; ++i) y[i] = Centred ? x[i] - learnt.mean[i] : x[i];
  }
  /// The cluster of [first, end) whose unit vector has the largest product with x.
  CELLAR_HD static int nearest(float const* directions, i64 channels, float const* x, int first, int end) {
    float best = -infinity;
    int found = first;
    for (int p = first / lanes * lanes; p < end; p += lanes) {
      float s[lanes] = {};
      float const* const tile = directions + p * channels;
      for (i64 i = 0; i < channels; ++i)
        for (int lane = 0; lane < lanes; ++lane) s[lane] += x[i] * tile[i * lanes + lane];
      for (int lane = 0; lane < lanes; ++lane)
        if (s[lane] > best && p + lane >= first && p + lane < end) {
          best = s[lane];
          found = p + lane;
        }
    }
    return found;
  }
};
static_assert(code_scorer<cluster_codes<>> && trains_in_scratch<cluster_codes<>> && positional<cluster_codes<>> && classifying_codec<cluster_codes<>>);

}  // namespace cellar::codec
