// What only size shows: rows of millions of scores, offsets beyond 32 bits, grids that no device holds at once, pools and lists at their ends; and that
// nothing depends on the order in which a device's threads and blocks run.
#include <sys/mman.h>

#include <any>
#include <cstdint>
#include <new>
#include <numeric>
#include <tuple>

#include "cuda/families.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

TEST_CASE("a cache whose steps no grid of a device holds is refused") {
  using scheme_type = scheme::quest<16, float>;
  using device_cache = cache<scheme_type, emulator::device<>>;
  emulator::device<> const on;
  model_shape const shape{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = 16};
  CHECK_THROWS_WITH(device_cache(on, shape, {.sequences = 65536, .tokens = 16}), contains("lower step_sequences"));
  CHECK_THROWS_WITH(device_cache(on, shape, {.sequences = 1, .tokens = i64{1} << 20, .step_tokens = 43691}), contains("step_tokens"));  // 32769 * 2 of 65535
  CHECK_THROWS_AS(device_cache(on, shape, {.sequences = 1, .tokens = i64{1} << 20, .step_tokens = i64{1} << 40}), precondition_error);
  CHECK_NOTHROW(device_cache(on, shape, {.sequences = 70000, .tokens = 16, .step_sequences = 2, .far_tokens = 64}));  // sequences of a step are what counts
}

namespace {

constexpr emulator::rank_order orders[] = {emulator::forward, emulator::backward, emulator::shuffled(1), emulator::shuffled(2), emulator::shuffled(3)};

// Selections among millions of blocks.

constexpr i64 long_row = is_sanitized ? 1 << 19 : 1 << 22;

/// The specification, by sorting: the k highest scores, of equal ones those of the lowest ids; ascending.
std::vector<logical_block> best_of(std::vector<float> const& scores, i64 k) {
  std::vector<std::int32_t> all(scores.size());
  std::iota(all.begin(), all.end(), 0);
  auto const is_before = [&](std::int32_t a, std::int32_t b) {
    float const x = scores[std::size_t(a)], y = scores[std::size_t(b)];
    return x != y ? x > y : a < b;
  };
  if (k < i64(all.size())) std::nth_element(all.begin(), all.begin() + k, all.end(), is_before);
  all.resize(std::size_t(k));
  std::sort(all.begin(), all.end());
  std::vector<logical_block> ids;
  for (std::int32_t const i : all) ids.push_back(logical_block(i));
  return ids;
}

/// Scores of which many equal the k-th one: seven values in all; or ties among what one cell of the search has, more than it has room for, or fewer.
enum class ties { of_a_plateau, of_a_crowd, of_a_cell };
std::vector<float> scores_with(ties which, i64 n) {
  random_numbers r(std::uint64_t(n) + 1);
  std::vector<float> x;
  for (i64 i = 0; i < n; ++i) x.push_back(which == ties::of_a_plateau ? float(r.below(7)) : std::floor(r.normal() * 64) / 64);
  if (which == ties::of_a_crowd) {  // cells are as wide as all the others together
    x.front() = 1e5f;
    x[std::size_t(n / 2)] = -1e5f;
  }
  return x;
}
char const* name_of(ties which) { return which == ties::of_a_plateau ? "plateaus" : which == ties::of_a_crowd ? "ties of a crowd" : "ties of a cell"; }
i64 equal_to_last(std::vector<float> const& scores, std::vector<logical_block> const& chosen) {
  float last = infinity;
  for (logical_block const b : chosen) last = std::min(last, scores[std::size_t(number(b))]);
  return std::count(scores.begin(), scores.end(), last);
}

/// By one team, as where a block of a device selects for a KV head; a small one, which is the faster to emulate.
std::vector<logical_block> by_one_team(std::vector<float> const& scores, i64 k, emulator::rank_order order) {
  std::vector<logical_block> ids(std::size_t(k + 1), logical_block{-9});
  emulator::launch({.threads = 64, .shared_bytes = select::top_k::shared_bytes + 64, .order = order}, [&](emulator::team& t) {
    select::top_k{k}(t, row_view<float const>{scores.data(), i64(scores.size())}, row_view<logical_block>{ids.data(), k});
  });
  REQUIRE(ids.back() == logical_block{-9});
  ids.pop_back();
  return ids;
}

/// By the kernels that share a row out among blocks, from the reduction on. `room`: ids that a step may select.
std::vector<logical_block> by_many_teams(std::vector<float> const& scores, i64 k, i64 room, emulator::rank_order order) {
  using scheme_type = scheme::yakv<64>;
  using namespace cuda::detail;
  static_assert(selects_by_runs<scheme_type>);
  i64 const n = i64(scores.size());
  model_shape const shape{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 64};
  auto const sizes = operation::workspace_for<scheme_type>(shape, {.tokens = n}, {.tokens = room});
  REQUIRE(sizes.selected == room);
  point_region<scheme_type> const region(sizes);
  std::vector<std::byte> workspace(std::size_t(region.bytes()), std::byte{0xff});
  std::copy(scores.begin(), scores.end(), region.logits(workspace.data()));
  for (i64 i = 0; i < region.states(); ++i)  // the row's sum is 1, whose logarithm is 0: the reduced scores are the logits
    region.states_of(workspace.data())[i] = i == 0 ? attention::softmax_state{.m = 0, .l = 1} : attention::softmax_state{.m = -infinity, .l = 0};
  std::vector<logical_block> ids(std::size_t(room + 1), logical_block{-9});
  i64 count = -9;
  sequence_step const step{.slot = 0, .pages = {}, .sealed_before = n, .sealed = n, .length = n + 1, .new_tokens = 1, .selected_blocks = k};
  step_memory<scheme_type> const common{{shape}, {}, &step, sizes, workspace.data(), region.bytes()};
  of_run<scheme_type> const shared{common, ids.data(), &count};
  emulator::device<> const on(order);
  i64 const runs = region.select_runs();
  on.launch<64>({runs}, round_up(region.rows * 4, 16), reduce_kernel<scheme_type>{common});
  on.launch<64>({runs}, operation::count_cells_bytes, count_kernel<scheme_type>{shared});
  on.launch<64>({runs}, operation::count_cells_bytes, collect_kernel<scheme_type>{shared});
  on.launch<64>({runs}, operation::write_run_bytes, write_kernel<scheme_type>{shared});
  REQUIRE(count == k);
  REQUIRE(ids.back() == logical_block{-9});
  for (i64 i = k; i < room; ++i) REQUIRE(ids[std::size_t(i)] == logical_block{-1});
  ids.resize(std::size_t(k));
  return ids;
}

/// Has the best k of a long row selected, among many that equal the last of them.
template <class Selection>
void check_long_rows(Selection const& selection) {
  for (auto const& [which, k] :
       {std::pair{ties::of_a_plateau, i64{1}}, {ties::of_a_plateau, long_row - 1}, {ties::of_a_crowd, i64{2048}}, {ties::of_a_cell, i64{2048}}}) {
    INFO(k << " of " << long_row << ", " << name_of(which));
    auto const scores = scores_with(which, long_row);
    auto const expected = best_of(scores, k);
    i64 const equal = equal_to_last(scores, expected), room = select::detail::cells::room;
    if (which == ties::of_a_plateau) REQUIRE(equal > std::max(i64{1} << 16, room));
    if (which != ties::of_a_plateau) REQUIRE((equal > 4 && equal < room));
    bool const is_exact = selection(scores, k) == expected;
    CHECK(is_exact);
  }
}

}  // namespace

