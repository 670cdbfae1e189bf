// Selection on a device, alone: rows of scores (one for each sequence and KV head), by one team a row and by many, against reading them once; beside CUB's
// sorts of the same rows. Up to some 50 MB the device's cache has the scores, as it has those that a step has just written.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "device.cuh"

namespace cuda_select {

using namespace device_benchmark;
namespace cuda = cellar::cuda;  // here too: the directive puts that one beside CCCL's ::cuda

/// Rows of scores, each shorter than the last one by so much where they are ragged.
struct rows_of_scores {
  i64 rows, n, cut;

  static rows_of_scores of(benchmark::State const& state) {
    i64 const rows = state.range(0), n = state.range(1);
    return {rows, n, state.range(3) != 0 ? n / (2 * rows) : 0};
  }
  /// Logarithms of weights, spread so that some 1700 of 131072 have 95 % of it and some 800 are within 5 of the best: fewer than a budget of 2048.
  auto make(cuda::executor const& on) const { return random_rows<float>(on, rows * n, 7, 6); }
  CELLAR_HD i64 count(i64 row) const { return n - row * cut; }
  CELLAR_HD row_view<float const> row(float const* scores, i64 row) const { return {scores + row * n, count(row)}; }
  double bytes() const { return 4 * double(rows * n - cut * rows * (rows - 1) / 2); }
};

void finish(benchmark::State& state, rows_of_scores const& s, std::vector<double> const& seconds) {
  report(state, seconds);
  state.counters["of_copy"] = s.bytes() / quantile(seconds, 0.5) / limits_of_device::here().copy;
  state.counters["launches_worth"] = quantile(seconds, 0.5) / limits_of_device::here().launch;
  limits_of_device::here().count(state);
}

template <class Selector>
struct one_team_kernel {
  rows_of_scores of;
  float const* scores;
  i64 k;
  logical_block* ids;
  i64* counts;

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    i64 const count = Selector{}.with_budget(k)(t, of.row(scores, at.x), row_view<logical_block>{ids + at.x * k, k});
    if (t.rank() == 0) counts[at.x] = count;
  }
};
template <class Selector>
void select_by_one_team(cuda::executor const& on, one_team_kernel<Selector> const& kernel) {
  on.launch<1024>({kernel.of.rows}, round_up(i64(Selector::shared_bytes), 16) + 64, kernel);
}
template <class T>
std::vector<T> on_host(cuda::executor const& on, cuda::device_buffer<T> const& x) {
  std::vector<T> all(x.size());
  on.download(all.data(), x.data(), i64(all.size() * sizeof(T)));
  return all;
}
/// What every way to select must give: top_k's ids.
std::vector<logical_block> expected(cuda::executor const& on, rows_of_scores const& s, float const* scores, i64 k) {
  auto ids = on.allocate<logical_block>(s.rows * k);
  auto counts = on.allocate<i64>(s.rows);
  select_by_one_team<select::top_k>(on, {s, scores, k, ids.data(), counts.data()});
  return on_host(on, ids);
}
/// A team of 1024 threads a row.
template <class Selector>
void one_team(benchmark::State& state) {
  auto const s = rows_of_scores::of(state);
  i64 const k = state.range(2);
  cuda::executor const on(stream());
  auto const scores = s.make(on);
  auto ids = on.allocate<logical_block>(s.rows * k);
  auto counts = on.allocate<i64>(s.rows);
  finish(state, s,
         all_seconds(
             20,
             [&] {
               select_by_one_team<Selector>(on, {s, scores.data(), k, ids.data(), counts.data()});
             },
             [] {}));
  double selected = 0;
  for (i64 const count : on_host(on, counts)) selected += double(count) / double(s.rows);
  state.counters["selected"] = selected;
}

/// Rows in runs of which each has a team: what a cache does with scores of points.
struct run_place {
  rows_of_scores of;
  float const* scores;
  std::byte* memory;
  i64 run, k;
  logical_block* ids;

  CELLAR_HD i64 runs() const { return ceil_div(of.n, run); }
  CELLAR_HD operation::run_selection selection(i64 row) const {
    return operation::run_selection::at(memory + row * operation::run_selection::bytes(runs()), ceil_div(of.count(row), run));
  }
  CELLAR_HD i64 first(cuda::grid_place at) const { return at.x * run; }
  CELLAR_HD row_view<float const> mine(cuda::grid_place at) const {
    i64 const left = of.count(at.y) - first(at);
    return {of.row(scores, at.y).data + first(at), left < run ? left : run};
  }
};
struct range_kernel : run_place {
  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    auto const x = mine(at);
    if (x.count <= 0) return;
    float low = infinity, high = -infinity;
    for (i64 i = t.rank(); i < x.count; i += t.size()) {
      low = x[i] < low ? x[i] : low;
      high = x[i] > high ? x[i] : high;
    }
    operation::begin_selection(t, selection(at.y), at.x, low, high);
  }
};
struct count_kernel : run_place {
  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    if (mine(at).count > 0) operation::count_cells(t, selection(at.y), mine(at));
  }
};
struct collect_kernel : run_place {
  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    if (mine(at).count > 0) operation::collect_cell(t, selection(at.y), at.x, mine(at), first(at), std::uint32_t(k));
  }
};
struct write_kernel : run_place {
  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    if (mine(at).count > 0)
      operation::write_run(t, selection(at.y), at.x, of.row(scores, at.y), first(at), mine(at).count, std::uint32_t(k),
                           row_view<logical_block>{ids + at.y * k, k});
  }
};
void top_k_by_runs(benchmark::State& state) {
  auto const s = rows_of_scores::of(state);
  i64 const k = state.range(2), run = 4096, runs = ceil_div(s.n, run);
  cuda::executor const on(stream());
  auto const scores = s.make(on);
  auto ids = on.allocate<logical_block>(s.rows * k);
  auto memory = on.allocate<std::byte>(s.rows * operation::run_selection::bytes(runs));
  run_place const p{s, scores.data(), memory.data(), run, k, ids.data()};
  auto const select = [&] {
    on.launch<256>({runs, s.rows}, 0, range_kernel{p});
    on.launch<256>({runs, s.rows}, operation::count_cells_bytes, count_kernel{p});
    on.launch<256>({runs, s.rows}, operation::count_cells_bytes, collect_kernel{p});
    on.launch<256>({runs, s.rows}, operation::write_run_bytes, write_kernel{p});
  };
  select();
  if (on_host(on, ids) != expected(on, s, scores.data(), k)) return state.SkipWithError("not what one team selects");
  finish(state, s, all_seconds(20, select, [] {}));
}

