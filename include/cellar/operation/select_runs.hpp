#pragma once
#include "cellar/core/types.hpp"
#include "cellar/select/top_k.hpp"

/// Exact top-k of one row of scores by several teams, each of which has a run of it: what select::top_k does is the specification.
///
/// Four steps, each of all runs before the next: the range of the scores, how many lie in each cell of it, what lies in the cell of the k-th score, and the
/// ids.
namespace cellar::inline CELLAR_ABI::operation {

/// What the steps leave each other, for one row of `runs` runs.
struct run_selection {
  static constexpr int cells = select::detail::cells::count, room = select::detail::cells::room;
  float *lows = nullptr, *highs = nullptr;  // [runs]
  std::uint32_t* bins = nullptr;            // [cells]
  std::uint32_t* found = nullptr;           // [1]
  std::uint32_t* above = nullptr;           // [runs] scores in higher cells than the k-th one's
  float* scores = nullptr;                  // [room] of that cell, and their places
  std::int32_t* places = nullptr;
  i64 runs = 0;

  CELLAR_HD static constexpr i64 bytes(i64 runs) { return round_up((3 * runs + cells + 1 + 2 * room) * 4, 16); }
  CELLAR_HD static run_selection at(std::byte* memory, i64 runs) {
    auto* const f = reinterpret_cast<float*>(memory);
    auto* const u = reinterpret_cast<std::uint32_t*>(f + 2 * runs);
    return {f,
            f + runs,
            u,
            u + cells,
            u + cells + 1,
            reinterpret_cast<float*>(u + cells + 1 + runs),
            reinterpret_cast<std::int32_t*>(u + cells + 1 + runs + room),
            runs};
  }
};

/// The first step: the range of a run's finite scores, and nothing counted yet.
template <team Team>
CELLAR_HD void begin_selection(Team& t, run_selection const& s, i64 run, float low, float high) {
  low = -t.reduce(-low, maximum{});
  high = t.reduce(high, maximum{});
  if (t.rank() == 0) {
    s.lows[run] = low;
    s.highs[run] = high;
    s.above[run] = 0;
    if (run == 0) *s.found = 0;
  }
  if (run == 0)
    for (int i = int(t.rank()); i < run_selection::cells; i += int(t.size())) s.bins[i] = 0;
}

/// Cells of equal width over the range of all runs; one cell where there is no such width.
struct cell_map {
  float low = 0, scale = 0;

  template <team Team>
  CELLAR_HD static cell_map of(Team& t, run_selection const& s) {
    float low = infinity, high = -infinity;
    for (i64 i = t.rank(); i < s.runs; i += t.size()) {
      low = s.lows[i] < low ? s.lows[i] : low;
      high = maximum{}(high, s.highs[i]);
    }
    low = -t.reduce(-low, maximum{});
    high = t.reduce(high, maximum{});
    float const scale = float(run_selection::cells - 1) / (high - low);
    return low < high && scale > 0 && is_finite(scale) ? cell_map{low, scale} : cell_map{0, 0};
  }
  CELLAR_HD std::uint32_t operator()(float x) const {
    float const at = scale > 0 ? (x - low) * scale : 0.0f;
    return at > 0 ? at < float(run_selection::cells - 1) ? std::uint32_t(at) : std::uint32_t(run_selection::cells - 1) : 0u;
  }
};

/// Shared memory of count_cells and of collect_cell.
inline constexpr i64 count_cells_bytes = run_selection::cells * 4 + 3 * 16;

/// The second step: counts a run's scores by cells.
template <team Team>
CELLAR_HD void count_cells(Team& t, run_selection const& s, row_view<float const> scores) {
  auto* const bins = shared_array<std::uint32_t>(t, run_selection::cells);
  cell_map const cell_of = cell_map::of(t, s);
  for (int i = int(t.rank()); i < run_selection::cells; i += int(t.size())) bins[i] = 0;
  t.sync();
  select::detail::for_scores(t, scores, [&](i64, float x) { t.atomic_add(&bins[cell_of(x)], 1u); });
  t.sync();
  for (int i = int(t.rank()); i < run_selection::cells; i += int(t.size()))
    if (bins[i] > 0) t.atomic_add(&s.bins[i], bins[i]);
}

/// The third step: keeps a run's scores of the k-th one's cell, and counts those of higher cells.
///
/// Shapes  scores: the run's, from place `first` of the row on; 1 <= take <= the row's length
template <team Team>
CELLAR_HD void collect_cell(Team& t, run_selection const& s, i64 run, row_view<float const> scores, i64 first, std::uint32_t take) {
  auto* const last_cell = shared_array<std::uint32_t>(t, 1);
  cell_map const cell_of = cell_map::of(t, s);
  std::uint32_t higher = 0;
  for (unsigned base = 0; base < unsigned(run_selection::cells); base += t.size()) {  // from the top
    unsigned const r = base + t.rank();
    std::uint32_t const mine = r < unsigned(run_selection::cells) ? s.bins[run_selection::cells - 1 - r] : 0;
    std::uint32_t total = 0;
    std::uint32_t const before = higher + t.scan(mine, total);
    if (before < take && take <= before + mine) *last_cell = run_selection::cells - 1 - r;
    higher += total;
  }
  t.sync();
  std::uint32_t const cell = *last_cell;
  std::uint32_t above = 0;
  select::detail::for_scores(t, scores, [&](i64 i, float x) {
    std::uint32_t const mine = cell_of(x);
    above += mine > cell;
    if (mine != cell) return;
    std::uint32_t const at = t.atomic_add(s.found, 1u);
    if (at < run_selection::room) {
      s.scores[at] = x;
      s.places[at] = std::int32_t(first + i);
    }
  });
  above = t.reduce(above, plus{});
  if (t.rank() == 0) s.above[run] = above;
}

/// Shared memory of write_run.
inline constexpr i64 write_run_bytes = select::top_k::shared_bytes + select::detail::radix_scratch<std::uint32_t>::bytes + 64;

/// The fourth step: writes the ids that a run has. Where the cell had more scores than room, the first run does the whole row.
///
/// Shapes  all: the row; the run is [first, first + count) of it; ids [at least take]
template <team Team>
CELLAR_HD void write_run(Team& t, run_selection const& s, i64 run, row_view<float const> all, i64 first, i64 count, std::uint32_t take,
                         row_view<logical_block> ids) {
  if (*s.found > run_selection::room) {  // the same on every member
    if (run == 0) select::top_k{i64{take}}(t, all, ids);
    return;
  }
  auto const scratch = select::detail::radix_scratch<std::uint32_t>::of(t);
  std::uint32_t above_all = 0, above_before = 0;
  for (i64 i = t.rank(); i < s.runs; i += t.size()) {
    above_all += s.above[i];
    above_before += i < run ? s.above[i] : 0;
  }
  above_all = t.reduce(above_all, plus{});
  auto const last = select::detail::radix_search(
      t, row_view<float const>{s.scores, i64{*s.found}}, take - above_all, [](i64) { return 1u; }, scratch);
  std::uint32_t equal_before = 0;
  for (std::uint32_t i = t.rank(); i < *s.found; i += t.size())
    if (s.places[i] < first) {
      std::uint32_t const key = ordered_bits(s.scores[i]);
      above_before += key > last.key;
      equal_before += key == last.key;
    }
  above_before = t.reduce(above_before, plus{});
  equal_before = t.reduce(equal_before, plus{});
  select::detail::write_best(t, row_view<float const>{all.data + first, count}, last.key, last.rest, ids, first, above_before, equal_before);
}

}  // namespace cellar::operation
