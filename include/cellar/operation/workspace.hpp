#pragma once
#include <algorithm>

#include "cellar/operation/attend.hpp"
#include "cellar/operation/score.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Sizes of a decode step's scratch; all capacities, so that the step allocates nothing.
template <offloading_scheme S>
struct decode_workspace {
  i64 rows = 0;      ///< Query rows of a group: heads times query tokens of a sequence.
  i64 blocks = 0;    ///< Far blocks of a sequence.
  i64 selected = 0;  ///< Selected blocks of a (sequence, KV head).

  static constexpr i64 select_bytes = round_up(i64(S::select::shared_bytes), 16);
  score_workspace<S> score() const { return {rows, blocks}; }
  attend_workspace<S> attend() const { return {rows}; }
  i64 io_bytes() const { return 2 * round_up(rows * S::head_dim * i64(sizeof(float)), 16); }
  i64 worker_bytes() const { return round_up(io_bytes() + std::max(score().bytes() + select_bytes, attend().bytes()), 64); }
  i64 bytes(int workers) const { return worker_bytes() * workers; }
};

/// Bytes of scratch that appending needs for each worker: keys and values of a page in f32.
template <offloading_scheme S>
constexpr i64 append_workspace_bytes() {
  return 2 * i64(memory_map<S>::page_tokens) * S::head_dim * i64(sizeof(float));
}

/// Scratch of seal_prompt for one worker, in f32: nothing where rows are f32, else a page's rows, and all keys and values where a policy learns.
template <offloading_scheme S, storage_scalar T>
constexpr i64 prompt_scratch_floats(i64 tokens) {
  if constexpr (std::is_same_v<T, float>) return 0;
  constexpr bool learns_keys = trained<typename S::summary> || trained<typename S::key_codec>, learns_values = trained<typename S::value_codec>;
  return (2 * memory_map<S>::page_tokens + (learns_keys || learns_values ? tokens : 0)) * S::head_dim;
}

/// Blocks that a step selects for a prompt of that length, at least one unless nothing may be selected.
template <offloading_scheme S>
constexpr i64 budget_blocks(budget const& b, i64 prompt_tokens) {
  i64 const tokens = b.fetched_tokens(prompt_tokens);
  return tokens > 0 ? std::max<i64>(1, tokens / S::block_tokens) : 0;
}

/// True where a step reads every far block and needs no list of ids.
template <offloading_scheme S>
inline constexpr bool selects_everything = requires {
  requires S::select::is_everything;
};

/// The scratch of a decode step within these capacities.
template <offloading_scheme S>
decode_workspace<S> workspace_for(model_shape const& shape, limits const& l, budget const& b) {
  i64 const blocks = ceil_div(l.tokens, S::block_tokens);
  i64 const selected = selects_everything<S> ? 0 : typename S::select{}.with_budget(budget_blocks<S>(b, l.tokens)).max_selected(blocks);
  return {shape.group() * l.step_tokens, blocks, selected};
}

/// Bytes of scratch that one call of any operation needs, for an executor of that many workers; 64-byte aligned memory serves all.
template <offloading_scheme S>
i64 workspace_bytes(model_shape const& shape, limits const& l, budget const& b, int workers) {
  return workers * std::max(workspace_for<S>(shape, l, b).worker_bytes(), append_workspace_bytes<S>());
}

}  // namespace cellar::operation