TEST_CASE("of 4194304 blocks exactly the best are selected, of equal ones the first, by one team") {  // H20
  check_long_rows([](std::vector<float> const& scores, i64 k) { return by_one_team(scores, k, emulator::shuffled(1)); });
}
TEST_CASE("of 4194304 blocks exactly the best are selected, of equal ones the first, by teams that share them") {  // H20
  check_long_rows([](std::vector<float> const& scores, i64 k) { return by_many_teams(scores, k, std::min(k + 3, long_row), emulator::shuffled(2)); });
}

TEST_CASE("all blocks but one are selected exactly, in any order of threads and blocks, by one team and by many") {  // H10, H20
  i64 const n = is_sanitized ? 9001 : 100003;
  for (auto const which : {ties::of_a_plateau, ties::of_a_crowd, ties::of_a_cell}) {
    auto const scores = scores_with(which, n);
    for (i64 const k : {n - 1, n}) {
      auto const expected = best_of(scores, k);
      for (auto const order : orders) {
        INFO(k << " of " << n << ", " << name_of(which) << ", " << emulator::name_of(order));
        bool const is_exact = by_one_team(scores, k, order) == expected;
        CHECK(is_exact);
        bool const is_exact_shared = by_many_teams(scores, k, n, order) == expected;
        CHECK(is_exact_shared);
        if (is_sanitized) break;
      }
    }
  }
}

namespace {

// Offsets by arithmetic: nothing here is read or written.

__extension__ typedef __int128 wide;

wide up(wide x, wide to) { return (x + to - 1) / to * to; }
wide address(void const* p) { return wide(reinterpret_cast<std::uintptr_t>(p)); }
std::byte* at_address(i64 x) { return reinterpret_cast<std::byte*>(std::uintptr_t(x)); }

/// Checks that something lies so many bytes behind `base`.
void check_offset(char const* what, void const* p, void const* base, wide expected) {
  INFO(what << ": " << i64(address(p) - address(base)) << ", expected " << i64(expected));
  bool const is_there = address(p) - address(base) == expected;
  CHECK(is_there);
}

/// A device of addresses: buffers lie one behind the other, and launches are noted.
struct addresses {
  struct notes {
    i64 next = 1 << 20;
    std::vector<std::pair<i64, i64>> buffers;  // first byte and end
    std::vector<std::any> kernels;
  };
  notes* to;

