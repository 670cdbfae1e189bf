#pragma once
#include <concepts>

#include "cellar/codec/concept.hpp"
#include "cellar/core/team.hpp"
#include "cellar/core/types.hpp"

/// What stays near, per block: enough to guess which blocks a query needs.
///
/// Summaries of tile_blocks consecutive blocks of one KV head are interleaved in a tile, so that neighbouring lanes read neighbouring bytes.
///
///     mean, tile_blocks = 4        channel 0             channel 1
///                              | b0 | b1 | b2 | b3 | b0 | b1 | b2 | b3 | ...
///
/// Life of a query group: queries (times the softmax scale) are prepared once (rotated, look-up tables); then every tile is scored.
///
/// Laws
///   score_tile gives every query and every built block of the tile a logit; lanes that were not built get unspecified finite or NaN values
///   a summary that cannot hold every finite f32 key has largest(channels): the cache refuses keys that are larger
///   is_upper_bound: that logit is at least q . k for every key k of the block
///   building a tile in one run or in several gives the same bytes (centres of block_mean, means of residual: those of the first run)
///   bodies over a team; score_tile leaves its scratch free for the next call (it synchronises before it returns)
namespace cellar::inline CELLAR_ABI {

/// The queries of one KV head after prepare, [count] records, and scratch shared by the team.
template <class Byte, int HeadDim>
struct prepared_queries {
  Byte* data = nullptr;
  i64 count = 0;
  std::byte* scratch = nullptr;  ///< scratch_bytes(head_dim), 16-byte aligned; contents are free between calls.

