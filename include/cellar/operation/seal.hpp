#pragma once
#include "cellar/operation/memory.hpp"

/// Work on a prompt or on blocks that leave the window, for one KV head, or for what is stored once for all heads: `head` is then kv_heads, and rows
/// are [tokens, kv_heads * head_dim], of `dynamic` columns.
namespace cellar::inline CELLAR_ABI::operation {

/// Whether a policy is served by the item of rows of that many columns.
template <class Policy, int Columns>
inline constexpr bool is_served = (scope_of<Policy> == scope::all_heads) == (Columns == dynamic);

/// Rows of consecutive tokens in f32: those of one KV head, or, of `dynamic` columns, of all of them.
template <offloading_scheme S, int Columns>
struct sealed_rows {
  static constexpr int value_columns = Columns == dynamic ? dynamic : S::value_dim;
  matrix_view<float const, Columns> keys;
  matrix_view<float const, value_columns> values = {};                   ///< None where values are in keys.
  matrix_view<float const, memory_map<S>::side_dim(2)> index_keys = {};  ///< Where the summary is of these.
  float const* attention = nullptr;                                      ///< To each of a head's tokens, where the summary observes.

  /// Of rows that lie in scratch, side after side, each packed at the start of room for `room` tokens of `heads` heads.
  CELLAR_HD static sealed_rows at(float const* scratch, i64 tokens, i64 room, i64 heads) {
    sealed_rows r{{scratch, tokens, heads * S::head_dim, heads * S::head_dim}};
    if constexpr (!memory_map<S>::values_in_keys) r.values = {scratch + room * heads * S::head_dim, tokens, heads * S::value_dim, heads * S::value_dim};
    if constexpr (memory_map<S>::is_indexed && Columns != dynamic)
      r.index_keys = {scratch + room * (memory_map<S>::side_dim(0) + memory_map<S>::side_dim(1)), tokens};
    return r;
  }
  /// The rows of the tokens first, ..., first + count - 1.
  CELLAR_HD sealed_rows some(i64 first, i64 count) const {
    auto const part = [&](auto const& x) { return std::remove_cvref_t<decltype(x)>{x.row(first), count, x.stride, x.dynamic_columns}; };
    sealed_rows r{part(keys)};
    if constexpr (!memory_map<S>::values_in_keys) r.values = part(values);
    if constexpr (memory_map<S>::is_indexed && Columns != dynamic) r.index_keys = part(index_keys);
    if (attention) r.attention = attention + first;
    return r;
  }
};

/// Builds the summaries of consecutive blocks.
///
/// Shapes      rows [blocks * block_tokens], of the blocks first, first + 1, ..., with their attention where the summary observes
/// Requires    pages hold the blocks; the summary is trained
/// Effects     writes their lanes of the tiles only; a body over a team
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void summarize(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, sealed_rows<S, Columns> const& rows) {
  using map = memory_map<S>;
  auto const& keys = [&]() -> auto const& {
    if constexpr (map::is_indexed)
      return rows.index_keys;
    else
      return rows.keys;
  }
  ();
  if constexpr (is_served<typename S::summary, Columns>)
    for (i64 b = 0; b < blocks;) {  // by tile: lanes of one tile are built in one run
      i64 const lane = (first + b) % map::tile_blocks;
      i64 const run = blocks - b < map::tile_blocks - lane ? blocks - b : map::tile_blocks - lane;
      std::remove_cvref_t<decltype(keys)> const some{keys.row(b * map::block_tokens), run * map::block_tokens, keys.stride, keys.dynamic_columns};
      auto const summary = to.summary(head, to.position(first + b));
      if constexpr (observing_summary<typename S::summary, S::head_dim>)
        summary.build(t, some, row_view<float const>{rows.attention + b * map::block_tokens, some.rows}, run, to.tile(first + b, head), int(lane));
      else
        summary.build(t, some, run, to.tile(first + b, head), int(lane));
      b += run;
    }
}

/// Encodes one block's keys and values into `target`. Codes of the first `kept` tokens stay, as far as they fill whole token groups.
///
/// Shapes      rows [block_tokens]
/// Effects     writes the rows of the policies of that scope only; a body over a team, without a barrier at its end
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void encode_block(Team& t, sequence_view<S> const& to, int head, i64 block, sealed_rows<S, Columns> const& rows, i64 kept,
                            block_parts<std::byte> const& target) {
  i64 const position = to.position(block);
  auto const encode = [&]<class Codec, int C>(Codec const& codec, matrix_view<float const, C> const& x, row_parts<std::byte> const& coded) {
    i64 const group = kept / Codec::token_group, token = group * Codec::token_group;
    if constexpr (is_served<Codec, Columns>)
      if (token < x.rows)
        codec.encode(t, matrix_view<float const, C>{x.row(token), x.rows - token, x.stride, x.dynamic_columns},
                     {coded.codes + group * coded.code_stride, coded.scales + group * coded.scale_stride, coded.code_stride, coded.scale_stride});
  };
  encode(to.key_codec(head, position + kept / S::key_codec::token_group * S::key_codec::token_group), rows.keys, target.keys);
  if constexpr (!memory_map<S>::values_in_keys)
    encode(to.value_codec(head, position + kept / S::value_codec::token_group * S::value_codec::token_group), rows.values, target.values);
}

/// Seals consecutive blocks in far memory that is written in place: builds their summaries, encodes their keys and values. Codes of the first `kept`
/// tokens of the first block stay.
///
/// Shapes      rows [blocks * block_tokens], of the blocks first, first + 1, ...
/// Requires    pages hold the blocks; policies are trained
/// Effects     writes tiles and far planes of those blocks only; a body over a team
/// Complexity  one reading of the rows, one writing of their codes
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void seal(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, sealed_rows<S, Columns> const& rows, i64 kept = 0) {
  constexpr i64 B = S::block_tokens;
  summarize(t, to, head, first, blocks, rows);
  for (i64 b = 0; b < blocks; ++b)
    encode_block(t, to, head, first + b, rows.some(b * B, B), b == 0 ? kept : 0,
                 to.far_block(logical_block(first + b), head < to.map.shape.kv_heads ? head : 0));
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
