#pragma once
#include "cellar/core/statistics.hpp"
#include "cellar/cuda/append.hpp"
#include "cellar/cuda/resolve.hpp"
#include "cellar/operation/attend_span.hpp"
#include "cellar/operation/score_planes.hpp"
#include "cellar/operation/score_points.hpp"
#include "cellar/operation/select_runs.hpp"

/// Selecting and attending on a device. Steps lie in device memory, those without new tokens are empty. Grids are sized by capacity and lengths are read
/// there, so that a captured call serves later steps.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

/// A step's workspace: a region for each (sequence, KV head), for scores while selecting and for partials while attending.
template <offloading_scheme S>
i64 select_region(operation::decode_workspace<S> const& sizes) {
  return round_up(sizes.io_bytes() + sizes.score().bytes() + sizes.class_bytes + sizes.near_bytes(), 256);
}
template <offloading_scheme S>
i64 attend_region(operation::decode_workspace<S> const& sizes) {
  return round_up(operation::span_partials<S>::bytes(sizes.rows, operation::most_spans), 256);
}

inline constexpr int tiles_of_team = 4;  ///< Scored one after the other.
/// Threads that select for a (sequence, KV head). Those that step over outliers need more registers than 1024 threads have on sm_80.
template <offloading_scheme S>
inline constexpr int select_threads = S::outliers::keeps_outliers ? 512 : 1024;

/// What kernels of a step have in common.
template <offloading_scheme S>
struct step_memory {
  memory_map<S> map;
  layer_memory<S> memory;
  sequence_step const* steps = nullptr;
  operation::decode_workspace<S> sizes;
  std::byte* workspace = nullptr;
  i64 region = 0;

  CELLAR_HD sequence_view<S> view(sequence_step const& step) const { return {map, memory, step.slot, step.pages}; }
  CELLAR_HD i64 item(unsigned sequence, int head) const { return i64{sequence} * map.shape.kv_heads + head; }
  CELLAR_HD std::byte* region_of(i64 item) const { return workspace + item * region; }
};

/// A group's queries: row = token * group + head of the group, times the softmax scale.
template <class T>
CELLAR_HD float query_of(heads_view<T const> const& q, sequence_step const& step, int head, int group, i64 row, int channel) {
  return to_float(q.row(step.first_row + row / group, head * group + int(row % group))[channel]);
}

template <offloading_scheme S, class T>
struct prepare_kernel : step_memory<S> {
  static constexpr int resident_blocks(int) { return 2; }  // a small grid: rotated rows stay in registers

  scoring_queries<S, T> q;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    constexpr int D = memory_map<S>::scored_dim;
    sequence_step const& step = this->steps[at.y];
    if (step.new_tokens == 0 || step.sealed == 0) return;
    int const head = int(at.x), group = this->map.shape.group();
    std::byte* const mine = this->region_of(this->item(at.y, head));
    auto* const queries = reinterpret_cast<float*>(mine);
    int const each = int(scored_queries<S>(group));
    i64 const rows = step.new_tokens * each;
    float* weights = nullptr;
    if constexpr (memory_map<S>::is_indexed) {
      weights = queries + rows * D;
      for (i64 i = t.rank(); i < rows * D; i += t.size()) queries[i] = query_of(q.queries, step, head, each, i / D, int(i % D));
      for (i64 i = t.rank(); i < rows; i += t.size()) weights[i] = q.weights(step.first_row + i / each, head * each + i % each);
    } else {
      float const scale = this->map.shape.scale();
      for (i64 i = t.rank(); i < rows * D; i += t.size()) queries[i] = query_of(q, step, head, group, i / D, int(i % D)) * scale;
    }
    t.sync();
    operation::prepare_scores(t, this->view(step), head, matrix_view<float const, D>{queries, rows}, this->sizes.score(), mine + this->sizes.io_bytes(),
                              weights);
  }
};

