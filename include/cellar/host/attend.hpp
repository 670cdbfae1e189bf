#pragma once
#include <algorithm>
#include <chrono>

#include "cellar/core/statistics.hpp"
#include "cellar/host/append.hpp"
#include "cellar/operation/workspace.hpp"

namespace cellar::inline CELLAR_ABI::host {

namespace detail {

/// Seconds since its construction or the last lap; 0 where it does not run.
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
void check_queries(memory_map<S> const& map, row_view<sequence_step const> steps, heads_view<T const> q, operation::decode_workspace<S> const& sizes,
                   int dim = S::head_dim) {
  check_steps(map, steps, q.tokens);
  expects(is_rows_of(q, map.shape.query_heads, dim), "queries must be [step tokens, query_heads, head_dim], outputs [step tokens, query_heads, value_dim]");
  for (sequence_step const& step : steps)
    expects(step.new_tokens * map.shape.group() <= sizes.rows && step.sealed <= sizes.blocks,
            "decode_workspace: the step has more query rows or far blocks than the workspace was sized for");
}

/// Samples, of each row, of blocks that are not among the chosen.
///
/// Shapes  scores [rows, blocks]; chosen ascending
template <offloading_scheme S>
i64 count_lost(matrix_view<float const> scores, row_view<logical_block const> chosen) {
  i64 lost = 0, next = 0;
  for (i64 b = 0; b < scores.columns(); ++b) {
    if (next < chosen.count && number(chosen[next]) == b) {
      ++next;
      continue;
    }
    for (i64 r = 0; r < scores.rows; ++r) lost += S::summary::is_sampled(scores(r, b));
  }
  return lost;
}

/// As check_queries, of what a selection is made by.
template <offloading_scheme S, class T>
void check_scoring(memory_map<S> const& map, row_view<sequence_step const> steps, index_queries<T> const& q, operation::decode_workspace<S> const& sizes) {
  i64 const heads = map.shape.kv_heads * scored_queries<S>(map.shape.group());
  check_steps(map, steps, q.queries.tokens);
  expects(is_rows_of(q.queries, int(heads), map.scored_dim) && q.weights.data && q.weights.rows == q.queries.tokens && q.weights.columns() == heads,
          "index queries must be [step tokens, kv_heads * index_heads, index_dim], their weights [step tokens, kv_heads * index_heads]");
  for (sequence_step const& step : steps)
    expects(step.new_tokens <= sizes.tokens && step.sealed <= sizes.blocks,
            "decode_workspace: the step has more query tokens or far blocks than the workspace was sized for");
}
template <offloading_scheme S, class T>
void check_scoring(memory_map<S> const& map, row_view<sequence_step const> steps, heads_view<T const> q, operation::decode_workspace<S> const& sizes) {
  check_queries(map, steps, q, sizes);
}

/// A group's queries in f32, times a scale: row = token * group + head of the group.
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
/// Shapes      q [step tokens, query_heads, head_dim], or index queries | ids [sequences, kv_heads, selected] ascending, rest -1 | counts [sequences, kv_heads]
/// Requires    workspace of sizes.bytes(workers), 64-byte aligned; finite queries. A step of n query tokens selects once for all of them;
///             rests, where the scheme weighs them, [sequences, kv_heads, decode_workspace::rows], their sums only for remainders by class; samples,
///             where it samples, [sequences, kv_heads, decode_workspace::sample_words()]
/// Effects     writes ids, counts, rests.part and samples; allocates nothing. per_worker, where given, has one entry a worker
/// Errors      precondition_error, before anything is written, for a step beyond its memory or `sizes`
template <offloading_scheme S, storage_scalar T>
  requires(!operation::selects_everything<S>)
void select_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps,
                   scoring_queries<S, T> const& q, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts,
                   statistics* per_worker = nullptr, operation::attend_rest<S> const& rests = {}, [[maybe_unused]] std::uint32_t* samples = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  i64 const scored_rows = scores_of_token<S>(group);  // of a query token
  detail::check_scoring(map, steps, q, sizes);
  for (sequence_step const& step : steps)
    expects(typename S::select{}.with_budget(step.selected_blocks).max_selected(step.sealed) <= sizes.selected,
            "select_blocks: a step may select more blocks than decode_workspace::selected");
  auto const weights_in = [&](std::byte* mine) { return reinterpret_cast<float*>(mine) + sizes.index_rows() * memory_map<S>::scored_dim; };
  // Queries in the scratch `mine`, and weights behind those of an index.
  auto const queries_of = [&](i64 item, std::byte* mine) {
    sequence_step const& step = steps[item / heads];
    auto* const to = reinterpret_cast<float*>(mine);
    if constexpr (memory_map<S>::is_indexed) {
      int const each = S::summary::index_heads, first = int(item % heads) * each;
      for (i64 i = 0; i < step.new_tokens; ++i) std::copy_n(&q.weights(step.first_row + i, first), each, weights_in(mine) + i * each);
      return detail::gather_queries<memory_map<S>::scored_dim>(q.queries, step, int(item % heads), each, 1.0f, to);
    } else {
      return detail::gather_queries<S::head_dim>(q, step, int(item % heads), group, map.shape.scale(), to);
    }
  };
  auto const view_of = [&](i64 item) { return sequence_view<S>{map, memory, steps[item / heads].slot, steps[item / heads].pages}; };
  auto const budget_of = [&](i64 item) {  // blocks, of those that may be selected
    sequence_step const& step = steps[item / heads];
    return typename S::select{}.with_budget(std::min(step.selected_blocks, step.sealed - view_of(item).outliers(int(item % heads)).count));
  };
  auto const rows_of = [&](i64 item) { return S::reduce::acts_on_queries ? i64{1} : steps[item / heads].new_tokens * scored_rows; };
  // Of queries in the scratch `mine`, where the reduction reads them.
  auto const near_sums_of = [&](serial_team& t, i64 item, auto const& queries, std::byte* mine) -> float const* {
    if constexpr (operation::reads_near<S>)
      return operation::near_log_sums(t, view_of(item), int(item % heads), steps[item / heads], queries, group,
                                      mine + sizes.io_bytes() + sizes.score().bytes() + sizes.select_bytes + sizes.class_bytes);
    return nullptr;
  };
  // What follows the scores of a (sequence, KV head): `mine` is the scratch that has them.
  auto const select_from = [&](serial_team& t, i64 item, std::byte* mine, row_view<float const> scores, double scored, detail::stopwatch& watch, int worker) {
    sequence_step const& step = steps[item / heads];
    int const head = int(item % heads);
    auto const from = view_of(item);
    row_view<logical_block> const to{ids + item * sizes.selected, sizes.selected};
    i64 const count = budget_of(item)(t, scores, to);
    for (i64 i = count; i < to.count; ++i) to[i] = logical_block{-1};
    counts[item] = count;
    if constexpr (operation::weighs_rest<S>)
      if (rests.part.states)
        operation::estimate_remainder(t, from, head, step,
                                      matrix_view<float>{sizes.score().scores(mine + sizes.io_bytes()), step.new_tokens * group, sizes.score().padded_blocks()},
                                      row_view<logical_block const>{to.data, count}, rests.part.from_row(item * sizes.rows),
                                      mine + sizes.io_bytes() + sizes.score().bytes() + sizes.select_bytes);
    if constexpr (operation::is_sampled<S>)
      if (samples) {
        matrix_view<float const> const rows{sizes.score().logits(mine + sizes.io_bytes()), step.new_tokens * group, sizes.score().padded_blocks(), step.sealed};
        operation::mark_samples(t, from, rows, row_view<logical_block const>{to.data, count}, sizes.selected, samples + item * sizes.sample_words());
        if (per_worker) per_worker[worker].lost_samples += detail::count_lost<S>(rows, row_view<logical_block const>{to.data, count});
      }
    if (per_worker) {
      per_worker[worker].seconds.score += scored;
      per_worker[worker].seconds.select += watch.lap();
      if (scores.data) {
        if constexpr (operation::has_two_levels<S>)
          per_worker[worker].scored_blocks += sizes.score().levels(mine + sizes.io_bytes()).counts[1];
        else
          per_worker[worker].scored_blocks += step.sealed;
        per_worker[worker].undefined_scores += std::count_if(scores.begin(), scores.end(), [](float x) { return x != x; }) - from.outliers(head).count;
      }
    }
  };
  auto const team_in = [&](std::byte* mine) { return serial_team(mine + sizes.io_bytes() + sizes.score().bytes(), sizes.select_bytes, on.kernels()); };
  i64 const items = steps.count * heads;
  if constexpr (S::select::reads_scores)
    if (items < on.workers()) {  // a region of the scratch for each item, and all workers score each item's tiles: a score does not depend on which does
      auto const region = [&](i64 item) { return workspace + item * sizes.worker_bytes(); };
      auto const scratch_of = [&](i64 item) { return region(item) + sizes.io_bytes(); };
      constexpr i64 run = ceil_div(2048, memory_map<S>::tile_blocks) * memory_map<S>::tile_blocks;
      i64 most_runs = 0;
      for (sequence_step const& step : steps) most_runs = std::max(most_runs, ceil_div(step.sealed, run));
      on.for_each(items, [&](i64 item, int worker) {
        detail::stopwatch watch(per_worker != nullptr);
        auto t = team_in(region(item));
        if (steps[item / heads].sealed > 0)
          operation::prepare_scores(t, view_of(item), int(item % heads), queries_of(item, region(item)), sizes.score(), scratch_of(item),
                                    weights_in(region(item)));
        if (per_worker) per_worker[worker].seconds.score += watch.lap();
      });
      // score(team, item, prepared, first, last): by runs of what each item has
      auto const share_out = [&](auto const& score) {
        on.for_each(items * most_runs, [&](i64 unit, int worker) {
          i64 const item = unit / most_runs, first = unit % most_runs * run, sealed = steps[item / heads].sealed;
          if (first >= sealed) return;
          detail::stopwatch watch(per_worker != nullptr);
          serial_team t(nullptr, 0, on.kernels());
          auto prepared = sizes.score().prepared(scratch_of(item), steps[item / heads].new_tokens * scored_rows);
          prepared.scratch = sizes.score().prepared(scratch_of(worker), 0).scratch;  // the worker's own
          score(t, item, prepared, first, std::min(sealed, first + run));
          if (per_worker) per_worker[worker].seconds.score += watch.lap();
        });
      };
      if constexpr (operation::has_two_levels<S>) {
        share_out([&](serial_team& t, i64 item, auto const& prepared, i64 first, i64 last) {
          operation::score_groups(t, view_of(item), int(item % heads), prepared, first, last, sizes.score(), scratch_of(item));
        });
        for (int round = 0; round < operation::score_rounds<S>; ++round) {
          on.for_each(items, [&](i64 item, int worker) {
            detail::stopwatch watch(per_worker != nullptr);
            auto t = team_in(region(item));
            if (i64 const sealed = steps[item / heads].sealed; sealed > 0)
              operation::list_groups(t, view_of(item), int(item % heads), round, rows_of(item), sealed, budget_of(item).max_selected(sealed), sizes.score(),
                                     scratch_of(item));
            if (per_worker) per_worker[worker].seconds.score += watch.lap();
          });
          share_out([&](serial_team& t, i64 item, auto const& prepared, i64 first, i64 last) {
            constexpr i64 group_blocks = S::summary::group_blocks;  // a run of blocks is one of as many groups of the list
            operation::score_listed(t, view_of(item), int(item % heads), prepared, first / group_blocks, ceil_div(last, group_blocks), sizes.score(),
                                    scratch_of(item));
          });
        }
      } else {
        share_out([&](serial_team& t, i64 item, auto const& prepared, i64 first, i64 last) {
          operation::score_tiles(t, view_of(item), int(item % heads), prepared, first, last, sizes.score(), scratch_of(item));
        });
      }
      on.for_each(items, [&](i64 item, int worker) {
        detail::stopwatch watch(per_worker != nullptr);
        auto t = team_in(region(item));
        row_view<float const> scores{nullptr, steps[item / heads].sealed};
        if (scores.count > 0)
          scores = operation::reduce_scores(t, view_of(item), int(item % heads), rows_of(item), scores.count, sizes.score(), scratch_of(item),
                                            near_sums_of(t, item, queries_of(item, region(item)), region(item)));
        double const reduced = watch.lap();
        select_from(t, item, region(item), scores, reduced, watch, worker);
      });
      return;
    }
  on.for_each(items, [&](i64 item, int worker) {
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    sequence_step const& step = steps[item / heads];
    detail::stopwatch watch(per_worker != nullptr);
    row_view<float const> scores{nullptr, step.sealed};
    auto t = team_in(mine);
    if constexpr (S::select::reads_scores) {
      auto const queries = queries_of(item, mine);
      std::byte* const scratch = mine + sizes.io_bytes();
      if constexpr (operation::has_two_levels<S>) {
        if (step.sealed > 0) {
          int const head = int(item % heads);
          auto const from = view_of(item);
          auto const prepared = operation::prepare_scores(t, from, head, queries, sizes.score(), scratch);
          operation::score_groups(t, from, head, prepared, 0, step.sealed, sizes.score(), scratch);
          for (int round = 0; round < operation::score_rounds<S>; ++round) {
            auto lister = team_in(mine);
            operation::list_groups(lister, from, head, round, prepared.count, step.sealed, budget_of(item).max_selected(step.sealed), sizes.score(), scratch);
            operation::score_listed(t, from, head, prepared, 0, step.sealed, sizes.score(), scratch);
          }
          scores = operation::reduce_scores(t, from, head, prepared.count, step.sealed, sizes.score(), scratch);
        }
      } else {
        if (step.sealed > 0)
          scores = operation::score(t, view_of(item), int(item % heads), queries, step.sealed, sizes.score(), scratch, weights_in(mine),
                                    near_sums_of(t, item, queries, mine));
      }
    }
    double const scored = watch.lap();
    select_from(t, item, mine, scores, scored, watch, worker);
  });
}

/// Attends to sinks, the given far blocks and the tail.
///
/// Shapes      q [step tokens, query_heads, head_dim], out of value_dim | ids, counts as from select_blocks; `every`: all far blocks, ids and counts are
///             ignored | resident, for tiers not read in place, [sequences, kv_heads, selected] beside ids; null: nothing is | rests, samples as from
///             select_blocks
/// Requires    workspace of sizes.bytes(workers), 64-byte aligned; finite queries; ids ascending and below sealed
/// Errors      precondition_error, before anything is written, for a step beyond its memory or `sizes`; those of the tier
/// Effects     writes out and rests.missed, this unless `every`; allocates nothing; bit-identical for any number of workers and any batch
/// Complexity  O(query rows * attended tokens * (head_dim + value_dim))
template <offloading_scheme S, storage_scalar T>
void attend_blocks(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   heads_view<T> out, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block const* ids, i64 const* counts,
                   bool every, statistics* per_worker = nullptr, resident_runs const* resident = nullptr, operation::attend_rest<S> const& rests = {},
                   [[maybe_unused]] std::uint32_t const* samples = nullptr) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  detail::check_queries(map, steps, q, sizes);
  detail::check_queries(map, steps, heads_view<T const>(out), sizes, S::value_dim);
  expects(!operation::is_sampled<S> || every || samples, "attend_blocks: the scheme weighs what was sampled: pass the samples that select_blocks wrote");
  using partial = operation::attend_partial<S>;
  auto const geometry = map.geometry();
  i64 const slice_bytes = geometry.slice_bytes(), shared_bytes = geometry.shared_bytes();
  auto const chosen_of = [&](i64 item) {
    return every ? row_view<logical_block const>{} : row_view<logical_block const>{ids + item * sizes.selected, counts[item]};
  };
  auto const view_of = [&](i64 item) { return sequence_view<S>{map, memory, steps[item / heads].slot, steps[item / heads].pages}; };
  // run(team, view, queries, far, on_decode) of a (sequence, KV head), in a worker's scratch; counts what it does.
  auto const work_on = [&](i64 item, int worker, auto const& run) {
    sequence_step const& step = steps[item / heads];
    int const head = int(item % heads);
    auto const from = view_of(item);
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    auto const queries = detail::gather_queries<S::head_dim>(q, step, head, group, map.shape.scale(), reinterpret_cast<float*>(mine));
    auto const chosen = chosen_of(item);
    detail::stopwatch watch(per_worker != nullptr);
    serial_team t(nullptr, 0, on.kernels());
    [[maybe_unused]] i64 const blocks = operation::attended_blocks(from, step, chosen, every);
    [[maybe_unused]] std::byte* const slice_room = mine + sizes.io_bytes() + sizes.attend().bytes();
    i64 moved = 0, fetched = 0;
    auto const far = [&](i64 i, logical_block block) -> block_parts<std::byte const> {
      ++fetched;
      if constexpr (S::tier::is_directly_readable) {
        moved += slice_bytes + shared_bytes;
        constexpr i64 ahead = 16;  // blocks that are on their way while this one is decoded
        if (!operation::attends_in_place<S> && i + ahead < blocks) {
          auto const later = from.far_block(every ? logical_block(i + ahead) : chosen[i + ahead], head);
          if constexpr (S::layout::is_run_contiguous && scope_of<typename S::key_codec> == scope::one_head) {
            prefetch(t, later.keys.codes, slice_bytes);
          } else {
            prefetch(t, later.keys.codes, i64{S::block_tokens} / S::key_codec::token_group * later.keys.code_stride);
            prefetch(t, later.values.codes, i64{S::block_tokens} / S::value_codec::token_group * later.values.code_stride);
          }
        }
        return from.far_block(block, head);
      } else {
        resident_runs runs = every || !resident ? resident_runs{} : resident[item * sizes.selected + i];
        auto const at = from.far_layout().resolve(block);
        auto const fetch = [&](std::byte const*& run_at, int which, i64 bytes, std::byte* room) {
          if (run_at || bytes == 0) return;
          memory.tier->fetch(memory.layer, at, which, {room, bytes});
          run_at = room;
          moved += bytes;
        };
        fetch(runs.slice, head, slice_bytes, slice_room);
        fetch(runs.shared, heads, shared_bytes, slice_room + slice_bytes);
        return block_of_runs(geometry, runs.slice, runs.shared);
      }
    };
    run(t, from, queries, far, [&](bool begins) {
      if (!per_worker) return;
      auto& seconds = per_worker[worker].seconds;
      (begins ? seconds.attend : seconds.fetch) += watch.lap();
    });
    if (per_worker) {
      per_worker[worker].seconds.attend += watch.lap();
      per_worker[worker].fetched_blocks += fetched;
      per_worker[worker].moved_bytes += moved;
    }
  };
  auto const write_out = [&](i64 item, matrix_view<float const, S::value_dim> result) {
    sequence_step const& step = steps[item / heads];
    for (i64 i = 0; i < step.new_tokens; ++i)
      for (int h = 0; h < group; ++h)
        for (int c = 0; c < S::value_dim; ++c) out.row(step.first_row + i, int(item % heads) * group + h)[c] = from_float<T>(result(i * group + h, c));
  };
  auto const result_in = [&](std::byte* mine, i64 item) {
    return matrix_view<float, S::value_dim>{reinterpret_cast<float*>(mine + sizes.query_bytes()), steps[item / heads].new_tokens * group};
  };
  auto const rest_of = [&](i64 item) { return every ? operation::attend_rest<S>{} : rests.from_row(item * sizes.rows); };
  auto const samples_of = [&]([[maybe_unused]] i64 item) {
    if constexpr (operation::is_sampled<S>)
      if (!every) return operation::row_samples{samples + item * sizes.sample_words(), sizes.selected};
    return operation::row_samples{};
  };