  static constexpr bool is_host = false;
  static constexpr i64 grid_side = 65535;
  template <class T>
  struct buffer {
    T* first = nullptr;
    i64 count = 0;
    T* data() const { return first; }
    std::size_t size() const { return std::size_t(count); }
  };
  template <class T>
  buffer<T> allocate(i64 count) const {
    i64 const begin = to->next;
    to->buffers.push_back({begin, begin + count * i64(sizeof(T))});
    to->next = round_up(to->buffers.back().second, 4096) + 4096;
    return {reinterpret_cast<T*>(at_address(begin)), count};
  }
  template <class T>
  buffer<T> upload(std::vector<T>&& x) const {
    return allocate<T>(i64(x.size()));
  }
  void copy(std::byte*, std::byte const*, i64) const {}
  void download(void*, void const*, i64) const {}
  void upload(void*, void const*, i64) const {}
  int multiprocessors() const { return 132; }
  void wait() const {}
  template <int Threads, class Kernel>
  void launch(cuda::grid_size, i64, Kernel const& kernel) const {
    to->kernels.push_back(kernel);
  }
};
static_assert(cuda::device<addresses>);

template <class Kernel>
std::vector<Kernel> noted(addresses const& on) {
  std::vector<Kernel> all;
  for (auto const& k : on.to->kernels)
    if (auto const* const mine = std::any_cast<Kernel>(&k)) all.push_back(*mine);
  return all;
}

/// Parts of device memory that must not meet, and lie within what was allocated.
struct parts {
  std::vector<std::pair<wide, wide>> all;
  void add(void const* p, wide bytes) { all.push_back({address(p), address(p) + bytes}); }
  void check(addresses const& on) {
    for (auto const& [begin, end] : all) {
      bool const is_owned =
          std::any_of(on.to->buffers.begin(), on.to->buffers.end(), [b = begin, e = end](auto const& x) { return x.first <= b && e <= x.second; });
      CHECK(is_owned);
    }
    std::sort(all.begin(), all.end());
    for (std::size_t i = 1; i < all.size(); ++i) {
      bool const is_apart = all[i - 1].second <= all[i].first;
      CHECK(is_apart);
    }
  }
};

template <class Scheme>
struct in_any_order : Scheme {
  static constexpr bool keeps_generated = false, is_reproducible = false;
  using reuse = cellar::select::reuse_ids<1, 2>;
};

constexpr int many_heads = 8;
constexpr i64 many_sequences = 4096, many_tokens = i64{1} << 22;
model_shape const wide_shape{.layers = 3, .query_heads = 64, .kv_heads = many_heads, .head_dim = 128};

/// Near pools of 98304 KV heads, each with more than 2^17 runs of `run` bytes.
template <class Scheme>
void check_pools(i64 run) {
  addresses::notes notes;
  addresses const on{&notes};
  i64 const slots = (i64{1} << 17) + 1, blocks = many_tokens / Scheme::block_tokens;
  limits const l{.sequences = int(many_sequences), .tokens = many_tokens, .step_tokens = 4, .step_sequences = many_sequences};
  auto const sizes = operation::workspace_for<Scheme>(wide_shape, l, {.tokens = slots * Scheme::block_tokens});
  REQUIRE(sizes.selected == slots);
  memory_map<Scheme> const map{wide_shape, 4, 1 << 10};
  REQUIRE(map.geometry().slice_bytes() == run);
  cuda::run_pools<Scheme, addresses> const pools(on, map, l, sizes);
  auto* const bookkeeping = at_address(notes.buffers[0].first);
  auto* const runs = at_address(notes.buffers[1].first);
  wide const book_bytes = up((wide(blocks) + 2 * slots) * 4, 16), pool_bytes = up(wide(slots) * run, 16);
  parts apart;
  pools.forget(on, many_sequences - 1, 0);
  auto const of_layers = noted<cuda::detail::forget_kernel<Scheme>>(on);
  REQUIRE(of_layers.size() == 3);
  for (int layer = 0; layer < 3; ++layer)
    for (i64 const slot : {i64{0}, many_sequences - 1})
      for (int const head : {0, 1, many_heads - 1}) {
        wide const at = (wide(layer) * many_sequences + slot) * many_heads + head;
        operation::run_pool const pool = of_layers[std::size_t(layer)].pools.pool(slot, head);
        CHECK((pool.blocks == blocks && pool.slots == slots && pool.run_bytes == run));
        check_offset("where", pool.where, bookkeeping, at * book_bytes);
        check_offset("holders", pool.holders, bookkeeping, at * book_bytes + wide(blocks) * 4);
        check_offset("stamps", pool.stamps, bookkeeping, at * book_bytes + (wide(blocks) + slots) * 4);
        check_offset("first run", pool.run(0), runs, at * pool_bytes);
        check_offset("last run", pool.run(slots - 1), runs, at * pool_bytes + (wide(slots) - 1) * run);
        apart.add(pool.where, wide(blocks) * 4);
        apart.add(pool.holders, wide(slots) * 4);
        apart.add(pool.stamps, wide(slots) * 4);
        apart.add(pool.run(0), run);
        apart.add(pool.run(slots - 1), run);
      }
  // Results of a step and, where selections are made ahead, those of the one that is.
  layer_memory<Scheme> const memory{};
  row_view<sequence_step const> const steps{nullptr, many_sequences};
  pools.bring(on, memory, steps, nullptr, nullptr);
  if constexpr (operation::keeps_selections<Scheme>) pools.bring(on, memory, steps, nullptr, nullptr, true);
  i64 const items = many_sequences * many_heads;
  for (auto const& k : noted<cuda::detail::resolve_kernel<Scheme>>(on))
    for (i64 const item : {i64{0}, items - 1}) {
      i64 const first = item * slots;
      apart.add(k.to.slot_of + first, wide(slots) * 4);
      apart.add(k.to.misses + first, wide(slots) * 4);
      apart.add(k.to.missing + item, 4);
      apart.add(k.to.victims + first, wide(slots) * 4);
      apart.add(k.to.resident + first, wide(slots) * i64(sizeof(resident_runs)));
      if constexpr (!Scheme::is_reproducible) apart.add(k.to.order + first, wide(slots) * 4);
    }
  apart.check(on);
}

/// Regions of a step's workspace, as the kernels that are launched have them. copies: of the sums that attention leaves.
template <class Scheme>
void check_workspace(int copies) {
  using namespace cuda::detail;
  addresses::notes notes;
  addresses const on{&notes};
  limits const l{.sequences = int(many_sequences), .tokens = many_tokens, .step_tokens = 4, .step_sequences = many_sequences};
  budget const b{.tokens = 1 << 17, .sinks = 4, .window = 64};
  auto const sizes = operation::workspace_for<Scheme>(wide_shape, l, b);
  wide const rows = 8 * 4, blocks = many_tokens / Scheme::block_tokens, items = wide(many_sequences) * many_heads;
  auto const workspace = on.allocate<std::byte>(cuda::step_workspace_bytes<Scheme>(on, wide_shape, l, b));
  std::byte* const base = workspace.data();
  wide const end = address(base) + i64(workspace.size());
  memory_map<Scheme> const map{wide_shape, b.sinks, 1 << 10};
  std::vector<sequence_step> steps(std::size_t(many_sequences), sequence_step{});
  steps.back() = {.slot = many_sequences - 1,
                  .pages = {},
                  .sealed_before = i64(blocks) - 5,
                  .sealed = i64(blocks) - 5,
                  .length = many_tokens,
                  .new_tokens = 4,
                  .selected_blocks = 7};
  row_view<sequence_step const> const view{steps.data(), many_sequences};
  auto const q = packed_heads<bf16 const>(nullptr, 4, 64, 128);
  cuda::select_blocks<Scheme, bf16>(on, map, {}, view, q, sizes, base, nullptr, nullptr);
  cuda::attend_blocks<Scheme, bf16>(on, map, {}, view, q, packed_heads<bf16>(nullptr, 4, 64, 128), sizes, base, nullptr, nullptr, false);

  wide const sums = rows * 64 * 128 * 4 * copies, attend_region = up(rows * 64 * 8 + sums, 256);
  auto const attending = noted<attend_kernel<Scheme, bf16, 8>>(on);
  REQUIRE(attending.size() == 1);
  for (wide const item : {wide(0), wide(1), items - 1}) {
    auto const partials = attending[0].partials(attending[0].item(unsigned(item / many_heads), int(item % many_heads)));
    check_offset("first state", &partials.state(0, 0), base, item * attend_region);
    check_offset("last state", &partials.state(31, 63), base, item * attend_region + (31 * 64 + 63) * 8);
    check_offset("last sum", partials.sum(31, 63, copies - 1), base, item * attend_region + rows * 64 * 8 + sums - 128 * 4);
  }
  bool const has_room = address(base) + items * attend_region <= end;
  CHECK(has_room);

  if constexpr (cuda::detail::scores_points<Scheme>) {
    wide const queries = up((rows / 4) * (8 * 32 * 2 * 4 + 16), 16), logits = up((rows + 1) * blocks * 4, 16), states = up(rows * (blocks / 32 / 64) * 8, 16);
    wide const select_runs = blocks / 4096, selection = up((3 * select_runs + 2048 + 1 + 2 * 2048) * 4, 16);
    wide const region = up(queries + logits + states + selection, 256);
    auto const counting = noted<count_kernel<Scheme>>(on);
    auto const scoring = noted<score_points_kernel<Scheme>>(on);
    REQUIRE((counting.size() == 1 && scoring.size() == 1));
    wide const last = (items - 1) * region, selecting = last + queries + logits + states;
    std::byte* const mine = scoring[0].region_of(scoring[0].item(unsigned(many_sequences - 1), many_heads - 1));
    point_region<Scheme> const of(sizes);
    check_offset("queries", of.queries(mine).fragments, base, last);
    check_offset("last factor", of.queries(mine).factors + 31, base, last + (rows / 4) * 8 * 32 * 2 * 4 + 31 * 4);
    check_offset("logits", of.logits(mine), base, last + queries);
    check_offset("reduced", of.reduced(mine), base, last + queries + rows * blocks * 4);
    check_offset("states", of.states_of(mine), base, last + queries + logits);
    auto const p = counting[0].place_of(steps.back(), {unsigned(select_runs - 1), unsigned(many_heads - 1), unsigned(many_sequences - 1)});
    bool const is_last = p.item == items - 1;
    CHECK(is_last);
    CHECK(p.first == i64(blocks) - 4096);
    CHECK(p.count == 4096 - 5);
    CHECK(p.all.count == i64(blocks) - 5);
    CHECK(p.take == 7);
    check_offset("row", p.all.data, base, last + queries + rows * blocks * 4);
    check_offset("lows", p.selection.lows, base, selecting);
    check_offset("highs", p.selection.highs, base, selecting + select_runs * 4);
    check_offset("bins", p.selection.bins, base, selecting + 2 * select_runs * 4);
    check_offset("found", p.selection.found, base, selecting + (2 * select_runs + 2048) * 4);
    check_offset("above", p.selection.above, base, selecting + (2 * select_runs + 2049) * 4);
    check_offset("scores", p.selection.scores, base, selecting + (3 * select_runs + 2049) * 4);
    check_offset("places", p.selection.places, base, selecting + (3 * select_runs + 2049 + 2048) * 4);
    bool const fits = address(p.selection.places + 2048) <= end && address(base) + items * region <= end;
    CHECK(fits);
  } else {
    auto const selecting = noted<select_kernel<Scheme>>(on);
    REQUIRE(selecting.size() == 1);
    auto const score = sizes.score();
    wide const io = 2 * up(rows * 128 * 4, 16), queries = io / 2, prepared = score.prepared_bytes() + score.scratch_bytes();  // as the summary has them
    wide const region = up(io + 2 * queries + prepared + up((rows + 1) * blocks * 4, 16), 256), last = (items - 1) * region;
    std::byte* const mine = selecting[0].region_of(selecting[0].item(unsigned(many_sequences - 1), many_heads - 1)) + sizes.io_bytes();
    check_offset("prepared", score.prepared(mine, 32).data, base, last + io + queries);
    check_offset("scores", score.scores(mine), base, last + io + queries + prepared);
    bool const fits = address(score.scores(mine) + (rows + 1) * blocks) <= end && address(base) + items * region <= end;
    CHECK(fits);
  }
}

/// Tiles, far rows, near rows and outliers of the last slot and page, whose ids are at the end of 32 bits.
template <class Scheme>
void check_view(i64 tile_bytes, i64 key_bytes, i64 scale_bytes) {  // of a tile, and of a token's key or value and its scale
  using map_type = memory_map<Scheme>;
  constexpr i64 last_id = 0x7fffffff, token = Scheme::block_tokens, page_blocks = map_type::page_blocks;
  map_type const map{wide_shape, 4, 1 << 18, 1000};
  std::byte *const base = at_address(1 << 20), *const far = at_address(i64{1} << 60);
  std::vector<page_id> const table{page_id(5), page_id(last_id)};
  layer_memory<Scheme> const memory{{map.geometry(), (last_id + 1) * page_blocks}, far, base, base, base, base};
  sequence_view<Scheme> const of{map, memory, last_id, {table.data(), 2}};
  i64 const slice = 2 * token * (key_bytes + scale_bytes);
  CHECK(map.geometry().slice_bytes() == slice);
  for (i64 const block : {page_blocks, 2 * page_blocks - 1})
    for (int const head : {0, many_heads - 1}) {
      wide const physical = wide(last_id) * page_blocks + block % page_blocks, blocks = (wide(last_id) + 1) * page_blocks;
      wide const tile = (block % page_blocks) / map_type::tile_blocks;
      check_offset("tile", of.tile(block, head), base, ((wide(last_id) * many_heads + head) * map_type::tiles_per_page + tile) * tile_bytes);
      auto const rows = of.far_block(logical_block(block), head);
      wide keys = 0, values = 0, key_scales = 0, value_scales = 0, stride = key_bytes;
      if constexpr (Scheme::layout::is_run_contiguous) {
        keys = (physical * many_heads + head) * slice;
        values = keys + token * key_bytes;
        key_scales = values + token * key_bytes;
        value_scales = key_scales + token * scale_bytes;
      } else if constexpr (std::is_same_v<typename Scheme::layout, layout::token_major>) {
        wide const each = blocks * token * many_heads, row = physical * token * many_heads + head;
        keys = row * key_bytes;
        values = each * key_bytes + keys;
        key_scales = 2 * each * key_bytes + row * scale_bytes;
        value_scales = key_scales + each * scale_bytes;
        stride = wide(many_heads) * key_bytes;
      } else {
        wide const each = blocks * token * many_heads, row = (head * blocks + physical) * token;
        keys = row * key_bytes;
        values = each * key_bytes + keys;
        key_scales = 2 * each * key_bytes + row * scale_bytes;
        value_scales = key_scales + each * scale_bytes;
      }
      check_offset("keys", rows.keys.codes, far, keys);
      check_offset("values", rows.values.codes, far, values);
      check_offset("key scales", rows.keys.scales, far, key_scales);
      check_offset("value scales", rows.values.scales, far, value_scales);
      bool const has_stride = rows.keys.code_stride == stride;
      CHECK(has_stride);
    }
  constexpr i64 scalar = sizeof(typename Scheme::near_scalar);
  wide const near_rows = 4 + (wide(1) << 18);
  check_offset("near row", of.near_row(many_heads - 1, 1, 4 + (i64{1} << 18) - 1), base,
               (wide(last_id) + 1) * many_heads * 2 * near_rows * 128 * scalar - 128 * scalar);
  check_offset("near row that wrapped", of.near_row(many_heads - 1, 0, 4 + (i64{1} << 40)), base,
               (wide(last_id) * many_heads * 2 + (many_heads - 1) * 2) * near_rows * 128 * scalar + 4 * 128 * scalar);
  wide const record = 1000 * 4 + 2 * 1000 * wide(token) * 128 * scalar;
  check_offset("last outlier", of.outlier_row(many_heads - 1, 1, 999, 0), base, (wide(last_id) + 1) * many_heads * record - token * 128 * scalar);
}

template <class Scheme, class Layout>
struct laid_out : Scheme {
  using layout = Layout;
};

}  // namespace