template <offloading_scheme S>
struct score_kernel : step_memory<S> {
  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    i64 const run = i64{tiles_of_team} * memory_map<S>::tile_blocks, first = at.x * run;
    if (step.new_tokens == 0 || first >= step.sealed) return;
    int const head = int(at.y);
    auto const score = this->sizes.score();
    std::byte* const mine = this->region_of(this->item(at.z, head)) + this->sizes.io_bytes();
    auto prepared = score.prepared(mine, step.new_tokens * scores_of_token<S>(this->map.shape.group()));
    if (score.scratch_bytes() > 0) prepared.scratch = shared_array<std::byte>(t, score.scratch_bytes());  // each team its own
    i64 const last = first + run < step.sealed ? first + run : step.sealed;
    if constexpr (operation::has_two_levels<S>)
      operation::score_groups(t, this->view(step), head, prepared, first, last, score, mine);
    else
      operation::score_tiles(t, this->view(step), head, prepared, first, last, score, mine);
  }
};

/// Of a summary of two levels: which groups are scored next, by one team for each (sequence, KV head).
template <offloading_scheme S>
struct list_kernel : step_memory<S> {
  int round;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.y];
    if (step.new_tokens == 0 || step.sealed == 0) return;
    auto const from = this->view(step);
    int const head = int(at.x);
    i64 const candidates = step.sealed - from.outliers(head).count, rows = S::reduce::acts_on_queries ? 1 : step.new_tokens * this->map.shape.group();
    i64 const k = typename S::select{}.with_budget(step.selected_blocks < candidates ? step.selected_blocks : candidates).max_selected(step.sealed);
    operation::list_groups(t, from, head, round, rows, step.sealed, k, this->sizes.score(), this->region_of(this->item(at.y, head)) + this->sizes.io_bytes());
  }
};

template <offloading_scheme S>
struct score_listed_kernel : step_memory<S> {
  static constexpr i64 run = S::summary::group_blocks < 64 ? 64 / S::summary::group_blocks : 1;  ///< Groups that a team scores.

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    if (step.new_tokens == 0 || step.sealed == 0) return;
    int const head = int(at.y);
    auto const score = this->sizes.score();
    std::byte* const mine = this->region_of(this->item(at.z, head)) + this->sizes.io_bytes();
    if (at.x * run >= score.levels(mine).counts[0]) return;
    auto prepared = score.prepared(mine, step.new_tokens * this->map.shape.group());
    if (score.scratch_bytes() > 0) prepared.scratch = shared_array<std::byte>(t, score.scratch_bytes());  // each team its own
    operation::score_listed(t, this->view(step), head, prepared, at.x * run, at.x * run + run, score, mine);
  }
};

/// A (sequence, KV head)'s region where scores are formed by matrix instructions: queries, logits and what they are reduced to, softmax states of runs.
template <offloading_scheme S>
struct point_region {
  static constexpr int warps = 8, tiles_of_warp = 8;  ///< Of a block of score_points_kernel.
  static constexpr i64 run_tiles = warps * tiles_of_warp;
  i64 rows = 0, padded_blocks = 0;

  CELLAR_HD explicit point_region(operation::decode_workspace<S> const& sizes)
      : rows(sizes.score().scored_rows()), padded_blocks(sizes.score().padded_blocks()) {}
  CELLAR_HD i64 query_bytes() const { return round_up(operation::point_queries<S::head_dim>::bytes(rows), 16); }
  CELLAR_HD i64 runs() const { return ceil_div(padded_blocks / S::summary::tile_blocks, run_tiles); }
  CELLAR_HD i64 states() const { return runs(); }  ///< Of a row.
  CELLAR_HD i64 state_bytes() const { return round_up(rows * states() * i64(sizeof(attention::softmax_state)), 16); }
  static constexpr i64 select_run = 4096;  ///< Blocks that one team reduces and selects among.
  CELLAR_HD i64 select_runs() const { return ceil_div(padded_blocks, select_run); }
  i64 bytes() const { return query_bytes() + round_up((rows + 1) * padded_blocks * 4, 16) + state_bytes() + operation::run_selection::bytes(select_runs()); }

  CELLAR_HD operation::point_queries<S::head_dim> queries(std::byte* mine) const { return operation::point_queries<S::head_dim>::at(mine, rows); }
  CELLAR_HD float* logits(std::byte* mine) const { return reinterpret_cast<float*>(mine + query_bytes()); }
  CELLAR_HD float* reduced(std::byte* mine) const { return S::reduce::acts_on_queries ? logits(mine) : logits(mine) + rows * padded_blocks; }
  /// For the runs that a sequence of so many blocks has.
  CELLAR_HD operation::run_selection selection(std::byte* mine, i64 blocks) const {
    return operation::run_selection::at(reinterpret_cast<std::byte*>(states_of(mine)) + state_bytes(), ceil_div(blocks, select_run));
  }
  CELLAR_HD attention::softmax_state* states_of(std::byte* mine) const {
    return reinterpret_cast<attention::softmax_state*>(mine + query_bytes() + round_up((rows + 1) * padded_blocks * 4, 16));
  }
};