  auto const parts_of = [&](i64 item) {
    return operation::attend_parts<S>(operation::attended_blocks(view_of(item), steps[item / heads], chosen_of(item), every));
  };
  i64 const items = steps.count * heads;
  i64 most_parts = 1;
  bool are_shared = items < on.workers();
  for (i64 item = 0; item < items && are_shared; ++item) {
    most_parts = std::max(most_parts, parts_of(item));
    are_shared = steps[item / heads].new_tokens * group <= sizes.shared_rows();
  }
  if (are_shared && most_parts > 1) {  // in waves of parts, each folded into its item's total in ascending order, as `attend` does
    std::byte* const memory = workspace + on.workers() * sizes.worker_bytes();
    auto const slot = [&](i64 i) { return partial::at(memory + i * sizes.partial_bytes(), sizes.shared_rows()); };
    i64 const wave = sizes.shared_parts(on.workers()) / items;
    for (i64 first = 0; first < most_parts; first += wave) {
      on.for_each(items * wave, [&](i64 unit, int worker) {
        i64 const item = unit / wave, part = first + unit % wave;
        if (part >= parts_of(item)) return;
        work_on(item, worker, [&](serial_team& t, sequence_view<S> const& from, auto const& queries, auto const& far, auto const& on_decode) {
          operation::attend_part(t, from, int(item % heads), steps[item / heads], chosen_of(item), every, part, queries,
                                 part == 0 ? slot(item) : slot(items + unit), sizes.attend(), workspace + worker * sizes.worker_bytes() + sizes.io_bytes(), far,
                                 on_decode, samples_of(item));
        });
      });
      on.for_each(items, [&](i64 item, int worker) {
        serial_team t(nullptr, 0, on.kernels());
        auto const result = result_in(workspace + worker * sizes.worker_bytes(), item);
        i64 const parts = parts_of(item), end = std::min(parts, first + wave);
        for (i64 part = std::max<i64>(first, 1); part < end; ++part)
          operation::merge_partial(t, result.rows, slot(item), slot(items + item * wave + part - first));
        if (end < parts || first >= parts) return;  // not yet, or done
        operation::finish_attend(t, view_of(item), int(item % heads), slot(item), rest_of(item), result);
        write_out(item, result);
      });
    }
    return;
  }
  on.for_each(items, [&](i64 item, int worker) {
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    auto const result = result_in(mine, item);
    work_on(item, worker, [&](serial_team& t, sequence_view<S> const& from, auto const& queries, auto const& far, auto const& on_decode) {
      operation::attend(t, from, int(item % heads), steps[item / heads], chosen_of(item), every, queries, result, sizes.attend(), mine + sizes.io_bytes(), far,
                        rest_of(item), on_decode, samples_of(item));
    });
    write_out(item, result);
  });
}

/// What a step attends to of what is near, for schemes that evict what is attended to least. After attend_blocks, or instead of it.
///
/// Shapes      q [step tokens, query_heads, head_dim]
/// Requires    workspace of sizes.bytes(workers), 64-byte aligned
/// Effects     writes the sums that append counts; allocates nothing
template <offloading_scheme S, storage_scalar T>
  requires evicts_by<typename S::outliers>
void observe_attention(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                       operation::decode_workspace<S> const& sizes, std::byte* workspace) {
  int const heads = map.shape.kv_heads, group = map.shape.group();
  detail::check_queries(map, steps, q, sizes);
  on.for_each(steps.count * heads, [&](i64 item, int worker) {
    sequence_step const& step = steps[item / heads];
    std::byte* const mine = workspace + worker * sizes.worker_bytes();
    int const head = int(item % heads);
    auto const queries = detail::gather_queries<S::head_dim>(q, step, head, group, map.shape.scale(), reinterpret_cast<float*>(mine));
    serial_team t(nullptr, 0, on.kernels());
    operation::observe_step(t, sequence_view<S>{map, memory, step.slot, step.pages}, head, step, queries, group, mine + sizes.io_bytes());
  });
}

}  // namespace cellar::host
