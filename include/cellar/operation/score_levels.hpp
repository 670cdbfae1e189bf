#pragma once
#include "cellar/operation/score.hpp"
#include "cellar/select/radix.hpp"

/// Scores of summaries of two levels, in steps of which the second and the fourth may be shared out:
///
///   prepare_scores   queries, for both levels
///   score_groups     a coarse score of every group; every block's score is -infinity
///   list_groups      round 0: the groups of highest coarse score, as many as the rule says
///   score_listed     the fine level, for the blocks of these
///   list_groups      round 1, if bounds prune: the groups whose bound reaches the k-th highest score so far. No block of another is among the k highest
///   score_listed     the fine level, for these
///   reduce_scores    as of one level: what is left of it
///
/// No step depends on who did the one before, so the scores do not either.
namespace cellar::inline CELLAR_ABI::operation {

template <offloading_scheme S>
inline constexpr int score_rounds = S::summary::rule::is_exact ? 2 : 1;

/// Coarse scores of blocks [first, last), and the scores of those whom nobody asks for.
///
/// Requires    first a multiple of tile_blocks, last <= sizes.blocks; scratch as score_tiles has it
template <team Team, offloading_scheme S>
CELLAR_HD void score_groups(Team& t, sequence_view<S> const& from, int head, prepared_queries<std::byte const, S::head_dim> const& queries, i64 first, i64 last,
                            score_workspace<S> const& sizes, std::byte* workspace) {
  using map = memory_map<S>;
  constexpr int each = map::tile_blocks / S::summary::group_blocks;
  auto const levels = sizes.levels(workspace);
  float* const scores = sizes.result(workspace, queries.count);
  for (; first < last; first += map::tile_blocks) {
    i64 const group = first / S::summary::group_blocks;
    matrix_view<float> const logits{levels.logits + group, queries.count, levels.stride, each};
    from.summary(head, from.position(first)).score_groups(t, queries, from.tile(first, head), logits);
    row_view<float> const reduced{levels.reduced(queries.count) + group, each};
    if constexpr (!S::reduce::acts_on_queries) typename S::reduce{}(t, logits, reduced);
    if constexpr (S::summary::rule::is_exact)
      for (int i = int(t.rank()); i < each; i += int(t.size()))
        if (reduced[i] != reduced[i]) reduced[i] = infinity;
    for (int i = int(t.rank()); i < map::tile_blocks; i += int(t.size())) scores[first + i] = -infinity;
    t.sync();
  }
}

/// Lists the groups that score_listed is to score next. k: blocks that will be selected at most; outliers are none of them.
///
/// Requires    shared memory of list_groups_bytes
template <team Team, offloading_scheme S>
CELLAR_HD void list_groups(Team& t, sequence_view<S> const& from, int head, int round, i64 rows, i64 blocks, i64 k, score_workspace<S> const& sizes,
                           std::byte* workspace) {
  constexpr int G = S::summary::group_blocks;
  auto const levels = sizes.levels(workspace);
  auto const scratch = select::detail::radix_scratch<std::uint32_t>::of(t);
  i64 const groups = ceil_div(blocks, i64{G});
  row_view<float> const coarse{levels.reduced(rows), groups};
  row_view<logical_block> const listed{levels.listed, groups};
  i64 count = 0;
  if (round == 0) {
    i64 const filled = ceil_div(k, i64{G}), most = maximum{}(filled, S::summary::rule::first(groups, filled));
    if (k > 0) count = select::detail::write_highest(t, row_view<float const>(coarse), most < groups ? most : groups, listed, scratch);
    t.sync();
    if (t.rank() == 0) levels.counts[1] = 0;
  } else if (k > 0) {
    mark_outliers(t, from, head, blocks, sizes.result(workspace, rows));
    i64 const before = levels.counts[0];
    float const* const scores = sizes.result(workspace, rows);
    for (i64 i = t.rank(); i < before * G; i += t.size()) {
      i64 const b = number(listed[i / G]) * G + i % G;
      levels.gathered[i] = b < blocks ? scores[b] : undefined;
    }
    t.sync();
    // Of the k-th highest: the first round's groups have at least k blocks. 0, which every bound reaches, where too few of these have a score.
    std::uint32_t const key = select::detail::radix_search(
                                  t, row_view<float const>{levels.gathered, before * G}, std::uint32_t(k), [](i64) { return 1u; }, scratch)
                                  .key;
    for (i64 i = t.rank(); i < before; i += t.size()) coarse[number(listed[i])] = undefined;  // done with
    t.sync();
    count = select::detail::write_best(t, row_view<float const>(coarse), key == 0 ? 0 : key - 1, 0, listed);
  }
  t.sync();
  if (t.rank() == 0) {
    levels.counts[0] = count;
    levels.counts[1] += count * G - (count > 0 && number(listed[count - 1]) == groups - 1 ? groups * G - blocks : 0);
  }
  t.sync();
}
/// What list_groups takes of a team's shared memory.
inline constexpr i64 list_groups_bytes = select::detail::radix_scratch<std::uint32_t>::bytes + select::detail::cells::bytes + 64;

/// Fine scores of the groups [first, last) of the list, as far as it goes.
template <team Team, offloading_scheme S>
CELLAR_HD void score_listed(Team& t, sequence_view<S> const& from, int head, prepared_queries<std::byte const, S::head_dim> const& queries, i64 first, i64 last,
                            score_workspace<S> const& sizes, std::byte* workspace) {
  using map = memory_map<S>;
  constexpr int G = S::summary::group_blocks;
  auto const levels = sizes.levels(workspace);
  float* const scores = sizes.scores(workspace);
  i64 const count = levels.counts[0];
  last = last < count ? last : count;
  for (i64 i = first; i < last; ++i) {
    i64 const block = number(levels.listed[i]) * G;
    matrix_view<float> const logits{scores + block, queries.count, sizes.padded_blocks(), G};
    from.summary(head, from.position(block / map::tile_blocks * map::tile_blocks))
        .score_group(t, queries, from.tile(block, head), int(block % map::tile_blocks / G), logits);
    if constexpr (!S::reduce::acts_on_queries) typename S::reduce{}(t, logits, row_view<float>{sizes.result(workspace, queries.count) + block, G});
  }
}

}  // namespace cellar::operation