template <offloading_scheme S, class T>
struct prepare_points_kernel : step_memory<S> {
  heads_view<T const> q;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.y];
    if (step.new_tokens == 0 || step.sealed == 0) return;
    int const head = int(at.x), group = this->map.shape.group();
    point_region<S> const region(this->sizes);
    i64 const rows = step.new_tokens * group;
    float const scale = this->map.shape.scale();
    auto const to = region.queries(this->region_of(this->item(at.y, head)));
    if constexpr (S::reduce::acts_on_queries) {
      static_assert(std::is_same_v<typename S::reduce, select::mean_query>);
      operation::prepare_points(
          t, this->view(step), head, 1,
          [&](i64, int c) {
            float sum = 0;
            for (i64 r = 0; r < rows; ++r) sum += query_of(q, step, head, group, r, c) * scale;
            return sum / float(rows);
          },
          to);
    } else {
      operation::prepare_points(
          t, this->view(step), head, rows, [&](i64 r, int c) { return query_of(q, step, head, group, r, c) * scale; }, to);
    }
  }
};

template <offloading_scheme S>
struct score_points_kernel : step_memory<S> {
  static constexpr int resident_blocks(int capability) { return capability >= 120 ? 2 : 3; }  // it spills beyond

  i64 groups;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    point_region<S> const region(this->sizes);
    int const head = int(at.y / groups);
    i64 const group = i64(at.y % groups), left = (S::reduce::acts_on_queries ? 1 : step.new_tokens * this->map.shape.group()) - group * 4;
    i64 const first = at.x * region.run_tiles, tiles = ceil_div(step.sealed, i64{S::summary::tile_blocks});
    if (step.new_tokens == 0 || left <= 0 || first >= tiles) return;
    std::byte* const mine = this->region_of(this->item(at.z, head));
    operation::score_points(t, this->view(step), head, region.queries(mine), group, int(left < 4 ? left : 4), first,
                            first + region.run_tiles < tiles ? first + region.run_tiles : tiles, step.sealed,
                            region.logits(mine) + group * 4 * region.padded_blocks, region.padded_blocks,
                            region.states_of(mine) + group * 4 * region.states() + at.x, region.states());
  }
};

/// max_of_softmaxes by the states of runs: a block takes some far blocks, for all rows.
template <offloading_scheme S>
struct reduce_kernel : step_memory<S> {
  static constexpr i64 run = point_region<S>::select_run;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    i64 const first = at.x * run, last = first + run < step.sealed ? first + run : step.sealed;
    if (step.new_tokens == 0 || first >= last) return;
    point_region<S> const region(this->sizes);
    std::byte* const mine = this->region_of(this->item(at.z, int(at.y)));
    int const rows = int(step.new_tokens) * this->map.shape.group();
    i64 const states = ceil_div(ceil_div(step.sealed, i64{S::summary::tile_blocks}), region.run_tiles);
    float* const all = shared_array<float>(t, region.rows);  // the logarithm of each row's sum
    auto w = t.warp();
    for (int r = int(w.index()); r < rows; r += int(w.count())) {
      attention::softmax_state const* const parts = region.states_of(mine) + r * region.states();
      float top = -infinity, sum = 0;
      for (i64 i = w.lane(); i < states; i += w.width) top = maximum{}(top, parts[i].m);
      top = w.reduce(top, maximum{});
      for (i64 i = w.lane(); i < states; i += w.width)
        if (parts[i].l > 0) sum += parts[i].l * exponential(parts[i].m - top);
      sum = w.reduce(sum, plus{});
      if (w.lane() == 0) all[r] = top + std::log(sum);
    }
    t.sync();
    float const* const logits = region.logits(mine);
    float* const out = region.reduced(mine);
    float low = infinity, high = -infinity;
    for (i64 b = first + t.rank() * 4; b < last; b += i64{t.size()} * 4) {  // whole tiles were written
      float best[4] = {undefined, undefined, undefined, undefined};
      for (int r = 0; r < rows; ++r) {
        auto const some = load_aligned<16>(logits + r * region.padded_blocks + b);
        for (int i = 0; i < 4; ++i) {
          float const x = scalar_of<float>(some, i) - all[r];
          best[i] = x > best[i] || best[i] != best[i] ? x : best[i];
        }
      }
      store_four(out + b, best[0], best[1], best[2], best[3]);
      for (int i = 0; i < 4; ++i)
        if (b + i < last && is_finite(best[i])) {
          low = best[i] < low ? best[i] : low;
          high = maximum{}(high, best[i]);
        }
    }
    operation::begin_selection(t, region.selection(mine, step.sealed), at.x, low, high);
  }
};