/// The yardstick: whole rows sorted by CUB, of which the first k are the ones wanted (not in ascending order of ids): all at once, a block a row, or one after
/// the other, each by the whole device.
template <bool IsByRow>
void cub_sort(benchmark::State& state) {
  auto const s = rows_of_scores::of(state);
  i64 const k = state.range(2);
  cuda::executor const on(stream());
  auto const scores = s.make(on);
  std::vector<std::int32_t> numbers(std::size_t(s.rows * s.n)), begins, ends;
  for (i64 i = 0; i < i64(numbers.size()); ++i) numbers[std::size_t(i)] = std::int32_t(i % s.n);
  for (i64 r = 0; r < s.rows; ++r) begins.push_back(std::int32_t(r * s.n)), ends.push_back(std::int32_t(r * s.n + s.count(r)));
  auto const ids = on.upload(std::move(numbers));
  auto const begin = on.upload(std::move(begins)), end = on.upload(std::move(ends));
  auto sorted = on.allocate<float>(s.rows * s.n);
  auto sorted_ids = on.allocate<std::int32_t>(s.rows * s.n);
  std::size_t bytes = 0;
  auto const sort = [&](void* memory) {
    if constexpr (IsByRow) {
      for (i64 r = 0; r < s.rows; ++r)
        cuda::check(cub::DeviceRadixSort::SortPairsDescending(memory, bytes, scores.data() + r * s.n, sorted.data() + r * s.n, ids.data() + r * s.n,
                                                              sorted_ids.data() + r * s.n, std::int32_t(memory ? s.count(r) : s.n), 0, 32, stream()),
                    "cub::DeviceRadixSort");
    } else {
      cuda::check(cub::DeviceSegmentedRadixSort::SortPairsDescending(memory, bytes, scores.data(), sorted.data(), ids.data(), sorted_ids.data(), s.rows * s.n,
                                                                     s.rows, begin.data(), end.data(), 0, 32, stream()),
                  "cub::DeviceSegmentedRadixSort");
    }
  };
  sort(nullptr);
  auto memory = on.allocate<std::byte>(i64(bytes));
  sort(memory.data());
  auto const first = expected(on, s, scores.data(), k);
  auto const all = on_host(on, sorted_ids);
  for (i64 r = 0; r < s.rows; ++r) {
    std::vector<std::int32_t> best(all.begin() + r * s.n, all.begin() + r * s.n + k);
    std::sort(best.begin(), best.end());
    for (i64 i = 0; i < k; ++i)
      if (best[std::size_t(i)] != std::int32_t(number(first[std::size_t(r * k + i)]))) return state.SkipWithError("not what one team selects");
  }
  finish(state, s,
         all_seconds(
             10, [&] { sort(memory.data()); }, [] {}));
}

void name(benchmark::internal::Benchmark* b) { b->ArgNames({"rows", "n", "k", "ragged"})->Apply(manual); }
void long_rows(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{1, 4, 8, 64, 256}, {131072}, {2048}, {0}})->Args({64, 131072, 2048, 1})->Args({1, 4 << 20, 2048, 0});
  name(b);
}
void few_long_rows(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{1, 4, 8}, {131072}, {2048}, {0}})->Args({1, 4 << 20, 2048, 0});
  name(b);
}
void short_rows(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{1, 8, 64}, {8192}, {64, 2048}, {0}})->ArgsProduct({{1, 8, 64}, {131072}, {64}, {0}});
  name(b);
}
BENCHMARK_TEMPLATE(one_team, select::top_k)->Apply(long_rows);
BENCHMARK_TEMPLATE(one_team, select::top_k)->Apply(short_rows);
BENCHMARK_TEMPLATE(one_team, select::top_p<>)->Apply(long_rows);
BENCHMARK_TEMPLATE(one_team, select::threshold<std::ratio<5>>)->Apply(long_rows);
BENCHMARK(top_k_by_runs)->Apply(long_rows);
BENCHMARK_TEMPLATE(cub_sort, false)->Name("cub_segmented_sort")->Apply(long_rows);
BENCHMARK_TEMPLATE(cub_sort, true)->Name("cub_sort")->Apply(few_long_rows);

}  // namespace cuda_select

BENCHMARK_MAIN();