TEST_CASE("near pools and results of resolving are counted in 64 bits, lie apart, and within what was allocated") {  // H17, H18
  check_pools<scheme::yakv<128>>(2 * (64 + 2));
  check_pools<in_any_order<scheme::yakv<128>>>(2 * (64 + 2));
  check_pools<in_any_order<scheme::quest<128>>>(2 * 16 * 128 * 2);
}
TEST_CASE("regions of a step's workspace, scores, runs of a selection and partial states, are counted in 64 bits and lie within it") {  // H17, H18
  check_workspace<scheme::yakv<128>>(2);
  check_workspace<scheme::quest<128>>(1);
}
TEST_CASE("tiles, far rows of every layout, near rows and outliers of the last slot and page are counted in 64 bits") {  // H17, H18
  check_view<scheme::yakv<128>>(32 * (32 + 2), 64, 2);
  check_view<laid_out<scheme::yakv<128>, layout::token_major>>(32 * (32 + 2), 64, 2);
  check_view<laid_out<scheme::yakv<128>, layout::head_major>>(32 * (32 + 2), 64, 2);
  check_view<scheme::quest<128>>(2 * 128 * 2 * i64{memory_map<scheme::quest<128>>::tile_blocks}, 256, 0);
}

namespace {

// Offsets by running: a step of many sequences of which only the last one is there, in address space that is memory where it is touched.

/// Of a launch over sequences, the last one's blocks run. Of large buffers the first 4 GiB, and what lies before them, are not to be touched: whoever drops
/// the upper half of an offset ends up there.
class device_of_the_last {
 public:
  static constexpr bool is_host = false;
  static constexpr i64 grid_side = 65535;
  template <class T>
  class buffer {
   public:
    buffer() = default;
    explicit buffer(i64 count) : count_(count) {
      i64 const bytes = round_up(count * i64(sizeof(T)) + 1, 4096), closed = bytes > 2 * four_gib ? 2 * four_gib : 0, before = closed / 2;
      void* const p = ::mmap(nullptr, std::size_t(before + bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      space_ = {static_cast<std::byte*>(p), unmapping{std::size_t(before + bytes)}};
      data_ = space_.get() + before;
      if (::mprotect(space_.get() + closed, std::size_t(before + bytes - closed), PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    }
    T* data() const { return reinterpret_cast<T*>(data_); }
    std::size_t size() const { return std::size_t(count_); }

   private:
    static constexpr i64 four_gib = i64{1} << 32;
    struct unmapping {
      std::size_t bytes = 0;
      void operator()(std::byte* p) const { ::munmap(p, bytes); }
    };
    std::unique_ptr<std::byte, unmapping> space_;
    std::byte* data_ = nullptr;
    i64 count_ = 0;
  };
  template <class T>
  buffer<T> allocate(i64 count) const {
    return buffer<T>(count);
  }
  template <class T>
  buffer<T> upload(std::vector<T>&& x) const {
    buffer<T> b(i64(x.size()));
    std::copy(x.begin(), x.end(), b.data());
    return b;
  }
  void copy(std::byte* to, std::byte const* from, i64 bytes) const { std::memcpy(to, from, std::size_t(bytes)); }
  void download(void* to, void const* from, i64 bytes) const { std::memcpy(to, from, std::size_t(bytes)); }
  void upload(void* to, void const* from, i64 bytes) const { std::memcpy(to, from, std::size_t(bytes)); }
  int multiprocessors() const { return 1; }
  void wait() const {}
  template <int Threads, class Kernel>
  void launch(cuda::grid_size g, i64 shared, Kernel const& kernel) const {
    i64 const blocks = g.z > 1 ? g.x * g.y : g.x;
    emulator::launch({.threads = Threads, .blocks = int(blocks), .shared_bytes = shared}, [&](emulator::team& t) {
      i64 const at = t.block();
      kernel(t, g.z > 1 ? cuda::grid_place{unsigned(at % g.x), unsigned(at / g.x), unsigned(g.z - 1)} : cuda::grid_place{unsigned(at), unsigned(g.y - 1), 0});
    });
  }
};
static_assert(cuda::device<device_of_the_last>);

/// A prompt and some steps of the last of so many sequences: what was selected, what came out, hits and misses.
template <class Scheme>
std::tuple<std::vector<logical_block>, std::vector<float>, i64, i64> last_of(i64 sequences) {
  constexpr int d = Scheme::head_dim, heads = 8;
  using map_type = memory_map<Scheme>;
  device_of_the_last const on;
  budget const b{.tokens = Scheme::block_tokens * 8192, .sinks = 3, .window = 9};
  limits const l{.sequences = int(sequences), .tokens = Scheme::block_tokens * 8192, .generated_tokens = 32, .step_sequences = sequences};
  model_shape const shape{.layers = 1, .query_heads = heads, .kv_heads = heads, .head_dim = d};
  map_type const map{shape, b.sinks, operation::tail_rows<Scheme>({.tokens = 200}, b)};
  auto const sizes = operation::workspace_for<Scheme>(shape, l, b);
  REQUIRE(sizes.selected == 8192);
  i64 const slot = sequences - 1, prompt = 150, pages = ceil_div(i64{200}, map_type::page_tokens);
  std::vector<page_id> table;
  for (i64 p = 0; p < pages; ++p) table.push_back(page_id(pages - 1 - p));
  typename Scheme::layout const layout{map.geometry(), pages * map_type::page_blocks};
  auto const far = on.allocate<std::byte>(layout.bytes()), summaries = on.allocate<std::byte>(pages * map.summary_page());
  auto const near = on.allocate<std::byte>(sequences * map.near_sequence()), state = on.allocate<std::byte>(sequences * map.state_sequence());
  auto const workspace = on.allocate<std::byte>(cuda::step_workspace_bytes<Scheme>(on, shape, l, b));
  auto const ids = on.allocate<logical_block>(sequences * heads * sizes.selected);
  auto const counts = on.allocate<i64>(sequences * heads);
  layer_memory<Scheme> const memory{layout, far.data(), summaries.data(), near.data(), state.data()};
  auto const sealed_at = [&](i64 length) { return (length - b.sinks - b.window) / Scheme::block_tokens; };
  random_numbers r(9);
  i64 sealed = sealed_at(prompt);
  {
    std::vector<float> const k = r.normals(prompt * heads * d), v = r.normals(prompt * heads * d);
    std::vector<float> scratch(std::size_t(operation::prompt_scratch_floats<Scheme>(shape, prompt, scalar_type::f32)));
    prompt_layer<Scheme> const layer{memory, packed_heads(k.data(), prompt, heads, d), packed_heads(v.data(), prompt, heads, d)};
    host::seal_prompt<Scheme>(host::executor(), map, {&layer, 1}, {.slot = slot, .pages = {table.data(), pages}, .sealed = sealed, .length = prompt},
                              {scratch.data(), i64(scratch.size())});
  }
  cuda::run_pools<Scheme, device_of_the_last> const pools(on, map, l, sizes);
  pools.forget(on, slot, 0);
  std::vector<sequence_step> steps(std::size_t(sequences), sequence_step{});
  std::tuple<std::vector<logical_block>, std::vector<float>, i64, i64> all;
  for (i64 i = 1; i <= 3; ++i) {
    i64 const length = prompt + 6 * i, before = sealed;  // some steps seal
    if (!Scheme::keeps_generated) sealed = sealed_at(length);
    steps.back() = {.slot = slot,
                    .pages = {table.data(), pages},
                    .sealed_before = before,
                    .sealed = sealed,
                    .length = length,
                    .new_tokens = 1,
                    .selected_blocks = 5,
                    .number = i};
    row_view<sequence_step const> const view{steps.data(), sequences};
    std::vector<float> const q = r.normals(heads * d, 2);
    std::vector<float> out(q.size(), undefined);
    for (i64 token = length - 5; token <= length; ++token) {  // a step of one token each, of which the last one attends
      steps.back().length = token;
      steps.back().sealed_before = token == length ? before : sealed;
      auto const k = r.normals(heads * d), v = r.normals(heads * d);
      cuda::append_tokens<Scheme, float>(on, map, memory, view, {packed_heads(k.data(), 1, heads, d), packed_heads(v.data(), 1, heads, d)}, workspace.data());
    }
    auto const queries = packed_heads(q.data(), 1, heads, d);
    cuda::select_blocks<Scheme, float>(on, map, memory, view, queries, sizes, workspace.data(), ids.data(), counts.data());
    auto const brought = pools.bring(on, memory, view, ids.data(), counts.data());
    cuda::attend_blocks<Scheme, float>(on, map, memory, view, queries, packed_heads(out.data(), 1, heads, d), sizes, workspace.data(), ids.data(),
                                       counts.data(), false, nullptr, brought);
    for (i64 item = slot * heads; item < sequences * heads; ++item) {
      REQUIRE(counts.data()[item] == 5);
      std::get<0>(all).insert(std::get<0>(all).end(), ids.data() + item * sizes.selected, ids.data() + (item + 1) * sizes.selected);
    }
    std::get<1>(all).insert(std::get<1>(all).end(), out.begin(), out.end());
  }
  pools.count(on, std::get<2>(all), std::get<3>(all));
  return all;
}

}  // namespace

#if !CELLAR_UNDER_THREAD_SANITIZER  // whose address space is too small
TEST_CASE("the last of 60000 sequences, whose scores, ids, runs and partials lie beyond 2^32, gets what the last of two gets") {  // H17
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    auto const expected = last_of<Scheme>(2);
    auto const got = [] {
      try {
        return last_of<Scheme>(60000);
      } catch (std::bad_alloc const&) {
        return decltype(last_of<Scheme>(2)){};
      }
    }();
    if (std::get<1>(got).empty()) return skip("there is not so much address space");
    for (float const x : std::get<1>(expected)) REQUIRE(is_finite(x));
    CHECK(std::get<3>(expected) > 0);
    CHECK(std::get<2>(expected) > 0);
    bool const is_same = got == expected;
    CHECK(is_same);
  };
  check(std::type_identity<scheme::yakv<64, float>>{});
  check(std::type_identity<scheme::quest<64, float>>{});
}
#endif

namespace {

// Whole caches.

/// What a cache gave.
struct life {
  std::vector<float> outputs;
  std::vector<logical_block> selected;  // [step][layer][sequence][KV head][selected]
  i64 hits = 0, misses = 0;
};

struct life_options {
  int layers = 2, kv_heads = 2, group = 3;
  std::vector<i64> prompts{210, 90};
  int steps = 6;
  i64 new_tokens = 2;
  budget of = {.tokens = 64, .sinks = 3, .window = 8};
  i64 pool_runs = 0;
};

template <class Scheme, class Executor>
life live(Executor const& on, life_options const& o) {
  constexpr int d = Scheme::head_dim;
  int const query_heads = o.group * o.kv_heads;
  auto const sequences = i64(o.prompts.size()), rows = sequences * o.new_tokens;
  model_shape const shape{.layers = o.layers, .query_heads = query_heads, .kv_heads = o.kv_heads, .head_dim = d};
  i64 const longest = *std::max_element(o.prompts.begin(), o.prompts.end());
  cache<Scheme, Executor> c(
      on, shape, {.sequences = int(sequences), .tokens = longest + o.steps * o.new_tokens, .step_tokens = o.new_tokens, .pool_runs = o.pool_runs}, o.of);
  random_numbers r(31);
  std::vector<batch_entry> batch;
  for (i64 const tokens : o.prompts) {
    auto k = on.upload(r.normals(o.layers * tokens * o.kv_heads * d)), v = on.upload(r.normals(o.layers * tokens * o.kv_heads * d));
    batch.push_back({c.begin_prompt(prompt_staging<float>{k.data(), v.data(), tokens, tokens}), o.new_tokens});
    c.finish_prompt(on, batch.back().sequence);
  }
  life all;
  for (int i = 0; i < o.steps; ++i) {
    c.plan(on, row_view<batch_entry const>{batch.data(), sequences});
    for (int layer = 0; layer < o.layers; ++layer) {
      auto k = on.upload(r.normals(rows * o.kv_heads * d)), v = on.upload(r.normals(rows * o.kv_heads * d));
      auto q = on.upload(r.normals(rows * query_heads * d, 2)), out = on.upload(std::vector<float>(std::size_t(rows * query_heads * d), undefined));
      c.append(on, layer, packed_heads(k.data(), rows, o.kv_heads, d), packed_heads(v.data(), rows, o.kv_heads, d));
      c.template attend<float>(on, layer, packed_heads(q.data(), rows, query_heads, d), packed_heads(out.data(), rows, query_heads, d));
      std::vector<float> result(std::size_t(rows * query_heads * d));
      on.download(result.data(), out.data(), i64(result.size() * sizeof(float)));
      all.outputs.insert(all.outputs.end(), result.begin(), result.end());
      auto const selection = c.selection();
      std::vector<logical_block> ids(std::size_t(selection.count));
      on.download(ids.data(), selection.data, selection.count * i64(sizeof(logical_block)));
      all.selected.insert(all.selected.end(), ids.begin(), ids.end());
    }
  }
  std::tie(all.hits, all.misses) = c.pool_hits_and_misses(on);
  return all;
}

template <class Scheme>
void check_orders(life_options const& o) {
  auto const first = live<Scheme>(emulator::device<>(orders[0]), o);
  for (float const x : first.outputs) REQUIRE(is_finite(x));
  CHECK(first.hits > 0);
  CHECK(first.misses > i64(o.prompts.size()) * o.layers * o.kv_heads);  // not only what a first step brings
  for (std::size_t i = 1; i < std::size(orders); ++i) {
    auto const order = orders[i];
    INFO(emulator::name_of(order));
    auto const other = live<Scheme>(emulator::device<>(order), o);
    CHECK(other.selected == first.selected);
    bool const is_same = other.outputs == first.outputs;  // to the last bit
    CHECK(is_same);
    CHECK(std::pair(other.hits, other.misses) == std::pair(first.hits, first.misses));
  }
}

}  // namespace

TEST_CASE("whole caches give the same to the last bit in any order of threads and blocks: outputs, selections, hits and misses") {
  life_options o;
  if (is_sanitized) o.layers = 1, o.group = 2, o.steps = 3, o.prompts = {120, 50};
  check_orders<scheme::yakv<64>>(o);
  check_orders<scheme::quest<64>>(o);
}

namespace {

/// What a device was asked for.
struct journal {
  i64 launches = 0, calls = 0;  // calls: copies, transfers and allocations
  i64 most_blocks = 0;          // of a launch
};

/// An emulated device whose blocks run one by one, each to its end before the next one begins, from the first or from the last.
enum class block_order { ascending, descending };
template <class Drivers = cuda::grid_size>
class watched_device : public emulator::device<Drivers> {
  using base = emulator::device<Drivers>;