  template <detail::const_of<Byte> B>
  CELLAR_HD operator prepared_queries<B, HeadDim>() const {
    return {data, count, scratch};
  }
};

template <class S, int HeadDim>
concept has_build = requires(S const& s, serial_team& t, matrix_view<float const, HeadDim> keys, i64 blocks, std::byte* tile, int first_lane) {
  { s.build(t, keys, blocks, tile, first_lane) } -> std::same_as<void>;  // keys [blocks * block_tokens, head_dim] of lanes first_lane, ...
};
template <class S, int HeadDim>
concept has_prepare = requires(S const& s, serial_team& t, matrix_view<float const, HeadDim> queries, prepared_queries<std::byte, HeadDim> to, i64 n) {
  { s.prepared_bytes(n, n) } -> std::same_as<i64>;  // (queries, head_dim)
  { s.prepare(t, queries, to) } -> std::same_as<void>;
};
template <class S, int HeadDim>
concept has_score_tile = requires(S const& s, serial_team& t, prepared_queries<std::byte const, HeadDim> from, std::byte const* tile,
                                  matrix_view<float> scores) {
  { s.score_tile(t, from, tile, scores) } -> std::same_as<void>;  // scores [query, tile_blocks]: logits
};
/// Is built from a prompt's keys and the attention that they had from its queries, and never from generated ones.
template <class S, int HeadDim = 128>
concept observing_summary = requires(S const& s, serial_team& t, matrix_view<float const, HeadDim> keys, row_view<float const> attention, i64 blocks,
                                     std::byte* tile, int first_lane) {
  { S::reach } -> std::convertible_to<i64>;                                         // a query observes keys of fewer tokens before it, its own being 0
  { s.build(t, keys, attention, blocks, tile, first_lane) } -> std::same_as<void>;  // attention [blocks * block_tokens]
};
template <class S>
concept summary_facts = std::semiregular<S> && requires(S const& s, i64 channels, i64 head_dim) {
  { S::is_upper_bound } -> std::convertible_to<bool>;
  { S::tile_blocks } -> std::convertible_to<int>;
  { s.tile_bytes(channels) } -> std::same_as<i64>;
  { s.scratch_bytes(head_dim) } -> std::same_as<i64>;
};
template <class S, int HeadDim = 128>
concept block_summary = summary_facts<S> &&(has_build<S, HeadDim> || observing_summary<S, HeadDim>)&&has_prepare<S, HeadDim>&& has_score_tile<S, HeadDim>;

namespace detail {

/// Channels of what a summary is made of and asked by: the keys', or those of index keys.
template <class S, int HeadDim>
inline constexpr int scored_dim = HeadDim;
template <class S, int HeadDim>
  requires requires { S::index_dim; }
inline constexpr int scored_dim<S, HeadDim> = S::index_dim;

}  // namespace detail

/// Is built from index keys, one a token and KV head, and asked by index_heads index queries for each query token and KV head, with a weight each: a model's
/// own indexer. The engine supplies them beside keys and queries.
///
/// Laws  score_tile gives one logit for each query token; a member scores the lanes rank, rank + size, ...
template <class S>
concept indexed_summary = summary_facts<S> && requires {
  { S::index_heads } -> std::convertible_to<int>;
  { S::index_dim } -> std::convertible_to<int>;
} && has_build<S, S::index_dim> && has_score_tile<S, S::index_dim> && requires(S const& s, serial_team& t, matrix_view<float const, S::index_dim> queries,
                                                                               float const* weights, prepared_queries<std::byte, S::index_dim> to, i64 n) {
  { s.prepared_bytes(n, n) } -> std::same_as<i64>;               // (query tokens, index_dim)
  { s.prepare(t, queries, weights, to) } -> std::same_as<void>;  // queries, weights [tokens * index_heads]
};

/// Either, for keys of HeadDim channels; what each needs stands first, for the compiler to name what is missing.
template <class S, int HeadDim>
concept any_summary = summary_facts<S> && has_score_tile<S, detail::scored_dim<S, HeadDim>> &&(indexed_summary<S> || block_summary<S, HeadDim>);

/// Says where its scores lie at most, which a coarser level covers (two_level): in a box, the low and the high of each channel.
///
/// It names itself, as a plain_codec does.
///
/// Laws  the score of a lane that was built is at most the sum over channels of max(q * low, q * high), but for the rounding of its own sums of such products:
///       at most 4 (head_dim + 32) 2^-24 |q| |x|, x the longest of the box
template <class S, int HeadDim = 128>
concept boxed_summary = block_summary<S, HeadDim> && std::same_as<typename S::boxes_of, S> &&
    requires(S const& s, serial_team& t, std::byte const* tile, int lane, float* low, float* high) {
  { s.template box_of<HeadDim>(t, tile, lane, low, high) } -> std::same_as<void>;  // [head_dim] each; one member's work
};

/// An upper bound that comes to hold for one box after the other.
///
/// Laws  after cover, a lane's score for any q is at least q . x + slack |q| for every x of the boxes that it has covered since is_first, and that in f32 as
///       score_tile rounds
template <class S, int HeadDim = 128>
concept covering_summary = block_summary<S, HeadDim> && S::is_upper_bound &&
    requires(S const& s, serial_team& t, float const* low, float const* high, float slack, std::byte* tile, int lane, bool is_first) {
  { s.template cover<HeadDim>(t, low, high, slack, tile, lane, is_first) } -> std::same_as<void>;  // one member's work, on that lane alone
};

namespace detail {

/// build, of what covers: the box around each block's keys.
template <class S, team Team, int D>
CELLAR_HD void build_boxes(S const& summary, Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) {
  i64 const tokens = keys.rows / blocks;
  for (i64 b = t.rank(); b < blocks; b += t.size()) {
    float low[D], high[D];
    for (int c = 0; c < D; ++c) {
      low[c] = infinity;
      high[c] = -infinity;
      for (i64 r = b * tokens; r < (b + 1) * tokens; ++r) {
        low[c] = keys(r, c) < low[c] ? keys(r, c) : low[c];
        high[c] = keys(r, c) > high[c] ? keys(r, c) : high[c];
      }
    }
    summary.template cover<D>(t, low, high, 0, tile, first_lane + int(b), true);
  }
}

}  // namespace detail

/// Two levels: coarse scores of groups of group_blocks consecutive blocks tell of which groups the fine level is asked; the other blocks score -infinity.
///
/// Laws  score_tile is the fine level of all blocks; score_group gives a group the same bits
///       rule::is_exact: a group's coarse score is no number, or at least the fine score of each of its blocks
template <class S, int HeadDim = 128>
concept two_level_summary = block_summary<S, HeadDim> &&
    requires(S const& s, serial_team& t, prepared_queries<std::byte const, HeadDim> from, std::byte const* tile, int group, matrix_view<float> scores, i64 n) {
  { S::group_blocks } -> std::convertible_to<int>;                  // divides tile_blocks
  { S::rule::is_exact } -> std::convertible_to<bool>;               // groups whose bound reaches the k-th best score so far follow the first ones
  { S::rule::first(n, n) } -> std::same_as<i64>;                    // (groups, groups that what is selected would fill): asked first, by highest coarse score
  { s.score_groups(t, from, tile, scores) } -> std::same_as<void>;  // scores [query, tile_blocks / group_blocks]
  { s.score_group(t, from, tile, group, scores) } -> std::same_as<void>;  // scores [query, group_blocks]
};

namespace detail {

/// What a score's rounding in f32 is at most, of |q| |x|: 4 (head_dim + 32) 2^-24.
CELLAR_HD constexpr float score_rounding(int head_dim) { return 4.0f * float(head_dim + 32) * 0x1p-24f; }

/// The part of a summary whose prepared queries are the queries themselves, in f32: (query, channel).
struct plain_queries {
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * head_dim * i64(sizeof(float)); }
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const q = reinterpret_cast<float*>(to.data);
    i64 const channels = queries.columns();
    for (i64 i = t.rank(); i < queries.rows * channels; i += t.size()) q[i] = queries(i / channels, i % channels);
  }
};

}  // namespace detail

