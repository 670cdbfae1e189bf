#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Summary of each block's key (one-token blocks) or mean key after a map that is learnt from the prompt (label_channels, principal_axes, around_mean).
///
/// After a map that only shifts keys, a bound is one still, of all keys of a block: what is large in every key need not be in a bound's error.
///
/// Score   Summary's of the mapped query, and what the map adds to every key's logit
/// State   Map's
/// Bytes   Summary's, of Map::width(head_dim) channels
template <class Map, class Summary>
struct mapped {
  static constexpr bool is_upper_bound = covering_summary<Summary> && requires { requires Map::is_shift; };
  static constexpr int tile_blocks = Summary::tile_blocks;
  static_assert(!trained<Summary> && !positional<Summary> && !rotary_aware<Summary> && scope_of<Summary> == scope::one_head,
                "mapped: the summary of mapped keys must not learn, nor know positions, nor be of all heads");

  Map map;
  Summary summary;

  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = largest_summand;  // landmarks are means
    if constexpr (requires { summary.largest(channels); }) most = summary.largest(Map::width(channels)) < most ? summary.largest(Map::width(channels)) : most;
    return map.largest(most);
  }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return summary.tile_bytes(Map::width(head_dim)); }
  CELLAR_HD i64 scratch_bytes(i64 head_dim) const { return summary.scratch_bytes(Map::width(head_dim)); }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const {
    return summary_bytes(queries, Map::width(head_dim)) + queries * (Map::width(head_dim) + 1) * i64(sizeof(float));
  }

  CELLAR_HD i64 state_bytes(i64 channels) const { return map.state_bytes(channels); }
  CELLAR_HD mapped bind(std::byte const* state) const { return {map.bind(state), summary}; }
  CELLAR_CALLS_HOST
  template <team Team, int D>
  requires query_trained<Map> CELLAR_HD void train_with(Team& t, matrix_view<float const, D> keys, matrix_view<float const, D> queries,
                                                        std::byte* state) const {
    map.train_with(t, keys, queries, state);
  }
  CELLAR_CALLS_HOST
  template <team Team, int D>
  requires has_train<Map> CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    map.train(t, keys, first_position, state);
  }
  i64 train_scratch_bytes(i64 channels) const requires trains_in_scratch<Map> { return map.train_scratch_bytes(channels); }
  mapped with_scratch(std::byte* scratch) const requires trains_in_scratch<Map> { return {map.with_scratch(scratch), summary}; }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    if constexpr (is_upper_bound) return cellar::detail::build_boxes(*this, t, keys, blocks, tile, first_lane);
    constexpr int W = int(Map::width(D));
    i64 const tokens = keys.rows / blocks;
    for (i64 b = t.rank(); b < blocks; b += t.size()) {
      float landmark[D], row[W];
      for (int c = 0; c < D; ++c) {
        float s = 0;
        for (i64 r = 0; r < tokens; ++r) s += keys(b * tokens + r, c);
        landmark[c] = s / float(tokens);
      }
      for (int i = 0; i < W; ++i) row[i] = map.template of_key<D>(landmark, i);
      serial_team alone = cellar::detail::alone_in(t);
      summary.build(alone, matrix_view<float const, W>{row, 1}, 1, tile, first_lane + int(b));
    }
  }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    constexpr int W = int(Map::width(D));
    auto* const rows = reinterpret_cast<float*>(to.data + summary_bytes(queries.rows, W));  // (query, mapped channel)
    float* const shares = rows + queries.rows * W;                                          // (query)
    for (i64 i = t.rank(); i < queries.rows * W; i += t.size()) rows[i] = map.template of_query<D>(queries.row(i / W), int(i % W));
    for (i64 h = t.rank(); h < queries.rows; h += t.size()) shares[h] = map.template common<D>(queries.row(h));
    t.sync();
    summary.prepare(t, matrix_view<float const, W>{rows, queries.rows}, prepared_queries<std::byte, W>{to.data, to.count, to.scratch});
  }

  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    constexpr int W = int(Map::width(D));
    summary.score_tile(t, prepared_queries<std::byte const, W>{from.data, from.count, from.scratch}, tile, scores);
    if constexpr (Map::adds_common) {
      float const* const shares = reinterpret_cast<float const*>(from.data + summary_bytes(from.count, W)) + from.count * W;
      for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size()))
        for (i64 h = 0; h < from.count; ++h) scores(h, lane) += shares[h];
      t.sync();
    }
  }

  template <int D, team Team>
  CELLAR_HD void cover(Team const& t, float const* low, float const* high, float slack, std::byte* tile, int lane,
                       bool is_first) const requires is_upper_bound {
    float shifted_low[D], shifted_high[D], squares = 0, shift_squares = 0;
    float const zeros[D] = {};
    for (int c = 0; c < D; ++c) {
      shifted_low[c] = map.template of_key<D>(low, c);
      shifted_high[c] = map.template of_key<D>(high, c);
      float const x = maximum{}(shifted_low[c] < 0 ? -shifted_low[c] : shifted_low[c], shifted_high[c] < 0 ? -shifted_high[c] : shifted_high[c]);
      float const shift = map.template of_key<D>(zeros, c);
      squares += x * x;
      shift_squares += shift * shift;
    }
    // The differences round, the share of the shift, and its sum with Summary's score.
    float const rounding = cellar::detail::score_rounding(D) * (std::sqrt(squares) + std::sqrt(shift_squares));
    summary.template cover<D>(t, shifted_low, shifted_high, slack + rounding, tile, lane, is_first);
  }

 private:
  CELLAR_HD i64 summary_bytes(i64 queries, i64 width) const { return round_up(summary.prepared_bytes(queries, width), 16); }
};
// That it models block_summary is asserted where both are named (schemes, tests).

}  // namespace cellar::summary
