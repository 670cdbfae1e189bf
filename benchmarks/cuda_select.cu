// Selection on a device, alone: rows of scores, by one team a row and by many, against reading them once; beside CUB's sort of the same rows.
#include <cub/device/device_segmented_radix_sort.cuh>

#include "device.cuh"

namespace cuda_select {

using namespace device_benchmark;
namespace cuda = cellar::cuda;

/// Rows of scores, each shorter than the last one by so much where they are ragged.
struct rows_of_scores {
  i64 rows, n, cut;

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

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    Selector{}.with_budget(k)(t, of.row(scores, at.x), row_view<logical_block>{ids + at.x * k, k});
  }
};
/// A team of 1024 threads a row.
template <class Selector>
void one_team(benchmark::State& state) {
  rows_of_scores const s{state.range(0), state.range(1), state.range(3) ? state.range(1) / (2 * state.range(0)) : 0};
  i64 const k = state.range(2);
  cuda::executor const on(stream());
  auto const scores = random_rows<float>(on, s.rows * s.n, 7);
  auto ids = on.allocate<logical_block>(s.rows * k);
  i64 const shared = round_up(i64(Selector::shared_bytes), 16) + 64;
  finish(state, s,
         all_seconds(
             20,
             [&] {
               on.launch<1024>({s.rows}, shared, one_team_kernel<Selector>{s, scores.data(), k, ids.data()});
             },
             [] {}));
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
  rows_of_scores const s{state.range(0), state.range(1), state.range(3) ? state.range(1) / (2 * state.range(0)) : 0};
  i64 const k = state.range(2), run = 4096, runs = ceil_div(s.n, run);
  cuda::executor const on(stream());
  auto const scores = random_rows<float>(on, s.rows * s.n, 7);
  auto ids = on.allocate<logical_block>(s.rows * k);
  auto memory = on.allocate<std::byte>(s.rows * operation::run_selection::bytes(runs));
  run_place const p{s, scores.data(), memory.data(), run, k, ids.data()};
  finish(state, s,
         all_seconds(
             20,
             [&] {
               on.launch<256>({runs, s.rows}, 0, range_kernel{p});
               on.launch<256>({runs, s.rows}, operation::count_cells_bytes, count_kernel{p});
               on.launch<256>({runs, s.rows}, operation::count_cells_bytes, collect_kernel{p});
               on.launch<256>({runs, s.rows}, operation::write_run_bytes, write_kernel{p});
             },
             [] {}));
}

/// The yardstick: whole rows sorted, of which the first k are the ones wanted (not in ascending order of ids).
void cub_segmented_sort(benchmark::State& state) {
  rows_of_scores const s{state.range(0), state.range(1), 0};
  cuda::executor const on(stream());
  auto const scores = random_rows<float>(on, s.rows * s.n, 7);
  std::vector<std::int32_t> numbers(std::size_t(s.rows * s.n)), begins;
  for (i64 i = 0; i < i64(numbers.size()); ++i) numbers[std::size_t(i)] = std::int32_t(i % s.n);
  for (i64 r = 0; r <= s.rows; ++r) begins.push_back(std::int32_t(r * s.n));
  auto const ids = on.upload(std::move(numbers));
  auto const offsets = on.upload(std::move(begins));
  auto sorted = on.allocate<float>(s.rows * s.n);
  auto sorted_ids = on.allocate<std::int32_t>(s.rows * s.n);
  std::size_t bytes = 0;
  auto const sort = [&](void* memory) {
    cuda::check(cub::DeviceSegmentedRadixSort::SortPairsDescending(memory, bytes, scores.data(), sorted.data(), ids.data(), sorted_ids.data(), s.rows * s.n,
                                                                   s.rows, offsets.data(), offsets.data() + 1, 0, 32, stream()),
                "cub::DeviceSegmentedRadixSort");
  };
  sort(nullptr);
  auto memory = on.allocate<std::byte>(i64(bytes));
  finish(state, s,
         all_seconds(
             10, [&] { sort(memory.data()); }, [] {}));
}

void name(benchmark::internal::Benchmark* b) { b->ArgNames({"rows", "n", "k", "ragged"})->Apply(manual); }
BENCHMARK_TEMPLATE(one_team, select::top_k)
    ->ArgsProduct({{1, 8, 64}, {8192, 131072}, {64, 2048}, {0}})
    ->Args({64, 131072, 2048, 1})
    ->Args({1, 4 << 20, 2048, 0})
    ->Apply(name);
BENCHMARK_TEMPLATE(one_team, select::top_p<>)->ArgsProduct({{8, 64}, {131072}, {2048}, {0}})->Apply(name);
BENCHMARK_TEMPLATE(one_team, select::threshold<std::ratio<5>>)->ArgsProduct({{8, 64}, {131072}, {2048}, {0}})->Apply(name);
BENCHMARK(top_k_by_runs)->ArgsProduct({{1, 8, 64}, {131072}, {2048}, {0}})->Args({64, 131072, 2048, 1})->Args({1, 4 << 20, 2048, 0})->Apply(name);
BENCHMARK(cub_segmented_sort)->ArgsProduct({{1, 8, 64}, {131072}, {2048}, {0}})->Args({1, 4 << 20, 2048, 0})->Apply(name);

}  // namespace cuda_select

BENCHMARK_MAIN();
