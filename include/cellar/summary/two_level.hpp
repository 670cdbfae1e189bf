#pragma once
#include <ratio>

#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Prunes by bound: after twice as many groups as the selection would fill, and sixteen, every group whose bound reaches the k-th best score so
/// far. What is selected is what the fine level alone would select, bit for bit.
struct by_bound {
  static constexpr bool is_exact = true;
  CELLAR_HD static constexpr i64 first(i64, i64 filled) { return 2 * filled + 16; }
};

/// Prunes by count: that share of the groups, of highest coarse score, and no fewer than the selection would fill.
///
/// Template  Share: a std::ratio in (0, 1]
template <class Share>
struct by_share {
  static_assert(Share::num > 0 && Share::num <= Share::den, "by_share: the share must be above 0 and at most 1");
  static constexpr bool is_exact = false;
  CELLAR_HD static constexpr i64 first(i64 groups, i64) { return ceil_div(groups * Share::num, Share::den); }
};

/// A coarse summary of groups of Group consecutive blocks, and a fine one of each block, which is asked for the groups that the coarse one leaves.
///
/// A coarse summary that bounds (covering_summary) covers what the fine level scores, as it has coded it, and its rounding. Any other is built from the keys of
/// single blocks. A group that is cut by truncate and grows again covers what it did before too.
///
/// Template  Rule: by_bound, or one that prunes by count (by_share, falling_share)
/// Score     Fine's; -infinity for what was pruned
/// State     that of the level that learns
/// Bytes     both. A tile is one tile of Coarse, then its blocks' tiles of Fine
/// Source    bounds before scores: Quest's (arXiv:2406.10774) and the threshold algorithm's; by count: ParisKV, arXiv:2602.07721
template <class Coarse, class Fine, int Group, class Rule = by_bound>
struct two_level {
  using rule = Rule;
  static constexpr bool is_upper_bound = Fine::is_upper_bound;
  static constexpr int group_blocks = Group;
  static constexpr int tile_blocks = Coarse::tile_blocks * Group;
  static_assert(Group > 0 && Group % Fine::tile_blocks == 0, "two_level: a group is one or more tiles of the fine level");
  static_assert(!positional<Coarse> && !positional<Fine> && !rotary_aware<Coarse> && !rotary_aware<Fine> && scope_of<Coarse> == scope::one_head &&
                    scope_of<Fine> == scope::one_head,
                "two_level: its levels must not know positions, nor be of all heads");
  static_assert(!(trained<Coarse> && trained<Fine>)&&!trains_in_scratch<Coarse> && !trains_in_scratch<Fine>,
                "two_level: one of its levels may learn, without scratch");
  static_assert(!Rule::is_exact || Coarse::is_upper_bound, "two_level: only an upper bound prunes by bound: choose another coarse level, or prune by count");

