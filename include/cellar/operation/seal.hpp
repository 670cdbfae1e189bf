#pragma once
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Seals consecutive blocks of one KV head: builds their summaries, encodes their keys and values into far memory.
///
/// Shapes      keys, values [blocks * block_tokens, head_dim], of the blocks first, first + 1, ...
/// Requires    pages hold the blocks; policies are trained
/// Effects     writes tiles and far planes of those blocks only; a body over a team
/// Complexity  one reading of the rows, one writing of their codes
template <team Team, offloading_scheme S>
CELLAR_HD void seal(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, matrix_view<float const, S::head_dim> keys,
                    matrix_view<float const, S::head_dim> values) {
  using map = memory_map<S>;
  for (i64 b = 0; b < blocks;) {  // by tile: lanes of one tile are built in one run
    i64 const lane = (first + b) % map::tile_blocks;
    i64 const run = blocks - b < map::tile_blocks - lane ? blocks - b : map::tile_blocks - lane;
    matrix_view<float const, S::head_dim> const rows{keys.row(b * map::block_tokens), run * map::block_tokens, keys.stride};
    to.summary(head, to.position(first + b)).build(t, rows, run, to.tile(first + b, head), int(lane));
    b += run;
  }
  for (i64 b = 0; b < blocks; ++b) {
    auto const block = logical_block(first + b);
    i64 const row = b * map::block_tokens, position = to.position(first + b);
    matrix_view<float const, S::head_dim> const k{keys.row(row), map::block_tokens, keys.stride}, v{values.row(row), map::block_tokens, values.stride};
    to.key_codec(head, position).encode(t, k, to.far_rows(plane::keys, plane::key_scales, block, head));
    to.value_codec(head, position).encode(t, v, to.far_rows(plane::values, plane::value_scales, block, head));
  }
  t.sync();
}

/// Teaches the policies that learn from keys, by a prompt's keys of one KV head, as attended.
template <team Team, offloading_scheme S>
CELLAR_HD void train_keys(Team& t, sequence_view<S> const& to, int head, matrix_view<float const, S::head_dim> keys) {
  std::byte* const of_summary = to.state(head);
  std::byte* const of_codec = of_summary + to.map.template state_of<typename S::summary>();
  if constexpr (trained<typename S::summary>) to.summary(head, 0).train(t, keys, 0, of_summary);
  t.sync();
  if constexpr (learns_the_same<typename S::summary, typename S::key_codec>)
    for (i64 i = t.rank(); i < to.map.template state_of<typename S::key_codec>(); i += t.size()) of_codec[i] = of_summary[i];
  else if constexpr (trained<typename S::key_codec>)
    to.key_codec(head, 0).train(t, keys, 0, of_codec);
  t.sync();
}

/// Teaches the value codec, if it learns, by a prompt's values of one KV head.
template <team Team, offloading_scheme S>
CELLAR_HD void train_values(Team& t, sequence_view<S> const& to, int head, matrix_view<float const, S::head_dim> values) {
  if constexpr (trained<typename S::value_codec>)
    to.value_codec(head, 0).train(t, values, 0,
                                  to.state(head) + to.map.template state_of<typename S::summary>() + to.map.template state_of<typename S::key_codec>());
  t.sync();
}

}  // namespace cellar::operation
