// Caches whose far planes lie in a file: the same attention, what the pool does for it, and what failing I/O does to it.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace file_tier_test {

namespace {

template <int D>
struct shared_planes : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::low_rank<cellar::codec::fixed_rank<12>, jacobi_eigensolver, float>;
};

struct scaled_rows : scheme::quest<16, float> {  // plain rows: in place in memory
  using key_codec = cellar::codec::int8<>;
  using value_codec = cellar::codec::fp8_e4m3<f16>;
};

/// The same step of a cache in memory and of one in a file.
template <class Scheme>
void check_same(i64 pool_runs) {
  using filed = in_file<Scheme>;
  budget const b{.tokens = 32, .sinks = 3, .window = 8};
  reference<Scheme> ref(2, 2, 3, 41, 1);
  reference<filed> same(2, 2, 3, 41, 1);
  host::thread_pool pool(3);
  host::executor const on(pool);
  trial<Scheme> a(ref, {150, 70}, 60, b, on, 1, 1);
  trial<filed> f(same, {150, 70}, 60, b, on, 1, 1, pool_runs);
  statistics counts;
  f.cache.observe(&counts);
  for (int i = 0; i < (is_sanitized ? 15 : 30); ++i) {
    REQUIRE(a.step({0, 1}, {1, 1}, rounding, i % 5 == 0) == f.step({0, 1}, {1, 1}, rounding, i % 5 == 0));
    if (i == 10) {
      bool const discards = std::is_same_v<typename Scheme::select, select::none>;
      a.truncate(0, discards ? 155 : 100);
      f.truncate(0, discards ? 155 : 100);
    }
    if (i == 12) {
      a.fork(1);
      f.fork(1);
    }
    if (i > 12) REQUIRE(a.step({2}, {1}, rounding, false) == f.step({2}, {1}, rounding, false));
  }
  if constexpr (Scheme::select::reads_scores) {
    CHECK(counts.pool_hits + counts.pool_misses >= counts.fetched_blocks);
    if (pool_runs == 0) CHECK(counts.pool_misses > 0);
    if (pool_runs == 1000000) CHECK(counts.pool_hits > counts.pool_misses);
  }
}

}  // namespace

TEST_CASE("far planes in a file give the attention of far planes in memory, with pools of any size") {
  // One layer's selection, less than one step needs, all there is.
  for (i64 const pool_runs : is_sanitized ? std::vector<i64>{1, 1000000} : std::vector<i64>{0, 1, 5, 1000000}) {
    if constexpr (!is_sanitized) for_each_scheme<32>([&]<class Scheme>(std::type_identity<Scheme>) { check_same<Scheme>(pool_runs); });
    check_same<shared_planes<16>>(pool_runs);
    check_same<scaled_rows>(pool_runs);
  }
}

TEST_CASE("prefetched blocks are hits, and a pool serves what it has without the file") {
  using Scheme = in_file<scheme::quest<16, float>>;
  reference<Scheme> ref(1, 1, 1, 42);
  host::executor const on;
  trial<Scheme> t(ref, {200}, 20, {.tokens = 64}, on, 1, 0, 40);
  statistics counts;
  t.cache.observe(&counts);
  std::vector<logical_block> all;
  for (int b = 0; b < 12; ++b) all.push_back(logical_block(b));
  t.cache.prefetch(on, 0, t.ids[0], 0, {all.data(), 12});
  CHECK(counts.pool_misses == 12);
  CHECK(counts.moved_bytes == 12 * t.cache.map().geometry().slice_bytes());
  t.step({0}, {1}, rounding);
  CHECK(counts.pool_hits == 4);
  CHECK(counts.pool_misses == 12);
  CHECK(counts.moved_bytes == 12 * t.cache.map().geometry().slice_bytes());
  CHECK(t.cache.usage(t.ids[0]).pool == 40 * t.cache.map().geometry().slice_bytes());
  logical_block const beyond{12};
  CHECK_THROWS_WITH(t.cache.prefetch(on, 0, t.ids[0], 0, {&beyond, 1}), contains("sealed"));
  CHECK_THROWS_WITH(t.cache.prefetch(on, 0, t.ids[0], 1, {&beyond, 1}), contains("KV head"));
}

TEST_CASE("what an open step seals cannot be prefetched in a layer before it is appended there") {
  using Scheme = in_file<scheme::quest<16, float>>;
  reference<Scheme> ref(2, 1, 1, 44);
  host::executor const on;
  trial<Scheme> t(ref, {32}, 20, {.tokens = 64}, on);
  for (int i = 0; i < 16; ++i) t.step({0}, {1}, rounding);
  batch_entry const one{t.ids[0], 1};
  t.cache.plan(on, {&one, 1});
  REQUIRE(t.cache.sealed_blocks(t.ids[0]) == 3);
  std::vector<float> const x(16, 0.5f);
  auto const rows = packed_heads<float const>(x.data(), 1, 1, 16);
  t.cache.append(on, 0, rows, rows);
  logical_block const sealed{2};
  CHECK_NOTHROW(t.cache.prefetch(on, 0, t.ids[0], 0, {&sealed, 1}));
  CHECK_THROWS_WITH(t.cache.prefetch(on, 1, t.ids[0], 0, {&sealed, 1}), contains("sealed"));
  t.cache.append(on, 1, rows, rows);
  CHECK_NOTHROW(t.cache.prefetch(on, 1, t.ids[0], 0, {&sealed, 1}));
}

