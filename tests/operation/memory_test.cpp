// Where an engine's memory is read and written: offsets beyond 32 bits, and everything that moves with a page.
#include <sys/mman.h>

#include <memory>

#include "cache/reference.hpp"
#include "operation/engine_memory.hpp"

using namespace cellar;

namespace {

/// Address space without memory behind it, until it is touched; what lies before `first` is not to be touched, and ends the program.
class sparse_memory {
 public:
  sparse_memory(i64 bytes, i64 first) : bytes_(std::size_t(bytes)) {
    data_ = ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    i64 const begin = first / 65536 * 65536;
    if (*this && ::mprotect(data() + begin, bytes_ - std::size_t(begin), PROT_READ | PROT_WRITE) != 0) {
      ::munmap(data_, bytes_);
      data_ = MAP_FAILED;
    }
  }
  sparse_memory(sparse_memory const&) = delete;
  sparse_memory& operator=(sparse_memory const&) = delete;
  ~sparse_memory() {
    if (*this) ::munmap(data_, bytes_);
  }
  explicit operator bool() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

/// A prompt of 150 tokens and 30 steps, of slot `slot` and of pages from `first_page` on, 3 apart. Nothing where there is no such address space.
template <class Scheme>
std::vector<float> outputs(i64 slot, i64 first_page) {
  constexpr int d = Scheme::head_dim;
  using map_type = memory_map<Scheme>;
  budget const b{.tokens = 32, .sinks = 3, .window = 9};
  limits const l{.sequences = 1, .tokens = 200};
  reference<Scheme> ref(1, 2, 2, 71, 1);
  model_shape const& shape = ref.shape();
  map_type const map{shape, b.sinks, 60};
  std::vector<page_id> table;
  for (i64 p = 0; p < ceil_div(200, map_type::page_tokens); ++p) table.push_back(page_id(first_page + 3 * p));
  i64 const pages = first_page + 3 * i64(table.size());
  typename Scheme::layout const layout{map.geometry(), pages * map_type::page_blocks};
  bool const is_by_page = Scheme::layout::is_run_contiguous;  // else planes lie far apart
  sparse_memory const far(layout.bytes(), is_by_page ? first_page * map.far_page() : 0),
      summaries(pages * map.summary_page() + 64, first_page * map.summary_page()), near((slot + 1) * map.near_sequence(), slot * map.near_sequence()),
      state((slot + 1) * map.state_sequence() + 64, slot * map.state_sequence());
  if (!far || !summaries || !near || !state) return {};
  layer_memory<Scheme> const memory{layout, far.data(), summaries.data(), near.data(), state.data()};
  std::unique_ptr<std::byte, decltype(&std::free)> const workspace(
      static_cast<std::byte*>(std::aligned_alloc(64, std::size_t(round_up(operation::workspace_bytes<Scheme>(shape, l, b, 1), 64)))), &std::free);
  auto const sizes = operation::workspace_for<Scheme>(shape, l, b);
  std::vector<logical_block> ids(std::size_t(2 * sizes.selected));
  std::vector<i64> counts(2);
  auto const data = ref.sequence(150, 200);
  auto const sealed_at = [&](i64 length) { return (length - b.sinks - b.window) / Scheme::block_tokens; };
  auto const pages_for = [&](i64 sealed) { return row_view<page_id const>{table.data(), ceil_div(sealed, map_type::page_blocks)}; };
  i64 sealed = sealed_at(150);
  std::vector<float> scratch(std::size_t(operation::prompt_scratch_floats<Scheme>(shape, 150, scalar_type::f32)));
  prompt_layer<Scheme> const layer{memory, packed_heads<float const>(data.keys.data(), 150, 2, d), packed_heads<float const>(data.values.data(), 150, 2, d)};
  host::executor const on;
  host::seal_prompt<Scheme>(on, map, {&layer, 1}, {.slot = slot, .pages = pages_for(sealed), .sealed = sealed, .length = 150},
                            {scratch.data(), i64(scratch.size())});
  std::vector<float> all;
  for (i64 length = 151; length <= 180; ++length) {
    i64 const before = sealed;
    if (!Scheme::keeps_generated) sealed = sealed_at(length);
    sequence_step const step{slot, pages_for(sealed), before, sealed, length, 1, 0, operation::budget_blocks<Scheme>(b, 0)};
    auto const row = [&](std::vector<float> const& x) { return packed_heads<float const>(ref.row(x, data, 0, length - 1), 1, 2, d); };
    auto const q = random_numbers(std::uint64_t(length)).normals(4 * d, 2);
    std::vector<float> out(q.size());
    auto const queries = packed_heads<float const>(q.data(), 1, 4, d);
    host::append_tokens<Scheme, float>(on, map, memory, {&step, 1}, {row(data.keys), row(data.values)}, workspace.get());
    constexpr bool every = operation::selects_everything<Scheme>;
    if constexpr (!every) host::select_blocks<Scheme, float>(on, map, memory, {&step, 1}, queries, sizes, workspace.get(), ids.data(), counts.data());
    host::attend_blocks<Scheme, float>(on, map, memory, {&step, 1}, queries, packed_heads(out.data(), 1, 4, d), sizes, workspace.get(), ids.data(),
                                       counts.data(), every);
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

template <int D>
struct in_token_major : scheme::quest<D, float> {
  using layout = cellar::layout::token_major;
};
template <int D>
struct in_head_major : scheme::quest<D, float> {
  using layout = cellar::layout::head_major;
};
template <int D>
struct learnt : scheme::yakv_centred<D, float> {
  static constexpr bool keeps_generated = false;
};
template <int D>
struct landmarks : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
};

}  // namespace

#if !CELLAR_UNDER_THREAD_SANITIZER                                                              // whose address space is too small
TEST_CASE("slots and pages whose bytes lie beyond 2^31 and 2^32 serve as the first ones do") {  // H17
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    memory_map<Scheme> const map{reference<Scheme>(1, 2, 2, 71, 1).shape(), 3, 60};
    auto const expected = outputs<Scheme>(0, 0);
    REQUIRE(!expected.empty());
    for (int const bits : {31, 32, 33}) {
      i64 const wanted = (i64{1} << bits) - 1;  // pages from the last before the border on
      auto const beyond = [&](i64 bytes) { return bytes > 0 ? wanted / bytes : 0; };
      auto const smallest = map.state_sequence() > 0 ? std::min(map.state_sequence(), map.near_sequence()) : map.near_sequence();
      for (i64 const slot : {i64{0}, beyond(map.near_sequence()), beyond(smallest)})
        for (i64 const page : {i64{0}, beyond(map.far_page()), beyond(map.summary_page())}) {
          auto const got = outputs<Scheme>(slot, page);
          if (got.empty()) return skip("there is no address space of " + std::to_string(slot * map.near_sequence() + page * map.far_page()) + " bytes");
          bool const is_same = got == expected;
          INFO("slot " << slot << ", page " << page);
          REQUIRE(is_same);
        }
    }
  };
  check(std::type_identity<scheme::quest<64, float>>{});
  check(std::type_identity<in_token_major<64>>{});
  check(std::type_identity<in_head_major<64>>{});
  check(std::type_identity<learnt<64>>{});
  check(std::type_identity<landmarks<64>>{});
}
#endif

TEST_CASE("places are counted in 64 bits up to the last id") {  // H17, H18
  using Scheme = landmarks<128>;
  using map_type = memory_map<Scheme>;
  map_type const long_map{{.layers = 1, .query_heads = 64, .kv_heads = 8, .head_dim = 128}, 4, 1 << 20};
  CHECK(long_map.near_sequence() == i64{8} * 2 * ((1 << 20) + 4) * 128 * 4);  // beyond 2^33
  map_type const map{long_map.shape, 4, 1 << 10};
  CHECK(map.near_rows() == (1 << 10) + 4);
  CHECK(map.far_page() == i64{128} * 8 * 2 * 128 * 4);
  auto* const base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 20);  // never read
  page_id const last{0x7fffffff};
  std::vector<page_id> const table(3, last);
  layer_memory<Scheme> const memory{{map.geometry(), i64{1} << 35}, base, base, base, base};
  sequence_view<Scheme> const of{map, memory, (i64{1} << 31) - 1, {table.data(), 3}};
  auto const from_base = [&](void const* p) { return std::int64_t(reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(base)); };
  i64 const page_blocks = map_type::page_blocks, id = 0x7fffffff;
  for (i64 const block : {i64{0}, page_blocks, 3 * page_blocks - 1})
    for (int const head : {0, 7}) {
      i64 const tile = block % page_blocks / map_type::tile_blocks;
      CHECK(from_base(of.tile(block, head)) == id * map.summary_page() + (head * map_type::tiles_per_page + tile) * map.tile());
      i64 const physical = id * page_blocks + block % page_blocks;
      CHECK(from_base(of.far_block(logical_block(block), head).values.codes) == (physical * 8 + head) * 2 * 8 * 128 * 4 + 8 * 128 * 4);
      CHECK(of.position(block) == 4 + block * 8);
    }
  CHECK(from_base(of.near_row(7, 1, 4 + (1 << 10) - 1)) == id * map.near_sequence() + map.near_sequence() - 128 * 4);
  CHECK(number(of.far_layout().resolve(logical_block(3 * page_blocks - 1))) == id * page_blocks + page_blocks - 1);
  CHECK(of.position((i64{1} << 31) - 1) == 4 + ((i64{1} << 31) - 1) * 8);
}