 public:
  explicit watched_device(journal& j, block_order order = block_order::ascending) : base(emulator::forward), journal_(&j), order_(order) {}

  template <class Scheme>
  using run_pools = cuda::run_pools<Scheme, watched_device>;
  template <class Scheme>
  using kept_selections = cuda::kept_selections<Scheme, watched_device>;
  template <class T>
  typename base::template buffer<T> allocate(i64 count) const {
    ++journal_->calls;
    return base::template allocate<T>(count);
  }
  void copy(std::byte* to, std::byte const* from, i64 bytes) const {
    ++journal_->calls;
    base::copy(to, from, bytes);
  }
  void download(void* to, void const* from, i64 bytes) const {
    ++journal_->calls;
    base::download(to, from, bytes);
  }
  template <class T>
  typename base::template buffer<T> upload(std::vector<T>&& x) const {
    ++journal_->calls;
    return base::upload(std::move(x));
  }
  void upload(void* to, void const* from, i64 bytes) const {
    ++journal_->calls;
    base::upload(to, from, bytes);
  }
  template <int Threads, class Kernel>
  void launch(cuda::grid_size g, i64 shared, Kernel const& kernel) const {
    i64 const blocks = g.x * g.y * g.z;
    ++journal_->launches;
    journal_->most_blocks = std::max(journal_->most_blocks, blocks);
    emulator::launch({.threads = Threads, .blocks = int(blocks), .shared_bytes = shared, .order = emulator::forward}, [&](emulator::team& t) {
      i64 const at = order_ == block_order::ascending ? i64{t.block()} : blocks - 1 - t.block();
      kernel(t, cuda::grid_place{unsigned(at % g.x), unsigned(at / g.x % g.y), unsigned(at / g.x / g.y)});
    });
  }

