#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// A share of the keys that falls with their number: so ParisKV's code has its candidates, and what collides in a subspace.
///
/// Template  percent of less than 5000 keys, 10000, 30000, and of more
template <int Few, int Some, int Many, int Most>
struct falling_share {
  static constexpr bool is_exact = false;
  CELLAR_HD static constexpr int percent(i64 keys) { return keys < 5000 ? Few : keys < 10000 ? Some : keys < 30000 ? Many : Most; }
  CELLAR_HD static constexpr i64 first(i64 groups, i64) { return ceil_div(groups * percent(groups), 100); }
};

/// Counts in how many runs of channels a key is among those nearest to the query by the Codec's centroids. Nothing is learnt but how many of a prompt's keys
/// each centroid has.
///
/// Of a run, centroids are taken by falling product with the query. A centroid has a point for each of the shares 5, 15, 30, 50, 75 and 100 % of the Colliding
/// share of the keys that those before it do not fill: 6 to 0 points.
///
/// Template  Codec: sphere_centroids; Colliding: a share of the keys
/// Score     the sum of points over runs: no logit
/// State     (run, centroid) counts of the prompt's keys, and their number
/// Bytes     Codec's row a block, of its key or mean key
/// Source    ParisKV, Qi et al., arXiv:2602.07721, as its code has it (github.com/amy-77/ParisKV). Deviation: there generated keys are counted too
template <class Codec, class Colliding = falling_share<50, 30, 25, 20>>
struct collisions {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 32;
  static constexpr int run = Codec::run, points = Codec::points, tiers = 6;
  static_assert(points == 256, "collisions: a run has a centroid for each value of a byte");

  Codec codec;
  std::uint32_t const* counts = nullptr;

  CELLAR_HD constexpr float largest(i64) const { return largest_summand; }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return tile_blocks * codec.bytes(head_dim).codes; }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * table_size(head_dim) * i64(sizeof(float)); }

  CELLAR_HD i64 state_bytes(i64 channels) const { return (table_size(channels) + 1) * i64(sizeof(std::uint32_t)); }
  CELLAR_HD collisions bind(std::byte const* state) const { return {codec, reinterpret_cast<std::uint32_t const*>(state)}; }
  template <team Team, int D>
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64, std::byte* state) const {
    auto* const to = reinterpret_cast<std::uint32_t*>(state);
    i64 const size = table_size(keys.columns());
    for (i64 i = t.rank(); i <= size; i += t.size()) to[i] = i < size ? 0 : std::uint32_t(keys.rows);
    t.sync();
    serial_team alone = cellar::detail::alone_in(t);
    for (i64 r = t.rank(); r < keys.rows; r += t.size()) {
      std::byte codes[most_runs<D>];
      codec.encode(alone, matrix_view<float const, D>{keys.row(r), 1, keys.stride, keys.dynamic_columns}, row_parts<std::byte>{codes, codes, 0, 0});
      for (i64 b = 0; b < size / points; ++b) t.atomic_add(&to[b * points + int(codes[b])], 1u);
    }
    t.sync();
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    serial_team alone = cellar::detail::alone_in(t);
    for (i64 k = t.rank(); k < blocks; k += t.size()) {
      float landmark[D];
      for (int c = 0; c < D; ++c) {
        float s = 0;
        for (i64 r = k * tokens; r < (k + 1) * tokens; ++r) s += keys(r, c);
        landmark[c] = s / float(tokens);
      }
      std::byte codes[most_runs<D>];
      codec.encode(alone, matrix_view<float const, D>{landmark, 1}, row_parts<std::byte>{codes, codes, 0, 0});
      for (int b = 0; b < D / run; ++b) tile[b * tile_blocks + first_lane + k] = codes[b];
    }
  }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const tables = reinterpret_cast<float*>(to.data);  // (query, run, centroid)
    i64 const keys = counts[table_size(D)], colliding = ceil_div(keys * Colliding::percent(keys), i64{100});
    for (i64 h = 0; h < queries.rows; ++h) {
      float rotated[D];  // every member rotates for itself: cheaper than a barrier
      codec.template rotate<D>(t, queries.row(h), rotated);
      for (int b = int(t.rank()); b < D / run; b += int(t.size())) {
        std::uint8_t order[points];
        Codec::order_centroids(rotated + b * run, order);
        i64 before = 0;
        for (int i = 0; i < points; ++i) {
          int score = 0;
          for (int tier = 0; tier < tiers; ++tier) score += before < ceil_div(colliding * share(tier), i64{100});
          tables[h * table_size(D) + b * points + order[i]] = float(score);
          before += counts[b * points + order[i]];
        }
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    static constexpr auto ones = [] {
      constant_array<float, tile_blocks> a;
      for (int i = 0; i < tile_blocks; ++i) a[i] = 1;
      return a;
    }();
    for (i64 h = 0; h < from.count; ++h)
      cellar::score_codes<points, float>(t, reinterpret_cast<float const*>(from.data) + h * table_size(D), 1, tile, D / run,
                                         reinterpret_cast<std::byte const*>(ones.values), tile_blocks,
                                         matrix_view<float>{scores.row(h), 1, scores.stride, tile_blocks});
    t.sync();
  }

 private:
  template <int D>
  static constexpr int most_runs = (D == dynamic ? 256 : D) / run;

  CELLAR_HD static constexpr i64 table_size(i64 channels) { return channels / run * points; }
  CELLAR_HD static constexpr int share(int tier) { return tier == 0 ? 5 : tier == 1 ? 15 : tier == 2 ? 30 : tier == 3 ? 50 : tier == 4 ? 75 : 100; }
};
// That it models block_summary is asserted where codecs are named (schemes, tests): a summary includes no codec.

}  // namespace cellar::summary
