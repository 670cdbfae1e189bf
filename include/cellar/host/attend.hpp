#pragma once
#include <algorithm>
#include <chrono>

#include "cellar/core/statistics.hpp"
#include "cellar/host/executor.hpp"
#include "cellar/operation/workspace.hpp"

namespace cellar::host {

namespace detail {

/// Adds the time since its construction to a sum; nothing where there is none.
class stopwatch {
 public:
  explicit stopwatch(bool runs) : runs_(runs) {
    if (runs_) start_ = clock::now();
  }
  double lap() {
    if (!runs_) return 0;
    auto const now = clock::now();
    double const seconds = std::chrono::duration<double>(now - start_).count();
    start_ = now;
    return seconds;
  }

 private:
  using clock = std::chrono::steady_clock;
  bool runs_;
  clock::time_point start_;
};

/// A group's queries in f32, times the softmax scale: row = token * group + head of the group.
template <int D, class T>
matrix_view<float const, D> gather_queries(heads_view<T const> q, sequence_step const& step, int kv_head, int group, float scale, float* to) {
  for (i64 i = 0; i < step.new_tokens; ++i)
    for (int h = 0; h < group; ++h)
      for (int c = 0; c < D; ++c) to[(i * group + h) * D + c] = to_float(q.row(step.first_row + i, kv_head * group + h)[c]) * scale;
  return {to, step.new_tokens * group};
}

}  // namespace detail

/// Scores and selects: the far blocks that each KV head of each sequence attends to.
///
/// Shapes      q [step tokens, query_heads, head_dim] | ids [sequences, kv_heads, selected] ascending, rest -1 | counts [sequences, kv_heads]
/// Requires    a step of n query tokens selects once for all of them; capacities as in `sizes`
/// Effects     writes ids and counts; allocates nothing. seconds, where given, has one entry a worker: {score, select}
template <offloading_scheme S, storage_scalar T>
void select_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics* per_worker = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  on.for_each(steps.count * heads, [&](i64 item, int worker) {
    sequence_step const& step = steps[item / heads];
    int const head = int(item % heads);
    sequence_view<S> const from{map, memory, step.slot, step.pages};
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    std::byte* const scratch = mine + sizes.io_bytes();
    detail::stopwatch watch(per_worker != nullptr);
    row_view<float const> scores{nullptr, step.sealed};
    serial_team t(scratch + sizes.score().bytes(), sizes.select_bytes);
    if constexpr (S::select::reads_scores) {
      auto const queries = detail::gather_queries<S::head_dim>(q, step, head, group, map.shape.scale(), reinterpret_cast<float*>(mine));
      if (step.sealed > 0) scores = operation::score(t, from, head, queries, step.sealed, sizes.score(), scratch);
    }
    double const scored = watch.lap();
    row_view<logical_block> const to{ids + item * sizes.selected, sizes.selected};
    i64 const count = typename S::select{}.with_budget(step.selected_blocks)(t, scores, to);
    for (i64 i = count; i < to.count; ++i) to[i] = logical_block{-1};
    counts[item] = count;
    if (per_worker) {
      per_worker[worker].seconds.score += scored;
      per_worker[worker].seconds.select += watch.lap();
    }
  });
}

/// Attends to sinks, the given far blocks and the tail.
///
/// Shapes      q, out [step tokens, query_heads, head_dim] | ids, counts as from select_blocks; `every`: all far blocks, ids and counts are ignored
/// Effects     writes out; allocates nothing; bit-identical for any number of workers and any batch
/// Complexity  O(query rows * attended tokens * head_dim)
template <offloading_scheme S, storage_scalar T>
void attend_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   heads_view<T> out, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block const* ids, i64 const* counts,
                   bool every, statistics* per_worker = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  on.for_each(steps.count * heads, [&](i64 item, int worker) {
    sequence_step const& step = steps[item / heads];
    int const head = int(item % heads);
    sequence_view<S> const from{map, memory, step.slot, step.pages};
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    auto* const rows = reinterpret_cast<float*>(mine);
    auto const queries = detail::gather_queries<S::head_dim>(q, step, head, group, map.shape.scale(), rows);
    matrix_view<float, S::head_dim> const result{rows + sizes.rows * S::head_dim, queries.rows};
    row_view<logical_block const> const chosen =
        every ? row_view<logical_block const>{} : row_view<logical_block const>{ids + item * sizes.selected, counts[item]};
    detail::stopwatch watch(per_worker != nullptr);
    serial_team t;
    operation::attend(t, from, head, step, chosen, every, queries, result, sizes.attend(), mine + sizes.io_bytes(), [&](bool begins) {
      if (!per_worker) return;
      auto& seconds = per_worker[worker].seconds;
      (begins ? seconds.attend : seconds.fetch) += watch.lap();
    });
    for (i64 i = 0; i < step.new_tokens; ++i)
      for (int h = 0; h < group; ++h)
        for (int c = 0; c < S::head_dim; ++c) out.row(step.first_row + i, head * group + h)[c] = from_float<T>(result(i * group + h, c));
    if (per_worker) {
      i64 const blocks = every ? step.sealed : counts[item];
      per_worker[worker].seconds.attend += watch.lap();
      per_worker[worker].fetched_blocks += blocks;
      per_worker[worker].moved_bytes += blocks * map.geometry().slice_bytes();
    }
  });
}

}  // namespace cellar::host