 private:
  journal* journal_;
  block_order order_;
};
static_assert(cuda::device<watched_device<>>);

template <class Scheme>
struct overlapped : Scheme {
  static constexpr bool keeps_generated = false, is_reproducible = false;
};

/// A step of more sequences than a GPU has room for: blocks that wait for blocks after them would wait for ever.
template <class Scheme>
void check_blocks_alone(i64 sequences) {
  constexpr i64 resident = 132 * 16;  // blocks of 128 threads on an H100
  life_options o{.layers = 1, .kv_heads = 8, .group = 1, .prompts = std::vector<i64>(std::size_t(sequences), 44), .steps = 1, .new_tokens = 1};
  o.of = {.tokens = Scheme::block_tokens == 1 ? 8 : 32, .window = 4};
  journal seen;
  auto const expected = live<Scheme>(watched_device<>(seen), o);
  if (!is_sanitized) CHECK(seen.most_blocks > 4 * resident);
  CHECK(expected.misses >= sequences * o.kv_heads);
  auto const other = live<Scheme>(watched_device<>(seen, block_order::descending), o);
  CHECK(other.selected == expected.selected);
  bool const is_same = other.outputs == expected.outputs;
  CHECK(is_same);
  CHECK(other.misses == expected.misses);
}

}  // namespace

TEST_CASE("no block of a launch waits for another: of thousands, each runs to its end before the next one begins, from the first or from the last") {  // H40
  i64 const sequences = is_sanitized ? 2 : 17;
  check_blocks_alone<scheme::yakv<64>>(sequences);
  check_blocks_alone<overlapped<scheme::quest<64>>>(sequences);
}

namespace {

/// What one step of a cache asks of a device, of which all selected runs are missing.
template <class Scheme>
std::pair<journal, i64> step_of(i64 selected_tokens) {
  constexpr int d = 64, heads = 2;
  journal seen;
  watched_device<> const on(seen);
  i64 const prompt = 400;
  cache<Scheme, watched_device<>> c(on, {.layers = 1, .query_heads = heads, .kv_heads = heads, .head_dim = d}, {.sequences = 1, .tokens = 500},
                                    {.tokens = selected_tokens, .window = 8});
  random_numbers r(3);
  auto k = on.upload(r.normals(prompt * heads * d)), v = on.upload(r.normals(prompt * heads * d)), q = on.upload(r.normals(heads * d));
  auto out = on.upload(std::vector<float>(heads * d));
  batch_entry const one{c.begin_prompt(prompt_staging<float>{k.data(), v.data(), prompt, prompt}), 1};
  c.finish_prompt(on, one.sequence);
  seen = {};
  c.plan(on, row_view<batch_entry const>{&one, 1});
  c.append(on, 0, packed_heads(k.data(), 1, heads, d), packed_heads(v.data(), 1, heads, d));
  c.template attend<float>(on, 0, packed_heads(q.data(), 1, heads, d), packed_heads(out.data(), 1, heads, d));
  journal const of_step = seen;
  return {of_step, c.pool_hits_and_misses(on).second};
}

}  // namespace

TEST_CASE(
    "missing runs, however small and many, are gathered by launches: a step copies nothing by calls, and launches as often for two as for hundreds") {  // H30
  auto const check = []<class Scheme>(std::type_identity<Scheme>, i64 most) {
    auto const few = step_of<Scheme>(Scheme::block_tokens), many = step_of<Scheme>(most * Scheme::block_tokens);
    CHECK(few.second == 2);
    CHECK(many.second == 2 * most);
    CHECK(few.first.calls == 0);
    CHECK(many.first.calls == 0);
    CHECK(many.first.launches == few.first.launches);
  };
  check(std::type_identity<scheme::yakv<64>>{}, 300);
  check(std::type_identity<scheme::quest<64>>{}, 20);
  check(std::type_identity<overlapped<scheme::quest<64>>>{}, 20);
}

namespace {

/// Layers whose runs an engine has near `depth` layers before they attend, around the end of a step: layer + depth, counted on into the next step.
void check_ring(int layers, int depth) {
  using scheme_type = scheme::quest<64, float>;
  constexpr int d = 64, heads = 2;
  constexpr i64 prompt = 300;
  int const steps = is_sanitized ? 2 : 3;
  INFO(layers << " layers, " << depth << " ahead");
  emulator::device<> const on;
  using cache_type = cache<scheme_type, emulator::device<>>;
  model_shape const shape{.layers = layers, .query_heads = heads, .kv_heads = heads, .head_dim = d};
  limits const l{.sequences = 1, .tokens = 320};
  budget const b{.tokens = 64, .window = 8};
  cache_type plain(on, shape, l, b), ahead(on, shape, l, b);
  random_numbers r(11);
  auto k = on.upload(r.normals(layers * prompt * heads * d)), v = on.upload(r.normals(layers * prompt * heads * d));
  batch_entry const one = [&] {
    sequence_id id{};
    for (auto* const c : {&plain, &ahead}) {
      id = c->begin_prompt(prompt_staging<float>{k.data(), v.data(), prompt, prompt});
      c->finish_prompt(on, id);
    }
    return batch_entry{id, 1};
  }();
  auto q = on.upload(r.normals(steps * layers * heads * d, 2));
  // `number`: layers attended before, of all steps.
  auto const attend = [&](cache_type& c, int number) {
    auto const at = [&](float const* x) { return packed_heads(x + number * heads * d, 1, heads, d); };
    std::vector<float> result(heads * d);
    auto out = on.upload(std::vector<float>(heads * d));
    c.append(on, number % layers, at(k.data()), at(v.data()));
    c.attend<float>(on, number % layers, at(q.data()), packed_heads(out.data(), 1, heads, d));
    on.download(result.data(), out.data(), heads * d * i64(sizeof(float)));
    return result;
  };
  std::vector<std::vector<float>> outputs;
  std::vector<std::vector<logical_block>> chosen;  // [layer of a step][head]
  for (int i = 0; i < steps * layers; ++i) {
    if (i % layers == 0) plain.plan(on, row_view<batch_entry const>{&one, 1});
    outputs.push_back(attend(plain, i));
    for (int head = 0; head < heads; ++head) chosen.push_back(*plain.selected(on, 0, head));
  }
  auto const counts = [&] { return ahead.pool_hits_and_misses(on); };
  for (int i = 0; i < steps * layers; ++i) {
    if (i % layers == 0) ahead.plan(on, row_view<batch_entry const>{&one, 1});
    auto const before = counts();
    bool const is_same = attend(ahead, i) == outputs[std::size_t(i)];
    CHECK(is_same);
    auto const after = counts();
    i64 const all = 2 * 4;
    CHECK(after.second - before.second == (i < depth ? all : 0));
    CHECK(after.first - before.first == (i < depth ? 0 : all));
    if (int const next = i + depth; next < steps * layers)
      for (int head = 0; head < heads; ++head) {
        auto const& ids = chosen[std::size_t(next * heads + head)];
        ahead.prefetch(on, next % layers, one.sequence, head, {ids.data(), i64(ids.size())});
      }
  }
}

}  // namespace

TEST_CASE("runs that are had near some layers ahead, around the end of a step, are their layer's, though that many do not divide the layers") {  // H7
  check_ring(5, 2);
  if constexpr (is_sanitized) return;  // the same code
  check_ring(5, 3);
  check_ring(3, 2);
}

namespace {

/// Sequences that have one block less than a step selects, as many, and one more; pools for which fewer slots are asked than that.
template <class Scheme>
void check_few_blocks() {
  constexpr i64 B = Scheme::block_tokens, k = 4;
  life_options o{.layers = 1, .kv_heads = 2, .group = 1, .prompts = {}, .steps = is_sanitized ? 3 : 5, .new_tokens = 4};
  o.of = {.tokens = k * B, .window = 8};
  for (i64 const blocks : {i64{0}, i64{1}, k - 1, k, k + 1}) o.prompts.push_back(std::max<i64>(1, 8 + blocks * B - 1) + (blocks > 0));
  auto const pools = i64(o.prompts.size()) * o.layers * o.kv_heads;
  auto const got = live<Scheme>(emulator::device<>(), o);
  std::size_t at = 0;
  i64 ids = 0, full = 0, short_ones = 0;
  for (int step = 0; step < o.steps; ++step)
    for (int layer = 0; layer < o.layers; ++layer)
      for (i64 const prompt : o.prompts)
        for (int head = 0; head < o.kv_heads; ++head, at += k) {
          i64 const length = Scheme::keeps_generated ? prompt : prompt + (step + 1) * o.new_tokens;
          i64 const sealed = std::max<i64>(0, length - 8) / B, wanted = std::min(k, sealed);
          auto const first = got.selected.begin() + i64(at);
          CHECK(std::is_sorted(first, first + wanted));
          CHECK((wanted == 0 || number(*first) >= 0));
          CHECK(std::adjacent_find(first, first + wanted) == first + wanted);
          CHECK((wanted == 0 || number(first[wanted - 1]) < sealed));
          CHECK(std::all_of(first + wanted, first + k, [](logical_block b) { return b == logical_block{-1}; }));
          ids += wanted;
          full += sealed > k;
          short_ones += sealed == k - 1;
        }
  CHECK(at == got.selected.size());
  CHECK(full > 0);
  CHECK(short_ones > 0);
  CHECK(got.hits + got.misses == ids);
  for (i64 const slots : {k - 1, i64{1}, k + 1}) {  // what is asked for never makes a pool smaller than a selection
    o.pool_runs = slots * pools;
    auto const other = live<Scheme>(emulator::device<>(emulator::backward), o);
    INFO(slots << " slots asked for");
    CHECK(other.selected == got.selected);
    bool const is_same = other.outputs == got.outputs;
    CHECK(is_same);
    CHECK(other.hits + other.misses == ids);
    if (slots <= k) CHECK(other.misses == got.misses);
    if (slots > k) CHECK(other.misses <= got.misses);
    if constexpr (is_sanitized) break;
  }
}

}  // namespace

TEST_CASE("one block less than a step selects, as many, and one more, in pools that were asked to be a slot short, are all attended to") {  // H10
  check_few_blocks<scheme::quest<64>>();
  check_few_blocks<scheme::yakv<64>>();
}