/// Steps of a selection that several teams share, after reduce_kernel: a block takes a run.
template <offloading_scheme S>
struct of_run : step_memory<S> {
  logical_block* ids;
  i64* counts;

  struct place {
    i64 first, count, item;
    std::uint32_t take;
    operation::run_selection selection;
    row_view<float const> all;
  };
  CELLAR_HD place place_of(sequence_step const& step, grid_place at) const {
    constexpr i64 run = point_region<S>::select_run;
    point_region<S> const region(this->sizes);
    i64 const item = this->item(at.z, int(at.y)), first = at.x * run, sealed = step.new_tokens > 0 ? step.sealed : 0;
    std::byte* const mine = this->region_of(item);
    return {first,
            sealed - first < run ? sealed - first : run,
            item,
            std::uint32_t(typename S::select{}.with_budget(step.selected_blocks).max_selected(sealed)),
            region.selection(mine, sealed),
            row_view<float const>{region.reduced(mine), sealed}};
  }
};
template <offloading_scheme S>
struct count_kernel : of_run<S> {
  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    auto const p = this->place_of(this->steps[at.z], at);
    if (p.count > 0 && p.take > 0) operation::count_cells(t, p.selection, row_view<float const>{p.all.data + p.first, p.count});
  }
};
template <offloading_scheme S>
struct collect_kernel : of_run<S> {
  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    auto const p = this->place_of(this->steps[at.z], at);
    if (p.count > 0 && p.take > 0) operation::collect_cell(t, p.selection, at.x, row_view<float const>{p.all.data + p.first, p.count}, p.first, p.take);
  }
};
template <offloading_scheme S>
struct write_kernel : of_run<S> {
  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    auto const p = this->place_of(this->steps[at.z], at);
    row_view<logical_block> const to{this->ids + p.item * this->sizes.selected, this->sizes.selected};
    if (at.x == 0) {
      for (i64 i = i64{p.take} + t.rank(); i < to.count; i += t.size()) to[i] = logical_block{-1};
      if (t.rank() == 0) this->counts[p.item] = p.take;
    }
    if (p.count > 0 && p.take > 0) operation::write_run(t, p.selection, at.x, p.all, p.first, p.count, p.take, to);
  }
};

/// Whether a scheme is scored by matrix instructions: what else has its own reduction, or outliers that must leave the softmax, takes the other path.
template <offloading_scheme S>
inline constexpr bool scores_points = operation::scores_points<S> && !S::outliers::keeps_outliers &&
                                      (std::is_same_v<typename S::reduce, select::mean_query> || std::is_same_v<typename S::reduce, select::max_of_softmaxes>);

/// Whether several teams share a selection.
template <offloading_scheme S>
inline constexpr bool selects_by_runs =
    scores_points<S> && !S::reduce::acts_on_queries && std::is_same_v<typename S::select, select::top_k> && !operation::weighs_rest<S>;

