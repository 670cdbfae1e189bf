#pragma once
#include <algorithm>

#include "cellar/operation/observe.hpp"
#include "cellar/operation/remainder.hpp"
#include "cellar/operation/score_levels.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Sizes of a decode step's scratch; all capacities, so that the step allocates nothing.
template <offloading_scheme S>
struct decode_workspace {
  i64 rows = 0;       ///< Query rows of a group: heads times query tokens of a sequence.
  i64 blocks = 0;     ///< Far blocks of a sequence.
  i64 selected = 0;   ///< Selected blocks of a (sequence, KV head).
  int heads = 1;      ///< KV heads.
  i64 run_bytes = 0;  ///< Planes of one (block, KV head) and its shared ones, where the tier is not read in place.
  i64 tokens = 1;     ///< Query tokens of a sequence.

  static constexpr i64 select_bytes =
      round_up(has_two_levels<S> && list_groups_bytes > i64(S::select::shared_bytes) ? list_groups_bytes : i64(S::select::shared_bytes), 16);
  CELLAR_HD score_workspace<S> score() const { return {memory_map<S>::is_indexed ? tokens : rows, S::select::reads_scores ? blocks : 0, heads}; }
  CELLAR_HD attend_workspace<S> attend() const { return {rows}; }
  CELLAR_HD i64 index_rows() const { return memory_map<S>::is_indexed ? tokens * scored_queries<S>(0) : 0; }
  /// Of queries, or of index queries and their weights.
  CELLAR_HD i64 query_bytes() const { return round_up(maximum{}(rows * S::head_dim, index_rows() * (memory_map<S>::scored_dim + 1)) * i64(sizeof(float)), 16); }
  CELLAR_HD i64 io_bytes() const { return query_bytes() + round_up(rows * S::value_dim * i64(sizeof(float)), 16); }  ///< Queries, then outputs.
  static constexpr i64 observation_bytes = evicts_by<typename S::outliers> ? round_up(observation::bytes, 16) : 0;
  static constexpr i64 class_bytes = class_workspace<S>::bytes();                         ///< Of estimate_remainder.
  CELLAR_HD i64 near_bytes() const { return reads_near<S> ? near_sums_bytes(rows) : 0; }  ///< Of near_log_sums.
  i64 worker_bytes() const {
    return round_up(
        io_bytes() + std::max(std::max(score().bytes() + select_bytes + class_bytes + near_bytes(), attend().bytes() + run_bytes), observation_bytes), 64);
  }
  /// 32-bit words of what a (sequence, KV head)'s rows sampled.
  CELLAR_HD i64 sample_words() const { return is_sampled<S> ? row_samples::words(rows, selected) : 0; }
  /// Where there are fewer (sequence, KV head) pairs than workers, they share the parts of each attention, which lie behind the workers' own scratch: a total
  /// for each pair, and the parts of a wave, some for each worker. Steps of many query tokens are not shared out.
  i64 shared_rows() const { return std::min<i64>(rows, memory_map<S>::values_in_keys ? 128 : 32); }  // one KV head may serve that many query heads
  i64 partial_bytes() const { return attend_partial<S>::bytes(shared_rows()); }
  i64 shared_parts(int workers) const { return workers > 1 ? std::min<i64>(8 * workers, (workers - 1) * attend_parts<S>(blocks)) : 0; }
  i64 shared_bytes(int workers) const { return (shared_parts(workers) + workers) * partial_bytes(); }
  i64 bytes(int workers) const { return round_up(worker_bytes() * workers + shared_bytes(workers), 64); }
};

/// Bytes of scratch that appending needs for each worker: keys and values of a page in f32, of all heads where something is stored for all of them, and
/// a block's planes where far memory is not written in place.
template <offloading_scheme S>
i64 append_workspace_bytes(model_shape const& shape) {
  using map = memory_map<S>;
  i64 const rows = map{shape}.page_floats() * i64(sizeof(float));
  return round_up(rows + (S::tier::is_directly_readable ? 0 : map{shape}.geometry().block_bytes()), 64);
}

/// Whether a prompt's attention is observed, for outliers or summaries.
template <offloading_scheme S>
inline constexpr bool observes_attention = attention_outlier_rule<typename S::outliers> || observing_summary<typename S::summary, S::head_dim>;

/// Scratch for what a prompt's last `observed` tokens asked, for one KV head, in f32: the attention to each token and what finding it takes, and all queries
/// where a policy learns from them.
template <offloading_scheme S>
i64 observation_floats(model_shape const& shape, i64 tokens, i64 observed) {
  i64 floats = 0;
  if constexpr (observes_attention<S>) floats += round_up(tokens, 16) + observed_rows * S::head_dim + ceil_div(observation::bytes, 4) + 16;
  if constexpr (query_trained<typename S::summary>) floats += round_up(observed * shape.group() * S::head_dim, 16);
  return floats;
}

