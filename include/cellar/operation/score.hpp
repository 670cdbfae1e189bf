#pragma once
#include "cellar/core/vector.hpp"
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// True where a coarse level of the summary says which blocks the fine one scores (operation/score_levels.hpp).
template <offloading_scheme S>
inline constexpr bool has_two_levels = two_level_summary<typename S::summary, S::head_dim>;

/// True where far blocks are weighed against what is near.
template <offloading_scheme S>
inline constexpr bool reads_near = reduction_beside_near<typename S::reduce>;

/// Where two levels meet, for one KV head.
struct score_levels {
  float* logits = nullptr;          // [scored rows][stride] coarse ones, then what they are reduced to, [stride]
  i64 stride = 0;                   // groups, padded
  logical_block* listed = nullptr;  // [groups] ascending: whose blocks are scored next
  float* gathered = nullptr;        // [blocks]
  i64* counts = nullptr;            // groups that are listed; blocks of these and of earlier rounds

  /// One row is its own reduction where queries are reduced.
  bool is_reduced_before = false;
  CELLAR_HD float* reduced(i64 rows) const { return is_reduced_before ? logits : logits + rows * stride; }
};

/// Scratch of `score` for one KV head, in bytes; every part is 16-byte aligned.
template <offloading_scheme S>
struct score_workspace {
  i64 rows = 0;    ///< Query rows of a group, at most: heads times query tokens; query tokens of an indexed summary.
  i64 blocks = 0;  ///< Far blocks of a sequence, at most.
  int heads = 1;   ///< KV heads.

  CELLAR_HD typename S::summary summary() const {
    if constexpr (of_all_heads<typename S::summary>)
      return typename S::summary{}.of_head(0, heads);
    else
      return {};
  }
  CELLAR_HD i64 scored_rows() const { return S::reduce::acts_on_queries ? 1 : rows; }
  CELLAR_HD i64 padded_blocks() const { return round_up(blocks, memory_map<S>::tile_blocks); }
  static constexpr int D = memory_map<S>::scored_dim;
  CELLAR_HD i64 query_bytes() const { return round_up(rows * D * i64(sizeof(float)), 16); }
  CELLAR_HD i64 prepared_bytes() const { return round_up(summary().prepared_bytes(scored_rows(), D), 16); }
  CELLAR_HD i64 scratch_bytes() const { return round_up(summary().scratch_bytes(D), 16); }
  CELLAR_HD i64 score_bytes() const { return round_up((scored_rows() + 1) * padded_blocks() * i64(sizeof(float)), 16); }
  /// The logits of the last call: row r at logits(workspace) + r * padded_blocks(), [scored rows, blocks].
  CELLAR_HD float const* logits(std::byte const* workspace) const { return scores(const_cast<std::byte*>(workspace)); }
  CELLAR_HD float* scores(std::byte* workspace) const { return reinterpret_cast<float*>(workspace + query_bytes() + prepared_bytes() + scratch_bytes()); }
  /// What prepare_scores made of that many query rows.
  CELLAR_HD prepared_queries<std::byte const, D> prepared(std::byte* workspace, i64 query_rows) const {
    std::byte* const data = workspace + query_bytes();
    return {data, S::reduce::acts_on_queries ? 1 : query_rows, data + prepared_bytes()};
  }
  /// One score a block, of what was scored for `rows` prepared rows.
  CELLAR_HD float* result(std::byte* workspace, i64 rows) const {
    return S::reduce::acts_on_queries ? scores(workspace) : scores(workspace) + rows * padded_blocks();
  }
  CELLAR_HD score_levels levels(std::byte* workspace) const requires(has_two_levels<S>) {
    std::byte* const at = reinterpret_cast<std::byte*>(scores(workspace)) + score_bytes();
    i64 const groups = padded_blocks() / S::summary::group_blocks;
    auto* const logits = reinterpret_cast<float*>(at + 16);
    float* const gathered = logits + (scored_rows() + 1) * groups;
    return {logits, groups, reinterpret_cast<logical_block*>(gathered + padded_blocks()), gathered, reinterpret_cast<i64*>(at), S::reduce::acts_on_queries};
  }
  CELLAR_HD i64 level_bytes() const {
    if constexpr (has_two_levels<S>)
      return round_up(16 + 4 * ((scored_rows() + 2) * (padded_blocks() / S::summary::group_blocks) + padded_blocks()), 16);
    else
      return 0;
  }
  CELLAR_HD i64 bytes() const { return 2 * query_bytes() + prepared_bytes() + scratch_bytes() + score_bytes() + level_bytes(); }
};