template <offloading_scheme S>
struct score_planes_kernel : step_memory<S> {
  static constexpr int warps = 4;
  static constexpr i64 run_tiles = 2 * warps;  ///< Of a block.
  i64 groups;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    int const head = int(at.y / groups);
    i64 const group = i64(at.y % groups), left = (S::reduce::acts_on_queries ? 1 : step.new_tokens * this->map.shape.group()) - group * 4;
    i64 const first = at.x * run_tiles, tiles = ceil_div(step.sealed, i64{S::summary::tile_blocks});
    if (step.new_tokens == 0 || left <= 0 || first >= tiles) return;
    auto const score = this->sizes.score();
    std::byte* const mine = this->region_of(this->item(at.z, head)) + this->sizes.io_bytes();
    auto const* const prepared = reinterpret_cast<float const*>(score.prepared(mine, 0).data) + group * 4 * S::summary::tile_channels(S::head_dim);
    operation::score_planes(t, this->view(step), head, prepared, int(left < 4 ? left : 4), first, first + run_tiles < tiles ? first + run_tiles : tiles,
                            score.scores(mine) + group * 4 * score.padded_blocks(), score.padded_blocks());
  }
};

template <offloading_scheme S>
struct select_kernel : step_memory<S> {
  logical_block* ids;
  i64* counts;
  operation::attend_rest<S> rests;
  std::uint32_t* samples;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.y];
    int const head = int(at.x);
    i64 const item = this->item(at.y, head);
    row_view<logical_block> const to{ids + item * this->sizes.selected, this->sizes.selected};
    i64 count = 0;
    if (step.new_tokens > 0) {
      auto const from = this->view(step);
      auto const score = this->sizes.score();
      std::byte* const mine = this->region_of(item) + (scores_points<S> ? 0 : this->sizes.io_bytes());
      i64 const rows = step.new_tokens * this->map.shape.group();
      row_view<float const> scores{nullptr, step.sealed};
      if constexpr (scores_points<S>)
        scores.data = point_region<S>(this->sizes).reduced(mine);
      else if constexpr (S::select::reads_scores)
        if (step.sealed > 0) {
          float const* near_sums = nullptr;
          if constexpr (operation::reads_near<S>)
            near_sums = operation::near_log_sums(t, from, head, step,
                                                 matrix_view<float const, S::head_dim>{reinterpret_cast<float const*>(this->region_of(item)), rows},
                                                 this->map.shape.group(), mine + score.bytes() + this->sizes.class_bytes);
          scores = operation::reduce_scores(t, from, head, S::reduce::acts_on_queries ? 1 : step.new_tokens * scores_of_token<S>(this->map.shape.group()),
                                            step.sealed, score, mine, near_sums);
        }
      i64 const scored = step.sealed - from.outliers(head).count;
      count = typename S::select{}.with_budget(step.selected_blocks < scored ? step.selected_blocks : scored)(t, scores, to);
      if constexpr (operation::weighs_rest<S>) {
        t.sync();
        float* logits = nullptr;
        if constexpr (scores_points<S>)
          logits = point_region<S>(this->sizes).logits(mine);
        else
          logits = score.scores(mine);
        operation::estimate_remainder(t, from, head, step, matrix_view<float>{logits, rows, score.padded_blocks()},
                                      row_view<logical_block const>{to.data, count}, rests.part.from_row(item * this->sizes.rows), mine + score.bytes());
      }
      if constexpr (operation::is_sampled<S>) {
        t.sync();
        operation::mark_samples(t, from, matrix_view<float const>{score.logits(mine), rows, score.padded_blocks(), step.sealed},
                                row_view<logical_block const>{to.data, count}, to.count, samples + item * this->sizes.sample_words());
      }
    }
    for (i64 i = count + t.rank(); i < to.count; i += t.size()) to[i] = logical_block{-1};
    if (t.rank() == 0) counts[item] = count;
  }
};

/// Query rows of one KV head, a tile of them for each block.
template <offloading_scheme S, int Rows>
struct row_tiles : step_memory<S> {
  logical_block const* ids;  // in the order of `resident`
  i64 const* counts;
  resident_runs const* resident;  // null: far rows are read where they lie
  std::int32_t const* missing;    // of the last ones of each list, which are attended to apart; null: none
  bool every;
  i64 tiles;
  std::uint32_t const* samples;  // null: nothing is weighed