namespace {

/// A file that fails at the n-th call, in several ways. What it does with the bytes is what a disk may do.
struct faulty_file {
  enum class kind { error, lost_write, torn_write, flipped_bit };
  static inline i64 calls = 0, fails_at = -1;
  static inline kind how = kind::error;

  tier::posix_file file;
  faulty_file(std::string const& path, bool is_kept) : file(path, is_kept) {}
  std::string const& path() const { return file.path(); }
  void resize(i64 n) { file.resize(n); }
  void write(i64 offset, row_view<std::byte const> from) {
    if (calls++ != fails_at) return file.write(offset, from);
    if (how == kind::error) throw io_error(5, "pwrite", path());
    if (how == kind::torn_write) file.write(offset, {from.data, from.count / 2});
    if (how == kind::flipped_bit) {
      std::vector<std::byte> x(from.begin(), from.end());
      x[x.size() / 3] ^= std::byte{4};
      file.write(offset, {x.data(), i64(x.size())});
    }
  }
  void read(i64 offset, row_view<std::byte> to) {
    bool const fails = calls++ == fails_at;
    if (fails && how == kind::error) throw io_error(5, "pread", path());
    file.read(offset, to);
    if (fails) to[to.count / 2] ^= std::byte{1};
  }
};
struct faulty_tier : tier::basic_file<faulty_file> {
  struct options {};
  faulty_tier(int layers, block_geometry const& g, i64 blocks, options const&) : basic_file(layers, g, blocks, {.path = scratch_path()}) {}
};
struct faulty_quest : scheme::quest<16, float> {
  using tier = faulty_tier;
};

}  // namespace

TEST_CASE("a transfer that fails at any point is an error, loses nothing, and may be tried again") {  // H26
  // A run without faults says how many calls there are, and what comes out.
  auto const run = [](i64 fails_at, faulty_file::kind how, int& errors) {
    faulty_file::fails_at = -1;
    reference<faulty_quest> ref(2, 1, 2, 43);
    host::executor const on;
    cache<faulty_quest> c(on, ref.shape(), {.sequences = 1, .tokens = 100}, {.tokens = 32, .window = 4});
    faulty_file::calls = 0;
    faulty_file::fails_at = fails_at;
    faulty_file::how = how;
    auto const data = ref.sequence(60, 100);
    std::vector<float> keys, values, outputs;
    auto const insisting = [&](auto const& call) {  // once more where it failed
      try {
        call();
      } catch (io_error const&) {
        ++errors;
        call();
      }
    };
    auto const id = c.begin_prompt(ref.staging(data, keys, values));
    insisting([&] { c.finish_prompt(on, id); });
    for (i64 p = 60; p < 90; ++p) {
      batch_entry const one{id, 1};
      c.plan(on, {&one, 1});
      for (int layer = 0; layer < 2; ++layer) {
        auto const q = random_numbers(std::uint64_t(p)).normals(32, 2);
        std::vector<float> out(32);
        insisting([&] {
          c.append(on, layer, packed_heads<float const>(ref.row(data.keys, data, layer, p), 1, 1, 16),
                   packed_heads<float const>(ref.row(data.values, data, layer, p), 1, 1, 16));
        });
        insisting([&] { c.attend(on, layer, packed_heads<float const>(q.data(), 1, 2, 16), packed_heads(out.data(), 1, 2, 16)); });
        outputs.insert(outputs.end(), out.begin(), out.end());
      }
      if (p == 80 && how != faulty_file::kind::lost_write) insisting([&] { c.truncate(on, id, 43); });
    }
    return outputs;
  };
  int none = 0;
  auto const expected = run(-1, faulty_file::kind::error, none);
  i64 const all_calls = faulty_file::calls;
  REQUIRE(none == 0);
  REQUIRE(all_calls > 100);
  for (i64 at = 0; at < all_calls; ++at) {
    int errors = 0;
    INFO("call " << at << " of " << all_calls);
    bool const is_same = run(at, faulty_file::kind::error, errors) == expected;
    REQUIRE(is_same);
    REQUIRE(errors == 1);
  }
  // Damage that no call reports (a lost write only where no older run is in its place) shows when the run is read: an error then, every time, never an answer
  // made of it.
  for (auto const how : {faulty_file::kind::lost_write, faulty_file::kind::torn_write, faulty_file::kind::flipped_bit}) {
    auto const undamaged = run(-1, how, none);
    i64 const calls = faulty_file::calls;
    i64 noticed = 0;
    for (i64 at = 0; at < calls; ++at) {
      int errors = 0;
      std::vector<float> outputs;
      try {
        outputs = run(at, how, errors);
      } catch (io_error const& e) {
        REQUIRE(std::string(e.what()).find("checksum") != std::string::npos);
        ++noticed;
        continue;
      }
      INFO("damage " << int(how) << " at call " << at << " of " << calls);
      bool const is_same = outputs == undamaged;
      REQUIRE(is_same);  // the run was not read, or a read was damaged once
    }
    CHECK(noticed >= 8);
  }
}

}  // namespace file_tier_test