/// Scores far blocks of a sequence for one KV head's query group, in three steps, of which the second may be shared out by ranges of tiles: queries are
/// prepared once, tiles are scored, and the reduction makes one score a block. Logits of summaries, the softmax scale included.
///
/// Shapes      queries [rows, head_dim] f32, times the softmax scale; of an indexed summary index queries and their weights, [tokens * index_heads, index_dim]
///             and [tokens * index_heads]
/// Requires    workspace of sizes.bytes(), 16-byte aligned; scored rows <= sizes.rows
/// Effects     a body over a team; writes the workspace only. Returns what score_tiles takes
template <team Team, offloading_scheme S>
CELLAR_HD prepared_queries<std::byte const, memory_map<S>::scored_dim> prepare_scores(Team& t, sequence_view<S> const& from, int head,
                                                                                      matrix_view<float const, memory_map<S>::scored_dim> queries,
                                                                                      score_workspace<S> const& sizes, std::byte* workspace,
                                                                                      [[maybe_unused]] float const* weights = nullptr) {
  constexpr int D = memory_map<S>::scored_dim;
  std::byte* const prepared = workspace + sizes.query_bytes();
  std::byte* const scratch = prepared + sizes.prepared_bytes();
  auto const summary = from.summary(head, from.position(0));
  i64 count = queries.rows;
  if constexpr (memory_map<S>::is_indexed) {
    count = queries.rows / S::summary::index_heads;
    summary.prepare(t, queries, weights, prepared_queries<std::byte, D>{prepared, count, scratch});
  } else {
    matrix_view<float const, D> scored = queries;
    if constexpr (S::reduce::acts_on_queries) {
      auto* const mean = reinterpret_cast<float*>(workspace);
      typename S::reduce{}(t, matrix_view<float const>{queries.data, queries.rows, queries.stride, D}, row_view<float>{mean, D});
      scored = {mean, 1};
      count = 1;
    }
    summary.prepare(t, scored, prepared_queries<std::byte, D>{prepared, count, scratch});
  }
  t.sync();
  return {prepared, count, scratch};
}

/// Scores blocks [first, last): logits of each scored query row.
///
/// Requires    first a multiple of tile_blocks, last <= sizes.blocks; summaries built for these blocks; scratch of sizes.scratch_bytes() in `from_queries`, of
///             each caller its own
/// Complexity  O(rows * blocks * head_dim); reads ceil(blocks / tile_blocks) tiles
template <team Team, offloading_scheme S>
CELLAR_HD void score_tiles(Team& t, sequence_view<S> const& from, int head, prepared_queries<std::byte const, memory_map<S>::scored_dim> const& queries,
                           i64 first, i64 last, score_workspace<S> const& sizes, std::byte* workspace) {
  using map = memory_map<S>;
  float* const scores = sizes.scores(workspace);
  i64 const tile_bytes = from.map.tile(), stride = sizes.padded_blocks();
  for (; first < last; first += map::tile_blocks) {
    if (i64 const later = first + 2 * map::tile_blocks; later < last) prefetch(t, from.tile(later, head), tile_bytes);
    from.summary(head, from.position(first))
        .score_tile(t, queries, from.tile(first, head), matrix_view<float>{scores + first, queries.count, stride, map::tile_blocks});
  }
}

/// Outliers have no part in a selection.
template <team Team, offloading_scheme S>
CELLAR_HD void mark_outliers(Team& t, sequence_view<S> const& from, int head, i64 blocks, float* row, float value = undefined) {
  auto const outliers = from.outliers(head);
  if (outliers.count == 0) return;
  for (i64 i = t.rank(); i < outliers.count; i += t.size())
    if (number(outliers[i]) < blocks) row[number(outliers[i])] = value;
  t.sync();
}

/// One score a block; of two levels it is there already. Outliers have no part in it: their score is NaN.
///
/// Shapes  returned scores [blocks], in the workspace; near_sums [rows], as near_log_sums wrote them, where the reduction reads them
template <team Team, offloading_scheme S>
CELLAR_HD row_view<float const> reduce_scores(Team& t, sequence_view<S> const& from, int head, i64 rows, i64 blocks, score_workspace<S> const& sizes,
                                              std::byte* workspace, [[maybe_unused]] float const* near_sums = nullptr) {
  float* const scores = sizes.scores(workspace);
  i64 const stride = sizes.padded_blocks();
  float* const result = sizes.result(workspace, rows);
  if constexpr (!S::reduce::acts_on_queries && !has_two_levels<S>) {
    for (i64 h = 0; h < rows; ++h) mark_outliers(t, from, head, blocks, scores + h * stride, -infinity);  // no weight in a softmax
    matrix_view<float const> const logits{scores, rows, stride, blocks};
    if constexpr (reads_near<S>)
      typename S::reduce{}(t, logits, row_view<float>{result, blocks}, near_attention{near_sums, float(S::block_tokens)});
    else
      typename S::reduce{}(t, logits, row_view<float>{result, blocks});
  }
  mark_outliers(t, from, head, blocks, result);
  return {result, blocks};
}

/// The three steps in one: scores of blocks [0, blocks).
template <team Team, offloading_scheme S>
  requires(!has_two_levels<S>)
CELLAR_HD row_view<float const> score(Team& t, sequence_view<S> const& from, int head, matrix_view<float const, memory_map<S>::scored_dim> queries, i64 blocks,
                                      score_workspace<S> const& sizes, std::byte* workspace, float const* weights = nullptr, float const* near_sums = nullptr) {
  auto const prepared = prepare_scores(t, from, head, queries, sizes, workspace, weights);
  score_tiles(t, from, head, prepared, 0, blocks, sizes, workspace);
  return reduce_scores(t, from, head, prepared.count, blocks, sizes, workspace, near_sums);
}

}  // namespace cellar::operation
