#pragma once
#include <algorithm>
#include <chrono>

#include "cellar/core/statistics.hpp"
#include "cellar/host/append.hpp"
#include "cellar/operation/workspace.hpp"

namespace cellar::inline CELLAR_ABI::host {

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

template <offloading_scheme S, class T>
void check_queries(memory_map<S> const& map, row_view<sequence_step const> steps, heads_view<T const> q, operation::decode_workspace<S> const& sizes) {
  check_steps(map, steps, q.tokens);
  expects(is_rows_of(q, map.shape.query_heads, S::head_dim), "queries and outputs must be [step tokens, query_heads, head_dim]");
  for (sequence_step const& step : steps)
    expects(step.new_tokens * map.shape.group() <= sizes.rows && step.sealed <= sizes.blocks,
            "decode_workspace: the step has more query rows or far blocks than the workspace was sized for");
}

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
/// Requires    workspace of sizes.worker_bytes() a worker; finite queries. A step of n query tokens selects once for all of them
/// Effects     writes ids and counts; allocates nothing. per_worker, where given, has one entry a worker
/// Errors      precondition_error, before anything is written, for a step beyond its memory or `sizes`
template <offloading_scheme S, storage_scalar T>
  requires(!operation::selects_everything<S>)
void select_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics* per_worker = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  detail::check_queries(map, steps, q, sizes);
  for (sequence_step const& step : steps)
    expects(typename S::select{}.with_budget(step.selected_blocks).max_selected(step.sealed) <= sizes.selected,
            "select_blocks: a step may select more blocks than decode_workspace::selected");
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
      if (scores.data) per_worker[worker].undefined_scores += std::count_if(scores.begin(), scores.end(), [](float x) { return x != x; });
    }
  });
}

/// Attends to sinks, the given far blocks and the tail.
///
/// Shapes      q, out [step tokens, query_heads, head_dim] | ids, counts as from select_blocks; `every`: all far blocks, ids and counts are ignored
/// Requires    workspace of sizes.worker_bytes() a worker; finite queries; ids ascending and below sealed
/// Errors      precondition_error, before anything is written, for a step beyond its memory or `sizes`
/// Effects     writes out; allocates nothing; bit-identical for any number of workers and any batch
/// Complexity  O(query rows * attended tokens * head_dim)
template <offloading_scheme S, storage_scalar T>
void attend_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   heads_view<T> out, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block const* ids, i64 const* counts,
                   bool every, statistics* per_worker = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  detail::check_queries(map, steps, q, sizes);
  detail::check_queries(map, steps, heads_view<T const>(out), sizes);
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
