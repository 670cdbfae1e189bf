#pragma once
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Scratch of `score` for one KV head, in bytes; every part is 16-byte aligned.
template <offloading_scheme S>
struct score_workspace {
  i64 rows = 0;    ///< Query rows of a group: heads times query tokens, at most.
  i64 blocks = 0;  ///< Far blocks of a sequence, at most.

  i64 scored_rows() const { return S::reduce::acts_on_queries ? 1 : rows; }
  i64 padded_blocks() const { return round_up(blocks, memory_map<S>::tile_blocks); }
  i64 query_bytes() const { return round_up(rows * S::head_dim * i64(sizeof(float)), 16); }
  i64 prepared_bytes() const { return round_up(typename S::summary{}.prepared_bytes(scored_rows(), S::head_dim), 16); }
  i64 scratch_bytes() const { return round_up(typename S::summary{}.scratch_bytes(S::head_dim), 16); }
  i64 score_bytes() const { return round_up((scored_rows() + 1) * padded_blocks() * i64(sizeof(float)), 16); }
  i64 bytes() const { return 2 * query_bytes() + prepared_bytes() + scratch_bytes() + score_bytes(); }
};

/// Scores every far block of a sequence for one KV head's query group.
///
/// queries are prepared once, every tile is scored, and the reduction makes one score a block. Logits of summaries, the softmax scale included.
///
/// Shapes      queries [rows, head_dim] f32, times the softmax scale | returned scores [blocks], in the workspace
/// Requires    blocks <= workspace.blocks, queries.rows <= workspace.rows; summaries built for blocks [0, blocks)
/// Effects     a body over a team; writes the workspace only
/// Complexity  O(rows * blocks * head_dim); reads ceil(blocks / tile_blocks) tiles
template <team Team, offloading_scheme S>
CELLAR_HD row_view<float const> score(Team& t, sequence_view<S> const& from, int head, matrix_view<float const, S::head_dim> queries, i64 blocks,
                                      score_workspace<S> const& sizes, std::byte* workspace) {
  using map = memory_map<S>;
  constexpr int D = S::head_dim;
  typename S::reduce const reduce{};
  std::byte* const prepared = workspace + sizes.query_bytes();
  std::byte* const scratch = prepared + sizes.prepared_bytes();
  auto* const scores = reinterpret_cast<float*>(scratch + sizes.scratch_bytes());

  matrix_view<float const, D> scored = queries;
  if constexpr (S::reduce::acts_on_queries) {
    auto* const mean = reinterpret_cast<float*>(workspace);
    reduce(t, matrix_view<float const>{queries.data, queries.rows, queries.stride, D}, row_view<float>{mean, D});
    scored = {mean, 1};
  }
  from.summary(head, from.position(0)).prepare(t, scored, prepared_queries<std::byte, D>{prepared, scored.rows, scratch});
  t.sync();

  i64 const stride = sizes.padded_blocks();
  for (i64 first = 0; first < blocks; first += map::tile_blocks)
    from.summary(head, from.position(first))
        .score_tile(t, prepared_queries<std::byte const, D>{prepared, scored.rows, scratch}, from.tile(first, head),
                    matrix_view<float>{scores + first, scored.rows, stride, map::tile_blocks});
  if constexpr (S::reduce::acts_on_queries) {
    return {scores, blocks};
  } else {
    float* const reduced = scores + scored.rows * stride;
    reduce(t, matrix_view<float const>{scores, scored.rows, stride, blocks}, row_view<float>{reduced, blocks});
    return {reduced, blocks};
  }
}

}  // namespace cellar::operation