/// A query row's part in its chances of sampling keys.
struct sampling_row {
  float common;  ///< Its product with what keys are hashed around.
  float length;
};

/// Whose scores are draws: a query row samples a one-token block or does not, and the exact product of the two tells how likely that was.
///
/// Laws  is_sampled(score): what score_tile gave one row and one block says that it was sampled
///       over the draws that the summary could have made, a block is sampled with the chance exp(log_chance(row_of(query), query . key, length_of(its lane)));
///       log_chance is finite
template <class S, int HeadDim = 128>
concept sampling_summary = requires(S const& s, float score, float const* query, std::byte const* tile, int lane, sampling_row row, float product,
                                    float length) {
  { S::is_sampled(score) } -> std::same_as<bool>;
  { s.template row_of<HeadDim>(query) } -> std::same_as<sampling_row>;  // of the bound summary; one member's work
  { s.length_of(tile, lane) } -> std::same_as<float>;
  { S::log_chance(row, product, length) } -> std::same_as<float>;
};

/// Needs to know how many tokens a block has beyond what build sees.
template <class S>
concept block_aware = requires(S const& s, int block_tokens) {
  { s.of_blocks(block_tokens) } -> std::same_as<S>;
};

/// Sorts blocks into classes that it cannot tell apart.
///
/// Laws  class_of is below classes(), whatever the tile holds; all blocks of a class get one logit; a state is not needed
template <class S>
concept classifies_blocks = summary_facts<S> &&(scope_of<S> == scope::one_head) && requires(S const& s, std::byte const* tile, int lane) {
  { S::classes() } -> std::same_as<int>;  // constexpr
  { s.class_of(tile, lane) } -> std::same_as<int>;
};

/// A linear map of keys that is learnt from a prompt, and what queries become so that products stay: summary::mapped keeps a summary of mapped keys.
///
/// Laws  q . k = sum over i < width of of_query(q, i) * of_key(k, i), plus common(q), as far as the map keeps it: the rest is what the method gives up
///       keys whose channels are at most largest(most) have mapped ones of at most `most`
///       is_shift, where it says so: of_key(k, i) = k[i] - a constant, of_query(q, i) = q[i]; common is a sum of head_dim products, in any order
template <class M, int HeadDim = 128>
concept key_map = trained<M> && std::is_trivially_copyable_v<M> && requires(M const& m, float const* x, float most, int i) {
  { M::adds_common } -> std::convertible_to<bool>;  // false: common is 0
  { M::width(HeadDim) } -> std::convertible_to<int>;
  { m.template of_key<HeadDim>(x, i) } -> std::same_as<float>;
  { m.template of_query<HeadDim>(x, i) } -> std::same_as<float>;
  { m.template common<HeadDim>(x) } -> std::same_as<float>;
  { m.largest(most) } -> std::same_as<float>;
};

}  // namespace cellar