  struct place {
    int head, group, rows;
    i64 first_row, item;
  };
  CELLAR_HD place place_of(sequence_step const& step, grid_place at) const {
    int const head = int(at.y / tiles), group = this->map.shape.group();
    i64 const first = i64(at.y % tiles) * Rows, all = step.new_tokens * group, left = all - first;
    return {head, group, int(left < Rows ? left : Rows), first, this->item(at.z, head)};
  }
  CELLAR_HD row_view<logical_block const> chosen(i64 item) const {
    return every ? row_view<logical_block const>{} : row_view<logical_block const>{ids + item * this->sizes.selected, counts[item]};
  }
  CELLAR_HD operation::row_samples samples_of([[maybe_unused]] i64 item) const {
    if constexpr (operation::is_sampled<S>)
      if (samples) return {samples + item * this->sizes.sample_words(), this->sizes.selected};
    return {};
  }
  CELLAR_HD i64 late(i64 item) const { return missing ? missing[item] : 0; }
  CELLAR_HD operation::span_partials<S> partials(i64 item) const {
    return operation::span_partials<S>::at(this->region_of(item), this->sizes.rows, operation::most_spans);
  }
};

template <offloading_scheme S, class T, int Rows>
struct attend_kernel : row_tiles<S, Rows> {
  /// Left alone, it spills with most codecs to fit a third block; with a bound of three it spills more.
  static constexpr int resident_blocks(int) { return 2; }

  heads_view<T const> q;
  bool is_late = false;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    auto const p = this->place_of(step, at);
    if (p.rows <= 0) return;
    auto const from = this->view(step);
    float const scale = this->map.shape.scale();
    operation::attend_span<Rows>(
        t, from, p.head, step, this->chosen(p.item), this->every, {int(at.x), S::is_reproducible ? 0 : this->late(p.item), !S::is_reproducible && is_late},
        [&](int r, int c) { return query_of(q, step, p.head, p.group, p.first_row + r, c) * scale; }, p.first_row, p.rows, p.group, this->partials(p.item),
        [&](i64 i, logical_block b) -> block_parts<std::byte const> {
          if (!this->resident) return from.far_block(b, p.head);
          resident_runs const& runs = this->resident[p.item * this->sizes.selected + i];
          return block_of_runs<std::byte const>(this->map.geometry(), runs.slice, runs.shared);
        },
        this->samples_of(p.item));
  }
};

/// Brings missing runs up while what is near is attended to: the first blocks of a head's first tile fetch.
template <offloading_scheme S, class T, int Rows>
struct fetch_and_attend_kernel {
  static constexpr int resident_blocks(int capability) { return attend_kernel<S, T, Rows>::resident_blocks(capability); }

  fetch_kernel<S> fetch;
  attend_kernel<S, T, Rows> attend;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    if (at.x >= unsigned(fetch.blocks))
      attend(t, grid_place{at.x - unsigned(fetch.blocks), at.y, at.z});
    else if (at.y % attend.tiles == 0)
      fetch(t, grid_place{at.x, unsigned(at.y / attend.tiles), at.z});
  }
};

template <offloading_scheme S, class T, int Rows>
struct finish_kernel : row_tiles<S, Rows> {
  heads_view<T> out;
  operation::attend_rest<S> rests;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.z];
    auto const p = this->place_of(step, at);
    if (p.rows <= 0) return;
    auto const from = this->view(step);
    using list = operation::key_list<S, operation::span_sizes<S, Rows>::chunk>;
    i64 const far_blocks = operation::attended_blocks(from, step, this->chosen(p.item), this->every);
    int const filled = list::of(from, p.head, step, far_blocks, S::is_reproducible ? 0 : this->late(p.item)).filled_spans(operation::most_spans);
    operation::finish_spans<Rows>(
        t, from, p.head, this->partials(p.item), filled, p.first_row, p.rows, rests.from_row(p.item * this->sizes.rows + p.first_row),
        [&](i64 row, int c, float x) { out.row(step.first_row + row / p.group, p.head * p.group + int(row % p.group))[c] = from_float<T>(x); });
  }
};

}  // namespace detail

/// Bytes of a cache's workspace: regions for scores or partials, and rows of a page while sealing.
template <offloading_scheme S, device On>
i64 step_workspace_bytes(On const&, model_shape const& shape, limits const& l, budget const& b) {
  auto const sizes = operation::workspace_for<S>(shape, l, b);
  i64 select = operation::selects_everything<S> ? 0 : detail::select_region(sizes);
  if constexpr (detail::scores_points<S>) select = round_up(detail::point_region<S>(sizes).bytes(), 256);
  i64 const seal = S::keeps_generated ? 0 : l.step_sequences * memory_map<S>{shape}.groups() * operation::seal_floats<S>(shape) * i64(sizeof(float));
  return std::max(l.step_sequences * shape.kv_heads * std::max(select, detail::attend_region(sizes)), seal);
}

