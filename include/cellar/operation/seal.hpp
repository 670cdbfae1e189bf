#pragma once
#include "cellar/operation/memory.hpp"

/// Work on a prompt or on blocks that leave the window, for one KV head, or for what is stored once for all heads: `head` is then kv_heads, and rows
/// are [tokens, kv_heads * head_dim], of `dynamic` columns.
namespace cellar::inline CELLAR_ABI::operation {

/// Whether a policy is served by the item of rows of that many columns.
template <class Policy, int Columns>
inline constexpr bool is_served = (scope_of<Policy> == scope::all_heads) == (Columns == dynamic);

/// Builds the summaries of consecutive blocks.
///
/// Shapes      keys [blocks * block_tokens, columns], of the blocks first, first + 1, ...; attention, of an observing summary, [blocks * block_tokens]
/// Requires    pages hold the blocks; the summary is trained
/// Effects     writes their lanes of the tiles only; a body over a team
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void summarize(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, matrix_view<float const, Columns> keys,
                         [[maybe_unused]] float const* attention = nullptr) {
  using map = memory_map<S>;
  if constexpr (is_served<typename S::summary, Columns>)
    for (i64 b = 0; b < blocks;) {  // by tile: lanes of one tile are built in one run
      i64 const lane = (first + b) % map::tile_blocks;
      i64 const run = blocks - b < map::tile_blocks - lane ? blocks - b : map::tile_blocks - lane;
      matrix_view<float const, Columns> const rows{keys.row(b * map::block_tokens), run * map::block_tokens, keys.stride, keys.dynamic_columns};
      auto const summary = to.summary(head, to.position(first + b));
      if constexpr (observing_summary<typename S::summary, S::head_dim>)
        summary.build(t, rows, row_view<float const>{attention + b * map::block_tokens, rows.rows}, run, to.tile(first + b, head), int(lane));
      else
        summary.build(t, rows, run, to.tile(first + b, head), int(lane));
      b += run;
    }
}

/// Encodes one block's keys and values into `target`. Codes of the first `kept` tokens stay, as far as they fill whole token groups.
///
/// Shapes      keys, values [block_tokens, columns]
/// Effects     writes the rows of the policies of that scope only; a body over a team, without a barrier at its end
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void encode_block(Team& t, sequence_view<S> const& to, int head, i64 block, matrix_view<float const, Columns> keys,
                            matrix_view<float const, Columns> values, i64 kept, block_parts<std::byte> const& target) {
  i64 const position = to.position(block);
  auto const encode = [&]<class Codec>(Codec const& codec, matrix_view<float const, Columns> const& x, row_parts<std::byte> const& rows) {
    i64 const group = kept / Codec::token_group, token = group * Codec::token_group;
    if constexpr (is_served<Codec, Columns>)
      if (token < x.rows)
        codec.encode(t, matrix_view<float const, Columns>{x.row(token), x.rows - token, x.stride, x.dynamic_columns},
                     {rows.codes + group * rows.code_stride, rows.scales + group * rows.scale_stride, rows.code_stride, rows.scale_stride});
  };
  encode(to.key_codec(head, position + kept / S::key_codec::token_group * S::key_codec::token_group), keys, target.keys);
  encode(to.value_codec(head, position + kept / S::value_codec::token_group * S::value_codec::token_group), values, target.values);
}

/// Seals consecutive blocks in far memory that is written in place: builds their summaries, encodes their keys and values. Codes of the first `kept`
/// tokens of the first block stay.
///
/// Shapes      keys, values [blocks * block_tokens, columns], of the blocks first, first + 1, ...
/// Requires    pages hold the blocks; policies are trained
/// Effects     writes tiles and far planes of those blocks only; a body over a team
/// Complexity  one reading of the rows, one writing of their codes
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void seal(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, matrix_view<float const, Columns> keys,
                    matrix_view<float const, Columns> values, i64 kept = 0, float const* attention = nullptr) {
  using map = memory_map<S>;
  summarize(t, to, head, first, blocks, keys, attention);
  for (i64 b = 0; b < blocks; ++b) {
    i64 const row = b * map::block_tokens;
    encode_block(t, to, head, first + b, matrix_view<float const, Columns>{keys.row(row), map::block_tokens, keys.stride, keys.dynamic_columns},
                 matrix_view<float const, Columns>{values.row(row), map::block_tokens, values.stride, values.dynamic_columns}, b == 0 ? kept : 0,
                 to.far_block(logical_block(first + b), head < to.map.shape.kv_heads ? head : 0));
  }
  t.sync();
}

namespace detail {

CELLAR_CALLS_HOST
template <int Columns, team Team, class Policy>
CELLAR_HD void train(Team& t, Policy policy, matrix_view<float const, Columns> rows, std::byte* state, [[maybe_unused]] std::byte* scratch,
                     [[maybe_unused]] matrix_view<float const, Columns> queries = {}) {
  if constexpr (trains_in_scratch<Policy>) policy = policy.with_scratch(scratch);
  if constexpr (query_trained<Policy>) {
    if constexpr (Columns != dynamic) policy.train_with(t, rows, queries, state);
  } else if constexpr (trained<Policy> && is_served<Policy, Columns>) {
    policy.train(t, rows, 0, state);
  }
  t.sync();
}

}  // namespace detail

/// Teaches the policies that learn from keys, by a prompt's keys as attended, and by its queries where a policy learns from them.
///
/// Requires  scratch of memory_map::train_scratch bytes
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void train_keys(Team& t, sequence_view<S> const& to, int head, matrix_view<float const, Columns> keys, std::byte* scratch,
                          matrix_view<float const, Columns> queries = {}) {
  detail::train(t, to.summary(head, 0), keys, to.summary_state(head), scratch, queries);
  if constexpr (learns_the_same<typename S::summary, typename S::key_codec> && is_served<typename S::key_codec, Columns>) {
    std::byte const* const learnt = to.summary_state(head);
    std::byte* const copy = to.key_state(head);
    i64 const bytes = to.map.template state<typename S::key_codec>(Columns == dynamic);
    for (i64 i = t.rank(); i < bytes; i += t.size()) copy[i] = learnt[i];
    t.sync();
  } else {
    detail::train(t, to.key_codec(head, 0), keys, to.key_state(head), scratch);
  }
}

/// Teaches the value codec, if it learns, by a prompt's values.
///
/// Requires  scratch of memory_map::train_scratch bytes
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void train_values(Team& t, sequence_view<S> const& to, int head, matrix_view<float const, Columns> values, std::byte* scratch) {
  detail::train(t, to.value_codec(head, 0), values, to.value_state(head), scratch);
}

}  // namespace cellar::operation
