#pragma once
#include <algorithm>

#include "cellar/operation/attend.hpp"
#include "cellar/operation/score.hpp"

namespace cellar::operation {

/// Sizes of a decode step's scratch; all capacities, so that the step allocates nothing.
template <offloading_scheme S>
struct decode_workspace {
  i64 rows = 0;      ///< Query rows of a group: heads times query tokens of a sequence.
  i64 blocks = 0;    ///< Far blocks of a sequence.
  i64 selected = 0;  ///< Selected blocks of a (sequence, KV head).

  static constexpr i64 select_bytes = 2048;  ///< Shared scratch of a selector.
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

}  // namespace cellar::operation