/// Scores and selects: the far blocks that each KV head of each sequence attends to.
///
/// Shapes    q [step tokens, query_heads, head_dim], or index queries | ids [sequences, kv_heads, selected] ascending, rest -1 | counts [sequences, kv_heads]
/// Requires  workspace of step_workspace_bytes; rests as on the host; samples, where it
///           samples, [sequences, kv_heads, decode_workspace::sample_words()]. What host::select_blocks refuses is not looked at; a NaN score ranks lowest
template <offloading_scheme S, storage_scalar T, device On>
  requires(!operation::selects_everything<S>)
void select_blocks(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, scoring_queries<S, T> const& q,
                   operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics* = nullptr,
                   operation::attend_rest<S> const& rests = {}, std::uint32_t* samples = nullptr) {
  i64 const heads = map.shape.kv_heads, sequences = steps.count;
  detail::step_memory<S> common{map, memory, steps.data, sizes, workspace, detail::select_region(sizes)};
  if constexpr (detail::scores_points<S>) {
    detail::point_region<S> const region(sizes);
    common.region = round_up(region.bytes(), 256);
    i64 const groups = ceil_div(region.rows, 4);
    on.template launch<128>({heads, sequences}, operation::prepare_points_bytes<S>, detail::prepare_points_kernel<S, T>{common, q});
    on.template launch<32 * detail::point_region<S>::warps>({region.runs(), heads * groups, sequences}, operation::score_points_bytes,
                                                            detail::score_points_kernel<S>{common, groups});
    if constexpr (!S::reduce::acts_on_queries)
      on.template launch<256>({ceil_div(sizes.blocks, detail::reduce_kernel<S>::run), heads, sequences}, round_up(region.rows * 4, 16),
                              detail::reduce_kernel<S>{common});
  } else if constexpr (S::select::reads_scores) {
    on.template launch<128>({heads, sequences}, 0, detail::prepare_kernel<S, T>{common, q});
    if constexpr (operation::scores_planes<S>) {
      using kernel = detail::score_planes_kernel<S>;
      i64 const groups = ceil_div(sizes.score().scored_rows(), 4);
      on.template launch<32 * kernel::warps>({ceil_div(sizes.score().padded_blocks() / S::summary::tile_blocks, kernel::run_tiles), heads * groups, sequences},
                                             operation::score_planes_bytes<S>, kernel{common, groups});
    } else {
      i64 const run = i64{detail::tiles_of_team} * memory_map<S>::tile_blocks, scratch = sizes.score().scratch_bytes();
      on.template launch<32>({ceil_div(sizes.blocks, run), heads, sequences}, scratch, detail::score_kernel<S>{common});
      if constexpr (operation::has_two_levels<S>)
        for (int round = 0; round < operation::score_rounds<S>; ++round) {
          using fine = detail::score_listed_kernel<S>;
          on.template launch<detail::select_threads<S>>({heads, sequences}, round_up(operation::list_groups_bytes, 16), detail::list_kernel<S>{common, round});
          on.template launch<32>({ceil_div(sizes.blocks, S::summary::group_blocks * fine::run), heads, sequences}, scratch, fine{common});
        }
    }
  }
  if constexpr (detail::selects_by_runs<S>) {
    detail::of_run<S> const shared{common, ids, counts};
    i64 const runs = detail::point_region<S>(sizes).select_runs();
    on.template launch<256>({runs, heads, sequences}, operation::count_cells_bytes, detail::count_kernel<S>{shared});
    on.template launch<256>({runs, heads, sequences}, operation::count_cells_bytes, detail::collect_kernel<S>{shared});
    on.template launch<256>({runs, heads, sequences}, operation::write_run_bytes, detail::write_kernel<S>{shared});
  } else {
    on.template launch<detail::select_threads<S>>({heads, sequences}, round_up(i64(S::select::shared_bytes), 16) + 64,
                                                  detail::select_kernel<S>{common, ids, counts, rests, samples});
  }
}

