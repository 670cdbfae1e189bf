#pragma once
#include <concepts>

#include "cellar/core/team.hpp"
#include "cellar/core/types.hpp"

/// From scores to block ids, in two policies: how a group's query heads become one score per block, and which blocks are taken.
///
/// Laws of group_reduction
///   out[b] depends on the multiset of rows, not on their order, up to rounding; one row ranks as itself
/// Laws of block_selector
///   ids are ascending and unique, count <= max_selected(blocks); equal scores go to the lowest id; NaN ranks below every number
///   the result is a function of the scores alone: no team size, order or batch changes it
///   optional: is_everything = true where every block is taken (no ids are kept), is_nothing = true where none ever is (no far memory is kept)
///   with_budget(k).max_selected(blocks) <= max(k, 0) unless the selector ignores budgets; k >= blocks selects every block that can be
namespace cellar::inline CELLAR_ABI {

template <class R>
concept group_reduction = std::semiregular<R> && requires(R const& r, serial_team& t, matrix_view<float const> rows, row_view<float> out) {
  { R::acts_on_queries } -> std::convertible_to<bool>;  // rows are queries [query, channel], before prepare; else scores [query, block]
  { r(t, rows, out) } -> std::same_as<void>;
};

/// What the query rows of a group attend to of what is near.
struct near_attention {
  float const* log_sums = nullptr;  ///< [rows]: log(sum of exp(logit)) of each row; null: nothing is near.
  float block_tokens = 1;           ///< That a far block's logit stands for.
};

/// Weighs far blocks against what is near.
template <class R>
concept reduction_beside_near = group_reduction<R> && R::reads_near &&
    requires(R const& r, serial_team& t, matrix_view<float const> rows, row_view<float> out, near_attention const& near) {
  { r(t, rows, out, near) } -> std::same_as<void>;
};

/// Scores each block by its own logits alone (or by queries that are reduced before), so that larger ones give no smaller score: bounds of logits reduce to a
/// bound of the score, in f32 too.
template <class R>
concept blockwise_reduction = group_reduction<R> && R::is_blockwise;

template <class S>
concept block_selector = std::semiregular<S> && requires(S const& s, serial_team& t, row_view<float const> scores, row_view<logical_block> ids, i64 k) {
  { S::reads_scores } -> std::convertible_to<bool>;  // false: scoring is skipped
  { S::shared_bytes } -> std::convertible_to<i64>;   // what it takes of the team's shared memory
  { s.with_budget(k) } -> std::same_as<S>;           // at most that many blocks
  { s.max_selected(k) } -> std::same_as<i64>;        // of that many blocks: known on the host, an allocation size
  { s(t, scores, ids) } -> std::same_as<i64>;        // the count, the same on every member; ids.count >= max_selected(scores.count)
};

/// Reads scores as logarithms of shares of all attention, near and far, as a reduction_beside_near makes them.
template <class S>
concept selector_of_shares = block_selector<S> && S::reads_shares;

/// Takes blocks of the max_selected highest scores, and how many of them depends on these scores alone: lower ones need not be known.
template <class S>
concept selector_of_highest = block_selector<S> && S::takes_highest;

}  // namespace cellar