  Coarse coarse;
  Fine fine;

  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = cellar::largest<float>;
    if constexpr (requires { coarse.largest(channels); }) most = coarse.largest(channels) < most ? coarse.largest(channels) : most;
    if constexpr (requires { fine.largest(channels); }) most = fine.largest(channels) < most ? fine.largest(channels) : most;
    return most;
  }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return round_up(coarse_bytes(head_dim) + fine_tiles * fine.tile_bytes(head_dim), 16); }
  CELLAR_HD i64 scratch_bytes(i64 head_dim) const { return maximum{}(coarse.scratch_bytes(head_dim), fine.scratch_bytes(head_dim)); }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return prepared_coarse(queries, head_dim) + fine.prepared_bytes(queries, head_dim); }

  CELLAR_HD i64 state_bytes(i64 channels) const requires(trained<Coarse> || trained<Fine>) {
    if constexpr (trained<Coarse>)
      return coarse.state_bytes(channels);
    else
      return fine.state_bytes(channels);
  }
  template <team Team, int D>
    requires(trained<Coarse> || trained<Fine>)
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    if constexpr (trained<Coarse>)
      coarse.train(t, keys, first_position, state);
    else
      fine.train(t, keys, first_position, state);
  }
  CELLAR_HD two_level bind(std::byte const* state) const requires(trained<Coarse> || trained<Fine>) {
    if constexpr (trained<Coarse>)
      return {coarse.bind(state), fine};
    else
      return {coarse, fine.bind(state)};
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    for (i64 b = 0; b < blocks;) {  // by tile of the fine level
      int const lane = int((first_lane + b) % Fine::tile_blocks);
      i64 const run = blocks - b < Fine::tile_blocks - lane ? blocks - b : Fine::tile_blocks - lane;
      fine.build(t, matrix_view<float const, D>{keys.row(b * tokens), run * tokens, keys.stride, keys.dynamic_columns}, run,
                 fine_tile(tile, keys.columns(), (first_lane + b) / Fine::tile_blocks), lane);
      b += run;
    }
    if constexpr (covering_summary<Coarse, D>) {
      t.sync();
      static_assert(boxed_summary<Fine, D>, "two_level: what a bound covers must say where its scores lie: a fine level with box_of");
      int const first = first_lane / Group, end = int(ceil_div(first_lane + blocks, i64{Group}));
      for (int g = first + int(t.rank()); g < end; g += int(t.size())) {
        int const begin = g == first ? first_lane : g * Group, stop = g + 1 == end ? int(first_lane + blocks) : (g + 1) * Group;
        for (int b = begin; b < stop; ++b) {
          float low[D], high[D];
          fine.template box_of<D>(t, fine_tile(tile, D, b / Fine::tile_blocks), b % Fine::tile_blocks, low, high);
          float squares = 0;
          for (int c = 0; c < D; ++c) {
            float const x = maximum{}(low[c] < 0 ? -low[c] : low[c], high[c] < 0 ? -high[c] : high[c]);
            squares += x * x;
          }
          coarse.template cover<D>(t, low, high, cellar::detail::score_rounding(D) * std::sqrt(squares), tile, g, b % Group == 0);
        }
      }
    } else {
      static_assert(Group == 1, "two_level: a coarse level that cannot cover block after block is of single blocks");
      coarse.build(t, keys, blocks, tile, first_lane);
    }
  }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    coarse.prepare(t, queries, to);
    fine.prepare(t, queries, prepared_queries<std::byte, D>{to.data + prepared_coarse(queries.rows, D), to.count, to.scratch});
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    for (int g = 0; g < Coarse::tile_blocks; ++g) score_group(t, from, tile, g, matrix_view<float>{scores.data + g * Group, scores.rows, scores.stride, Group});
  }
  template <team Team, int D>
  CELLAR_HD void score_groups(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    coarse.score_tile(t, from, tile, scores);
  }
  template <team Team, int D>
  CELLAR_HD void score_group(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, int group, matrix_view<float> scores) const {
    prepared_queries<std::byte const, D> const queries{from.data + prepared_coarse(from.count, D), from.count, from.scratch};
    for (int i = 0; i < Group / Fine::tile_blocks; ++i)
      fine.score_tile(t, queries, fine_tile(tile, D, i64{group} * (Group / Fine::tile_blocks) + i),
                      matrix_view<float>{scores.data + i * Fine::tile_blocks, scores.rows, scores.stride, Fine::tile_blocks});
  }

 private:
  static constexpr i64 fine_tiles = tile_blocks / Fine::tile_blocks;

  CELLAR_HD i64 coarse_bytes(i64 head_dim) const { return round_up(coarse.tile_bytes(head_dim), 16); }
  CELLAR_HD i64 prepared_coarse(i64 queries, i64 head_dim) const { return round_up(coarse.prepared_bytes(queries, head_dim), 16); }
  template <class Byte>
  CELLAR_HD Byte* fine_tile(Byte* tile, i64 head_dim, i64 i) const {
    return tile + coarse_bytes(head_dim) + i * fine.tile_bytes(head_dim);
  }
};
// That it models two_level_summary is asserted where both levels are named (schemes, tests).

}  // namespace cellar::summary
