// A selection that several teams share, against select::top_k in series.
#include <vector>

#include "catch.hpp"
#include "cellar/operation/select_runs.hpp"
#include "emulator/emulator.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

void check(std::vector<float> const& scores, i64 run, i64 take, std::uint64_t seed) {
  i64 const n = i64(scores.size()), runs = ceil_div(n, run);
  INFO(n << " scores in runs of " << run << ", " << take << " taken, seed " << seed);
  row_view<float const> const all{scores.data(), n};
  std::vector<logical_block> expected(std::size_t(take), logical_block{-9}), ids = expected;
  std::vector<std::byte> scratch(select::top_k::shared_bytes + 64), memory(std::size_t(operation::run_selection::bytes(runs)), std::byte{0x5a});
  serial_team serial(scratch.data(), i64(scratch.size()));
  select::top_k{take}(serial, all, row_view<logical_block>{expected.data(), take});
  auto const s = operation::run_selection::at(memory.data(), runs);
  auto const launch = [&](i64 shared, auto const& body) {
    emulator::launch({.threads = 64, .blocks = int(runs), .shared_bytes = shared, .order = emulator::shuffled(seed)}, [&](emulator::team& t) {
      i64 const first = i64{t.block()} * run;
      body(t, i64{t.block()}, first, row_view<float const>{scores.data() + first, std::min(run, n - first)});
    });
  };
  launch(0, [&](emulator::team& t, i64 at, i64, row_view<float const> mine) {
    float low = infinity, high = -infinity;
    for (i64 i = t.rank(); i < mine.count; i += t.size())
      if (is_finite(mine[i])) {
        low = std::min(low, mine[i]);
        high = std::max(high, mine[i]);
      }
    operation::begin_selection(t, s, at, low, high);
  });
  launch(operation::count_cells_bytes, [&](emulator::team& t, i64, i64, row_view<float const> mine) { operation::count_cells(t, s, mine); });
  launch(operation::count_cells_bytes,
         [&](emulator::team& t, i64 at, i64 first, row_view<float const> mine) { operation::collect_cell(t, s, at, mine, first, std::uint32_t(take)); });
  launch(operation::write_run_bytes, [&](emulator::team& t, i64 at, i64 first, row_view<float const> mine) {
    operation::write_run(t, s, at, all, first, mine.count, std::uint32_t(take), row_view<logical_block>{ids.data(), take});
  });
  REQUIRE(ids == expected);
}

}  // namespace

TEST_CASE("top_k shared by teams takes what one team takes: any runs, ties, one cell, more than its room, infinities, NaN") {
  random_numbers r(3);
  std::uint64_t seed = 0;
  auto const check_all = [&](std::vector<float> const& scores) {
    i64 const n = i64(scores.size());
    for (i64 const run : {i64{64}, i64{1000}, n})
      for (i64 const take : {i64{1}, n / 3 + 1, n}) check(scores, run, take, ++seed);
  };
  for (i64 const n : {1, 63, 65, 1500, 5000}) {
    auto scores = r.normals(n, 3);
    check_all(scores);
    for (std::size_t i = 0; i < scores.size(); i += 3) scores[i] = i % 2 ? 0.5f : i % 5 ? -infinity : std::nanf("");
    check_all(scores);
    for (std::size_t i = 1; i < scores.size(); i += 9) scores[i] = infinity;
    check_all(scores);
    check_all(std::vector<float>(std::size_t(n), -2.0f));
    check_all(std::vector<float>(std::size_t(n), std::nanf("")));
    std::vector<float> crowd = r.normals(n, 1e-6f);  // most of it in one cell
    crowd.front() = 1000;
    crowd.back() = -1000;
    check_all(crowd);
  }
}