/// Attends to sinks, the given far blocks and the tail.
///
/// Shapes    q [step tokens, query_heads, head_dim], out of value_dim | ids, counts as from select_blocks; `every`: all far blocks, ids and counts are ignored
///           | near beside ids: from run_pools::bring, or resident_runs of the caller's; null: far rows are read where they lie | rests, samples as from
///           select_blocks
/// Requires  workspace of step_workspace_bytes
/// Effects   writes out and rests.missed, this unless `every`; bit-identical for any batch, and, where the scheme is reproducible, whatever was near
template <offloading_scheme S, storage_scalar T, device On>
void attend_blocks(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                   heads_view<T> out, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block const* ids, i64 const* counts,
                   bool every, statistics* = nullptr, near_runs<S> const& near = {}, operation::attend_rest<S> const& rests = {},
                   std::uint32_t const* samples = nullptr) {
  detail::step_memory<S> const common{map, memory, steps.data, sizes, workspace, detail::attend_region(sizes)};
  auto const run = [&]<int Rows>(std::integral_constant<int, Rows>) {
    i64 const tiles = ceil_div(sizes.rows, Rows), heads = map.shape.kv_heads * tiles;
    detail::row_tiles<S, Rows> const rows{common, near.order ? near.order : ids, counts, every ? nullptr : near.resident, every ? nullptr : near.missing, every,
                                          tiles,  every ? nullptr : samples};
    constexpr i64 shared = operation::span_sizes<S, Rows>::shared_bytes;
    detail::attend_kernel<S, T, Rows> attend{rows, q};
    bool is_apart = false;
    if constexpr (!S::is_reproducible && run_pools<S, On>::is_used) is_apart = rows.missing != nullptr;
    if (is_apart) {
      if constexpr (!S::is_reproducible && run_pools<S, On>::is_used)
        on.template launch<128>({detail::fetch_kernel<S>::blocks + operation::most_spans, heads, steps.count}, shared,
                                detail::fetch_and_attend_kernel<S, T, Rows>{near.fetch, attend});
      attend.is_late = true;
    }
    on.template launch<128>({operation::most_spans, heads, steps.count}, shared, attend);
    on.template launch<256>({1, heads, steps.count}, operation::finish_bytes<S, Rows>,
                            detail::finish_kernel<S, T, Rows>{rows, out, every ? operation::attend_rest<S>{} : rests});
  };
  // Eight rows spare readings, but not every device has the shared memory: 99 KiB of a block is what all have.
  if (operation::span_sizes<S, 8>::shared_bytes > 99 * 1024 || sizes.rows <= 4)
    run(std::integral_constant<int, 4>{});
  else
    run(std::integral_constant<int, 8>{});
}

namespace detail {

template <offloading_scheme S, class T>
struct observe_step_kernel : step_memory<S> {
  heads_view<T const> q;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = this->steps[at.y];
    int const head = int(at.x), group = this->map.shape.group();
    auto* const rows = reinterpret_cast<float*>(this->region_of(this->item(at.y, head)));
    i64 const count = step.new_tokens * group;
    for (i64 i = t.rank(); i < count * S::head_dim; i += t.size())
      rows[i] = query_of(q, step, head, group, i / S::head_dim, int(i % S::head_dim)) * this->map.shape.scale();
    t.sync();
    operation::observe_step(t, this->view(step), head, step, matrix_view<float const, S::head_dim>{rows, count}, group,
                            shared_array<std::byte>(t, operation::observation::bytes));
  }
};

}  // namespace detail

/// What a step attends to of what is near, for schemes that evict what is attended to least. After attend_blocks, or instead of it.
///
/// Shapes    q [step tokens, query_heads, head_dim]
/// Requires  workspace of step_workspace_bytes
/// Effects   writes the sums that append counts
template <offloading_scheme S, storage_scalar T, device On>
  requires evicts_by<typename S::outliers>
void observe_attention(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, heads_view<T const> q,
                       operation::decode_workspace<S> const& sizes, std::byte* workspace) {
  detail::step_memory<S> const common{map, memory, steps.data, sizes, workspace, detail::attend_region(sizes)};
  on.template launch<128>({map.shape.kv_heads, steps.count}, round_up(operation::observation::bytes, 16) + 16, detail::observe_step_kernel<S, T>{common, q});
}

}  // namespace cellar::cuda