TEST_CASE("a page is copied with every plane of its blocks and every summary, over memory that is poisoned, and nothing beside it") {  // H22, H23
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    using map_type = memory_map<Scheme>;
    reference<Scheme> ref(1, 3, 1, 72);
    engine_memory<Scheme> mine(ref.shape(), {.sequences = 2, .tokens = 2 * map_type::page_tokens}, {.tokens = 16}, 1);
    page_id const from{1}, to{3};
    auto const layer = mine.layer();
    block_geometry const g = mine.map.geometry();
    random_numbers r(72);
    auto const each_row = [&](page_id page, auto const& f) {
      for (i64 b = 0; b < map_type::page_blocks; ++b)
        for (int p = 0; p < plane_count; ++p)
          for (int head = 0; head < g.copies(p); ++head)
            for (i64 row = 0; row < g.rows[p]; ++row)
              for (i64 i = 0; i < g.row_bytes[p]; ++i)
                f(b, mine.far[std::size_t(mine.layout.offset(plane(p), physical_block(number(page) * map_type::page_blocks + b), head, row) + i)]);
    };
    std::vector<std::byte> planes;
    each_row(from, [&](i64, std::byte& x) { planes.push_back(x = std::byte(r.below(255))); });
    for (i64 i = 0; i < mine.map.summary_page(); ++i) mine.summaries[std::size_t(mine.map.summary_page() + i)] = std::byte(r.below(255));
    i64 const blocks = map_type::page_blocks - 1;  // the last one is not sealed
    auto const far_before = mine.far, summaries_before = mine.summaries;
    host::copy_page<Scheme>({}, mine.map, {&layer, 1}, from, to, blocks);
    std::size_t next = 0;
    each_row(to, [&](i64 b, std::byte& x) {
      std::byte const expected = b < blocks ? planes[next] : std::byte{0xff};
      ++next;
      REQUIRE(x == expected);
      x = std::byte{0xff};
    });
    CHECK(mine.far == far_before);  // the rest is as it was
    for (i64 i = 0; i < mine.map.summary_page(); ++i) {
      std::byte& x = mine.summaries[std::size_t(3 * mine.map.summary_page() + i)];
      REQUIRE(x == mine.summaries[std::size_t(mine.map.summary_page() + i)]);
      x = std::byte{0xff};
    }
    CHECK(mine.summaries == summaries_before);
  };
  for_each_scheme<32>(check);
  check(std::type_identity<in_token_major<16>>{});
  check(std::type_identity<in_head_major<16>>{});
}