/// Scratch of seal_prompt for one worker, in f32: the rows of a page, and of the whole prompt where a policy learns, unless they can be read in place
/// (f32 of one head); what learning needs; a block's planes where far memory is not written in place; and what the queries of `observed` tokens take.
template <offloading_scheme S>
i64 prompt_scratch_floats(model_shape const& shape, i64 tokens, scalar_type type, i64 observed = 0) {
  using map = memory_map<S>;
  map const sizes{shape};
  constexpr bool learns = trained<typename S::summary> || trained<typename S::key_codec> || trained<typename S::value_codec>;
  i64 const heads = map::has_shared ? shape.kv_heads : type == scalar_type::f32 ? 0 : 1;
  i64 const rows = heads * (map::page_tokens * map::token_channels + (learns ? tokens * std::max(S::head_dim, S::value_dim) : 0));
  i64 const bytes = sizes.train_scratch() + (S::tier::is_directly_readable ? 0 : sizes.geometry().block_bytes());
  i64 const outliers = S::outliers::keeps_outliers ? tokens / S::block_tokens + i64{S::block_tokens} * S::head_dim : 0;
  return round_up(std::max({rows, outliers, class_workspace<S>::words_to_learn(tokens / S::block_tokens)}), 16) +
         round_up(observation_floats<S>(shape, tokens, observed), 16) + ceil_div(bytes, i64(sizeof(float))) + (bytes > 0 ? 16 : 0);
}

/// Blocks that a step selects for a prompt of that length, at least one unless nothing may be selected.
template <offloading_scheme S>
constexpr i64 budget_blocks(budget const& b, i64 prompt_tokens) {
  i64 const tokens = b.fetched_tokens(prompt_tokens);
  return tokens > 0 ? std::max<i64>(1, tokens / S::block_tokens) : 0;
}

/// Far blocks of a sequence of that length: those before the window, and before the step's own tokens, which must stay visible to their queries. A
/// sealed block stays sealed, so a step has the larger of this and what it had; a scheme that keeps generated tokens seals the prompt's only.
template <offloading_scheme S>
constexpr i64 sealable_blocks(budget const& b, i64 length, i64 new_tokens) {
  return std::max<i64>(0, length - std::max(b.window, new_tokens) - b.sinks) / S::block_tokens;
}

/// Room for outliers that leave the window in a step, where others are evicted for them: a step that is longer than the window leaves more for the next.
template <offloading_scheme S>
constexpr i64 spare_outliers(limits const& l, budget const& b) {
  return evicts_by<typename S::outliers> && b.outliers > 0 ? ceil_div(2 * std::min(l.step_tokens, l.tokens), S::block_tokens) + 1 : 0;
}

/// Rows of the ring of near tokens (memory_map::tail_rows): what may lie between the sealed blocks and the end of a sequence. limits::generated_tokens of 0
/// is as many as limits::tokens.
template <offloading_scheme S>
constexpr i64 tail_rows(limits const& l, budget const& b) {
  i64 const generated = l.generated_tokens > 0 ? l.generated_tokens : l.tokens;
  i64 const window = std::min(b.window, l.tokens), step = std::min(l.step_tokens, l.tokens);
  return std::min((S::keeps_generated ? window + generated : std::max(window, step) + step) + S::block_tokens - 1, l.tokens);
}

/// True where a step reads every far block and needs no list of ids.
template <offloading_scheme S>
inline constexpr bool selects_everything = requires {
  requires S::select::is_everything;
};

/// True where no far block is ever selected: without dense layers, far memory is not needed.
template <offloading_scheme S>
inline constexpr bool selects_nothing = requires {
  requires S::select::is_nothing;
};

/// True where a selection serves more than one layer or step.
template <offloading_scheme S>
inline constexpr bool keeps_selections = S::reuse::layers > 1 || S::reuse::steps > 1;

/// Layers that select, the others take their ids.
template <offloading_scheme S>
constexpr i64 selecting_layers(model_shape const& shape, budget const& b) {
  return ceil_div(std::max(0, shape.layers - b.dense_layers), S::reuse::layers);
}

/// Whether a sequence's kept selection has served its steps. made_in: the step (sequence_step::number, counted from 1) that it was made in; 0: there is none.
template <offloading_scheme S>
CELLAR_HD constexpr bool is_selection_due(i64 made_in, i64 step) {
  return made_in == 0 || step - made_in >= S::reuse::steps;
}

/// The scratch of a decode step within these capacities.
template <offloading_scheme S>
decode_workspace<S> workspace_for(model_shape const& shape, limits const& l, budget const& b) {
  i64 const blocks = ceil_div(l.tokens, S::block_tokens);
  i64 const selected = selects_everything<S> ? 0 : typename S::select{}.with_budget(budget_blocks<S>(b, l.tokens)).max_selected(blocks);
  block_geometry const g = memory_map<S>{shape}.geometry();
  return {
      shape.group() * l.step_tokens, blocks, selected, shape.kv_heads, S::tier::is_directly_readable ? 0 : g.slice_bytes() + g.shared_bytes(), l.step_tokens};
}

/// Bytes of scratch that one call of any operation needs, for an executor of that many workers; 64-byte aligned memory serves all.
template <offloading_scheme S>
i64 workspace_bytes(model_shape const& shape, limits const& l, budget const& b, int workers) {
  return std::max(workspace_for<S>(shape, l, b).bytes(workers), workers * append_workspace_bytes<S>(shape));
}

}  // namespace cellar::operation
