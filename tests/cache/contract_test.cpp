// What a cache refuses, what it promises about memory, and what it counts.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <system_error>

#include "cache/reference.hpp"
#include "cache/scratch.hpp"

using namespace cellar;

namespace {

// Atomic: other tests of this program allocate in several threads.
[[maybe_unused]] std::atomic<std::int64_t> allocations = 0, last_allocation = std::numeric_limits<std::int64_t>::max();  // beyond it there is no memory

}  // namespace

#if !CELLAR_UNDER_ADDRESS_SANITIZER  // which replaces these itself
// noinline: g++ takes an inlined pair of malloc and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t n) {
  if (++allocations > last_allocation) throw std::bad_alloc();
  if (void* const p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif

namespace contract_test {

namespace {

constexpr int d = 32;
using yakv = scheme::yakv<d, float>;
using dense = scheme::dense<d, float>;

model_shape const shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = d};
host::executor const serial;

struct sealing : scheme::mean_landmark<d, float> {  // pages of 128 tokens, filled while decoding
  static constexpr bool keeps_generated = false;
};
struct with_outliers : sealing {
  using outliers = cellar::select::least_cosine;
};

/// A cache with one prompt of 100 tokens, and rows to feed it.
template <class Scheme>
struct small {
  random_numbers r{1};
  std::vector<float> keys = r.normals(2 * 200 * 2 * d), values = r.normals(2 * 200 * 2 * d), k = r.normals(8 * 2 * d), v = r.normals(8 * 2 * d),
                     q = r.normals(8 * 4 * d), out = std::vector<float>(8 * 4 * d, -7.f);
  cache<Scheme> c;
  sequence_id id;

  explicit small(limits const& l = {.sequences = 2, .tokens = 120, .step_tokens = 4}, budget const& b = {.tokens = 16, .window = 8}) : c(serial, shape, l, b) {
    id = c.begin_prompt(staging());
    c.finish_prompt(serial, id);
  }
  prompt_staging<float> staging(std::int64_t filled = 100) { return {keys.data(), values.data(), 200, filled}; }
  void plan(std::int64_t n = 1) {
    batch_entry const one{id, n};
    c.plan(serial, {&one, 1});
  }
  void append(int layer, std::int64_t n = 1) {
    c.append(serial, layer, packed_heads<float const>(k.data(), n, 2, d), packed_heads<float const>(v.data(), n, 2, d));
  }
  void attend(int layer, std::int64_t n = 1) { c.attend(serial, layer, packed_heads<float const>(q.data(), n, 4, d), packed_heads(out.data(), n, 4, d)); }
  std::vector<float> step(std::int64_t n = 1) {
    plan(n);
    std::vector<float> all;
    for (int layer = 0; layer < 2; ++layer) {
      append(layer, n);
      attend(layer, n);
      all.insert(all.end(), out.begin(), out.begin() + n * 4 * d);
    }
    return all;
  }
};

/// `mistake` is refused with those words, and a step afterwards gives what it gives without it.
template <class Scheme = yakv>
void refused(std::string const& words, auto const& mistake) {
  small<Scheme> with, without;
  CHECK_THROWS_WITH(mistake(with), contains(words));
  CHECK_THROWS_AS(mistake(with), precondition_error);
  CHECK(with.step() == without.step());
  CHECK(with.c.length(with.id) == 101);
}

}  // namespace

TEST_CASE("construction refuses impossible shapes, limits and budgets, and says which") {
  auto const make = [](model_shape s, limits l, budget b) { cache<yakv>(serial, s, l, b); };
  limits const good{.sequences = 1, .tokens = 10};
  budget const some{.tokens = 1};
  CHECK_NOTHROW(make(shape, good, some));
  CHECK_THROWS_WITH(make(shape, good, {}), contains("above zero"));
  CHECK_NOTHROW(cache<dense>(serial, shape, good));
  auto const most = std::numeric_limits<std::int64_t>::max();
  CHECK_NOTHROW(make(shape, good, {.tokens = most, .sinks = most, .window = most}));
  CHECK_THROWS_WITH(make(shape, {.sequences = 1, .tokens = most}, some), contains("32-bit ids"));
  CHECK_THROWS_WITH(make(shape, {.sequences = 1, .tokens = 10, .far_tokens = most}, some), contains("32-bit ids"));
  auto s = shape;
  s.query_heads = 5;
  CHECK_THROWS_WITH(make(s, good, some), contains("multiple of kv_heads"));
  s = shape;
  s.head_dim = 24;
  CHECK_THROWS_WITH(make(s, good, some), contains("head_dim is not the scheme's"));
  CHECK_THROWS_WITH(make(shape, {.sequences = 0, .tokens = 10}, some), contains("limits"));
  CHECK_THROWS_WITH(make(shape, {.sequences = 1, .tokens = 0}, some), contains("limits"));
  CHECK_THROWS_WITH(make(shape, {.sequences = 1, .tokens = 10, .generated_tokens = -1}, some), contains("negative"));
  CHECK_THROWS_WITH(make(shape, good, {.share = 1.5}), contains("share"));
  CHECK_THROWS_WITH(make(shape, good, {.share = -0.1}), contains("share"));
  CHECK_THROWS_WITH(make(shape, good, {.share = std::numeric_limits<double>::quiet_NaN()}), contains("share"));
  CHECK_THROWS_WITH(make(shape, good, {.tokens = -3}), contains("negative"));
  CHECK_THROWS_WITH(make(shape, good, {.window = -1}), contains("negative"));
  CHECK_THROWS_WITH((cache<scheme::yakv_centred<d, float>>(serial, shape, good)), contains("rotary"));
}

TEST_CASE("mistakes in a prompt are refused and change nothing") {
  refused("memory for keys", [](auto& x) { x.c.begin_prompt(prompt_staging<float>{nullptr, nullptr, 10, 0}); });
  refused("more tokens than its capacity", [](auto& x) { x.c.begin_prompt(x.staging(201)); });
  refused("longer than limits.tokens", [](auto& x) { x.c.begin_prompt(x.staging(121)); });
  refused("not filling a prompt", [](auto& x) { x.c.finish_prompt(serial, x.id); });
  refused("not filling a prompt", [](auto& x) { x.c.finish_prompt(serial, sequence_id{1}); });
  refused("not filling a prompt", [](auto& x) { x.c.finish_prompt(serial, sequence_id{-1}); });
  refused("not filling a prompt", [](auto& x) {
    x.c.append_chunk(serial, sequence_id{99}, 0, packed_heads<float const>(x.k.data(), 1, 2, d), packed_heads<float const>(x.v.data(), 1, 2, d));
  });
}

TEST_CASE("mistakes while a prompt fills are refused and change nothing") {
  small<yakv> x({.sequences = 3, .tokens = 120, .step_tokens = 4});
  std::vector<float> keys(2 * 50 * 2 * d), values(keys.size());
  auto const id = x.c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), 50, 0});
  auto const chunk = [&](int layer, std::int64_t n, int heads = 2, int dim = d, std::int64_t n_values = -1) {
    x.c.append_chunk(serial, id, layer, packed_heads<float const>(x.keys.data(), n, heads, dim),
                     packed_heads<float const>(x.values.data(), n_values < 0 ? n : n_values, heads, dim));
  };
  CHECK_THROWS_WITH(x.c.finish_prompt(serial, id), contains("no tokens"));
  CHECK_THROWS_WITH(chunk(2, 1), contains("no such layer"));
  CHECK_THROWS_WITH(chunk(-1, 1), contains("no such layer"));
  CHECK_THROWS_WITH(chunk(0, 0), contains("[tokens, kv_heads, head_dim]"));
  CHECK_THROWS_WITH(chunk(0, 1, 3), contains("[tokens, kv_heads, head_dim]"));
  CHECK_THROWS_WITH(chunk(0, 1, 2, 8), contains("[tokens, kv_heads, head_dim]"));
  CHECK_THROWS_WITH(chunk(0, 2, 2, d, 1), contains("as many tokens"));
  CHECK_THROWS_WITH(chunk(0, 51), contains("staging memory is full"));
  std::vector<f16> const other(2 * d);
  CHECK_THROWS_WITH(x.c.append_chunk(serial, id, 0, packed_heads<f16 const>(other.data(), 1, 2, d), packed_heads<f16 const>(other.data(), 1, 2, d)),
                    contains("type of the staging"));
  CHECK(keys == std::vector<float>(keys.size(), 0.f));  // nothing was written
  chunk(0, 50);
  CHECK_THROWS_WITH(x.c.finish_prompt(serial, id), contains("different numbers of tokens"));
  chunk(1, 30);
  chunk(1, 20);
  for (auto const bad : {std::nanf(""), infinity, -infinity})
    for (auto* const at : {&keys[keys.size() - 1], &values[3]}) {
      float const kept = std::exchange(*at, bad);
      CHECK_THROWS_WITH(x.c.finish_prompt(serial, id), contains("NaN or infinite"));
      *at = kept;
    }
  CHECK_THROWS_WITH(x.c.length(id), contains("prompt is not finished"));
  CHECK_THROWS_WITH(x.c.usage(id), contains("prompt is not finished"));
  CHECK_NOTHROW(x.c.finish_prompt(serial, id));
  CHECK(x.c.length(id) == 50);
}

TEST_CASE("a prompt in chunks is the prompt at once") {
  small<yakv> x({.sequences = 3, .tokens = 120, .step_tokens = 4});
  std::vector<float> keys(2 * 100 * 2 * d), values(keys.size());
  auto const id = x.c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), 100, 0});
  for (int layer = 0; layer < 2; ++layer)
    for (std::int64_t first : {0, 1, 40}) {
      std::int64_t const n = first == 0 ? 1 : first == 1 ? 39 : 60, at = (layer * 200 + first) * 2 * d;
      x.c.append_chunk(serial, id, layer, packed_heads<float const>(x.keys.data() + at, n, 2, d), packed_heads<float const>(x.values.data() + at, n, 2, d));
    }
  x.c.finish_prompt(serial, id);
  auto const first = x.step();
  x.id = id;
  CHECK(x.step() == first);
}

TEST_CASE("mistakes in a step are refused and change nothing") {
  refused("the batch is empty", [](auto& x) { x.c.plan(serial, {nullptr, 0}); });
  refused("no finished prompt", [](auto& x) {
    batch_entry const e{sequence_id{1}, 1};
    x.c.plan(serial, {&e, 1});
  });
  refused("appears twice", [](auto& x) {
    batch_entry const e[]{{x.id, 1}, {x.id, 1}};
    x.c.plan(serial, {e, 2});
  });
  refused("must be positive", [](auto& x) { x.plan(0); });
  refused("must be positive", [](auto& x) { x.plan(-1); });
  refused("limits.step_tokens", [](auto& x) { x.plan(5); });
  refused("plan a step first", [](auto& x) { x.append(0); });
  refused("plan a step first", [](auto& x) { x.attend(0); });
}

TEST_CASE("mistakes in the rows of a step are refused and change nothing") {
  small<yakv> with, without;
  with.plan();
  without.plan();
  CHECK_THROWS_WITH(with.append(2), contains("no such layer"));
  CHECK_THROWS_WITH(with.append(0, 2), contains("[step tokens, kv_heads, head_dim]"));
  CHECK_THROWS_WITH(with.attend(0, 2), contains("[step tokens, query_heads, head_dim]"));
  for (float const bad : {std::nanf(""), infinity, -infinity}) {
    auto const k = std::exchange(with.k[3], bad);
    CHECK_THROWS_WITH(with.append(0), contains("a key is NaN or infinite"));
    with.k[3] = k;
    auto const v = std::exchange(with.v[3], bad);
    CHECK_THROWS_WITH(with.append(0), contains("a value is NaN or infinite"));
    with.v[3] = v;
    auto const q = std::exchange(with.q[3], bad);
    CHECK_THROWS_WITH(with.attend(0), contains("a query is NaN or infinite"));
    with.q[3] = q;
  }
  for (int layer = 0; layer < 2; ++layer) {
    with.append(layer);
    without.append(layer);
    with.attend(layer);
    without.attend(layer);
    CHECK(with.out == without.out);
  }
}

TEST_CASE("capacity: what does not fit is refused, what was there stays") {
  small<dense> x({.sequences = 1, .tokens = 103, .step_tokens = 4}, {});
  CHECK_THROWS_WITH(x.c.begin_prompt(x.staging(50)), contains("all of limits.sequences"));
  x.step();
  x.step();
  CHECK_THROWS_WITH(x.plan(2), contains("longer than limits.tokens"));
  x.step();
  CHECK_THROWS_WITH(x.plan(1), contains("longer than limits.tokens"));
  CHECK(x.c.length(x.id) == 103);

  small<yakv> y({.sequences = 2, .tokens = 120, .generated_tokens = 2, .step_tokens = 4});
  y.step(2);
  CHECK_THROWS_WITH(y.plan(1), contains("limits.generated_tokens"));

  // Far memory for one prompt only: the second finds none, and finds it once the first is gone.
  small<dense> z({.sequences = 2, .tokens = 120, .step_tokens = 4, .far_tokens = 128}, {});
  auto const second = z.c.begin_prompt(z.staging());
  CHECK_THROWS_WITH(z.c.finish_prompt(serial, second), contains("far memory"));
  z.step();
  z.c.free(z.id);
  CHECK_NOTHROW(z.c.finish_prompt(serial, second));
  CHECK_THROWS_WITH(z.c.free(z.id), contains("no such sequence"));
}

TEST_CASE("a step that is given up leaves the sequences as they were, however much of it was appended") {
  for (int appended : {0, 1}) {
    small<scheme::quest<d, float>> with, without;
    for (int i = 0; i < 18; ++i) {  // past a seal, and the page that it takes
      with.plan(i % 3 + 1);
      if (appended > 0) with.append(i % 2, i % 3 + 1);
      CHECK_THROWS_WITH(with.plan(), contains("not appended in all layers"));
      CHECK_THROWS_WITH(with.c.free(with.id), contains("not appended in all layers"));
      with.c.discard();
      CHECK_THROWS_WITH(with.append(0), contains("plan a step first"));
      CHECK(with.c.length(with.id) == 100 + i);
      REQUIRE(with.step() == without.step());
    }
  }
  small<yakv> x;  // a complete step is not taken back
  x.step();
  x.c.discard();
  CHECK(x.c.length(x.id) == 101);
}

TEST_CASE("layers are appended once a step, before they are attended") {
  small<yakv> x;
  x.plan();
  CHECK_THROWS_WITH(x.attend(0), contains("append the step's keys and values"));
  x.append(1);
  CHECK_THROWS_WITH(x.attend(0), contains("append the step's keys and values"));
  CHECK_THROWS_WITH(x.append(1), contains("already"));
  x.attend(1);
  x.append(0);
  x.attend(0);
  CHECK_THROWS_WITH(x.c.selected(1, 0), contains("no such sequence"));
  CHECK_THROWS_WITH(x.c.selected(0, 2), contains("no such KV head"));
}

TEST_CASE("to free one sequence of a batch ends the step and leaves the other") {
  auto const two = [](bool frees) {
    small<yakv> x;
    auto const other = x.c.begin_prompt(x.staging());
    x.c.finish_prompt(serial, other);
    batch_entry const both[]{{x.id, 1}, {other, 1}};
    x.c.plan(serial, {both, 2});
    for (int layer = 0; layer < 2; ++layer) {
      x.append(layer, 2);
      x.attend(layer, 2);
    }
    if (frees) {
      x.c.free(x.id);
      CHECK_THROWS_WITH(x.attend(1, 2), contains("plan a step first"));
      CHECK_THROWS_WITH(x.c.length(x.id), contains("no such sequence"));
    }
    x.id = other;
    return x.step();
  };
  CHECK(two(true) == two(false));
}

TEST_CASE("an executor with more workers than the cache was made for is refused") {
  small<yakv> x;
  host::thread_pool pool(2);
  host::executor const two(pool);
  batch_entry const one{x.id, 1};
  auto const k = packed_heads<float const>(x.k.data(), 1, 2, d), q = packed_heads<float const>(x.q.data(), 1, 4, d);
  CHECK_THROWS_WITH(x.c.plan(two, {&one, 1}), contains("more workers"));
  x.plan();
  CHECK_THROWS_WITH(x.c.append(two, 0, k, k), contains("more workers"));
  x.append(0);
  CHECK_THROWS_WITH(x.c.attend(two, 0, q, packed_heads(x.out.data(), 1, 4, d)), contains("more workers"));
  x.append(1);
  auto const prompt = x.c.begin_prompt(x.staging());
  CHECK_THROWS_WITH(x.c.finish_prompt(two, prompt), contains("more workers"));
}

TEST_CASE("finite numbers that the storage type cannot hold are refused, the largest that it can are kept") {
  auto const check = [](auto x, float fits, float exceeds) {
    x.plan();
    for (auto* const at : {&x.k[3], &x.v[3]}) {
      float const kept = std::exchange(*at, exceeds);
      CHECK_THROWS_WITH(x.append(0), contains("too large for the scheme's storage types"));
      *at = kept;
    }
    x.k[3] = x.v[3] = -fits;
    x.append(0);
    x.attend(0);
    for (int c = 0; c < 4 * d; ++c) REQUIRE(is_finite(x.out[std::size_t(c)]));
  };
  check(small<scheme::quest<d, f16>>(), 65504.f, 65536.f);
  check(small<scheme::mean_landmark<d, f16>>(), 65504.f, -65536.f);
  check(small<scheme::dense<d, bf16>>(), 1e30f, 3.4e38f);
  struct wider_near : scheme::dense<d, bf16> {  // near, 65504 would round to what the codec cannot hold
    using key_codec = cellar::codec::identity<f16>;
    using value_codec = cellar::codec::identity<f16>;
  };
  check(small<wider_near>({.sequences = 1, .tokens = 120}, {}), 65280.f, 65504.f);
}

TEST_CASE("a number that its code rounds beyond what near memory holds comes back near as the largest that it holds") {
  struct wider_far : scheme::dense<d, f16> {
    using key_codec = cellar::codec::identity<bf16>;  // 65504 is stored as 65536
    using value_codec = cellar::codec::identity<bf16>;
  };
  small<wider_far> x({.sequences = 2, .tokens = 120}, {});
  x.values[10 * 2 * d] = 65504.f;
  x.id = x.c.begin_prompt(x.staging());
  x.c.finish_prompt(serial, x.id);
  x.c.truncate(serial, x.id, 12);
  x.plan();
  for (int layer = 0; layer < 2; ++layer) {
    x.append(layer);
    x.attend(layer);
    for (int c = 0; c < 4 * d; ++c) REQUIRE(is_finite(x.out[std::size_t(c)]));
  }
}

TEST_CASE("a query sees its own key, whatever the window") {
  for (std::int64_t const n : {1, 4}) {
    small<scheme::quest<d, float>> x({.sequences = 1, .tokens = 120, .step_tokens = 4}, {.tokens = 16});
    for (int i = 0; i < 4; ++i) {
      for (float& y : x.v) y = 1e4f;  // beside values of about one, its own shows
      x.k = x.q = std::vector<float>(x.q.size(), 1.f);
      x.step(n);
      CHECK(x.c.sealed_blocks(x.id) == (100 + i * n) / 16);  // the tokens before this step, all of them
      for (std::int64_t row = 0; row < n; ++row) CHECK(x.out[std::size_t(row * 4 * d)] > 100);
    }
  }
}

TEST_CASE("decoding seals across pages until far memory is full") {
  small<scheme::quest<d, float>> x({.sequences = 1, .tokens = 200, .step_tokens = 4, .far_tokens = 256}, {.tokens = 16, .window = 8});
  REQUIRE(x.c.map().page_tokens == 256);
  for (int i = 0; i < 25; ++i) x.step(4);
  CHECK(x.c.length(x.id) == 200);

  small<sealing> y({.sequences = 1, .tokens = 400, .step_tokens = 4, .far_tokens = 128}, {.tokens = 16, .window = 8}),
      z({.sequences = 1, .tokens = 400, .step_tokens = 4}, {.tokens = 16, .window = 8});
  while (y.c.length(y.id) + 1 - 8 < 136) REQUIRE(y.step() == z.step());
  CHECK(y.c.sealed_blocks(y.id) == 16);
  for (int i = 0; i < 2; ++i) CHECK_THROWS_WITH(y.plan(), contains("far memory (limits.far_tokens) is full"));
  CHECK(y.c.length(y.id) == 143);
  for (int i = 0; i < 10; ++i) z.step();  // with a second page it goes on
  CHECK(z.c.sealed_blocks(z.id) == 18);
}

namespace {

/// Threads that cannot be had in one run: after `runs_before` others, in the middle of its items.
struct failing_threads {
  int runs_before = -1;  // below zero: never
  int workers() const { return 1; }
  template <class F>
  void run(i64 items, F&& f) {
    bool const fails = runs_before-- == 0;
    for (i64 i = 0; i < items; ++i) {
      if (i == 1 && fails) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
      f(i, 0);
    }
  }
};

/// `call` throws for each of its runs that fails, `runs` of them, and then succeeds.
void fails_and_goes_on(failing_threads& threads, int runs, auto const& call) {
  for (int i = 0; i < runs; ++i) {
    threads.runs_before = i;
    CHECK_THROWS_AS(call(), std::system_error);
  }
  threads.runs_before = -1;
  call();
}

}  // namespace

TEST_CASE("threads that fail leave the cache as it was: the call can be made again") {
  failing_threads threads;
  host::executor const on(threads);
  small<sealing> with({.sequences = 2, .tokens = 200, .step_tokens = 4}), without({.sequences = 2, .tokens = 200, .step_tokens = 4});
  auto const other = with.c.begin_prompt(with.staging());
  for (int i = 0; i < 5; ++i) {  // after its pages are taken: a check of keys and one of values in each layer, then the sealing
    threads.runs_before = 4;
    CHECK_THROWS_AS(with.c.finish_prompt(on, other), std::system_error);
  }
  fails_and_goes_on(threads, 5, [&] { with.c.finish_prompt(on, other); });
  auto const rows = [&](std::vector<float>& x, int heads) { return packed_heads<float const>(x.data(), 1, heads, d); };
  for (int i = 0; i < 70; ++i) {  // seals, and takes a page
    with.plan();
    without.plan();
    for (int layer = 0; layer < 2; ++layer) {
      fails_and_goes_on(threads, 1, [&] { with.c.append(on, layer, rows(with.k, 2), rows(with.v, 2)); });
      fails_and_goes_on(threads, 2, [&] { with.c.attend(on, layer, rows(with.q, 4), packed_heads(with.out.data(), 1, 4, d)); });
      without.append(layer);
      without.attend(layer);
      REQUIRE(with.out == without.out);
    }
  }
}

TEST_CASE("memory that is freed serves the next sequence as new memory does") {
  small<yakv> used({.sequences = 1, .tokens = 120, .step_tokens = 4}), fresh({.sequences = 1, .tokens = 120, .step_tokens = 4});
  for (int i = 0; i < 3; ++i) {
    used.step(4);
    used.c.free(used.id);
    CHECK_THROWS_WITH(used.append(0), contains("plan a step first"));
    used.id = used.c.begin_prompt(used.staging());
    used.c.finish_prompt(serial, used.id);
  }
  CHECK(used.step() == fresh.step());
}

TEST_CASE("decoding allocates nothing, also when blocks seal and pages are taken") {
  auto const check = [](auto x) {
    x.step();
    std::int64_t const before = allocations;
    for (int i = 0; i < 18; ++i) {
      x.plan();
      for (int layer = 0; layer < 2; ++layer) {
        x.append(layer);
        x.attend(layer);
      }
    }
    CHECK(allocations == before);
  };
  limits const l{.sequences = 2, .tokens = 120, .step_tokens = 4};
  check(small<dense>(l));
  check(small<yakv>(l));
  check(small<scheme::quest<d, float>>(l));
#if !CELLAR_UNDER_ADDRESS_SANITIZER
  CHECK(allocations > 0);  // the counter counts
#else
  skip("allocations are not counted under the address sanitizer");
#endif
}

TEST_CASE("statistics count what was read") {
  small<yakv> x;
  statistics seen;
  x.step();
  x.c.observe(&seen);
  x.step();
  x.step();
  CHECK(seen.attends == 4);                                       // attend calls: two layers, two steps
  CHECK(seen.fetched_blocks == 4 * 2 * 16);                       // 16 one-token blocks for each of two KV heads
  CHECK(seen.moved_bytes == 4 * 2 * 16 * (2 * (d / 2) + 2 * 2));  // 4-bit codes and a 16-bit scale, of keys and of values
  CHECK(seen.seconds.score > 0);
  CHECK(seen.seconds.attend > 0);
  x.c.observe(nullptr);
  x.step();
  CHECK(seen.attends == 4);
}

TEST_CASE("usage is what is stored, by kind") {
  small<yakv> x;
  x.step(3);
  auto const u = x.c.usage(x.id);
  std::int64_t const sealed = 92, near_token = 2 * 2 * d * 4;  // K and V of two heads in f32
  CHECK(x.c.sealed_blocks(x.id) == sealed);
  CHECK(u.always_near == 8 * near_token);
  CHECK(u.generated == 3 * near_token);
  CHECK(u.far == sealed * 2 * (2 * (d / 2) + 2 * 2));
  CHECK(u.summary == 2 * 3 * 32 * (d / 4 + 2));  // three tiles of 32 landmarks for each head
  CHECK(u.pool == 0);
}

TEST_CASE("usage where generated tokens seal: sinks and window first, what is left is generated") {
  small<scheme::quest<d, float>> x({.sequences = 1, .tokens = 200, .step_tokens = 4}, {.tokens = 16, .sinks = 4, .window = 8});
  std::int64_t const near_token = 2 * 2 * d * 4;
  for (int i = 0; i < 80; ++i) {
    x.step();
    auto const u = x.c.usage(x.id);
    std::int64_t const near = x.c.length(x.id) - x.c.sealed_blocks(x.id) * 16;
    CHECK(u.always_near + u.generated == near * near_token);
    CHECK(u.generated == std::min<std::int64_t>(near - 12, i + 1) * near_token);
  }
}

#if !CELLAR_UNDER_ADDRESS_SANITIZER
TEST_CASE("a fork for which there is no memory takes no sequence") {
  small<sealing> x({.sequences = 2, .tokens = 200, .step_tokens = 4});
  for (std::int64_t n = 0;; ++n) {
    last_allocation = allocations + n;
    bool fails = false;
    try {
      x.c.fork(serial, x.id);
    } catch (std::bad_alloc const&) {
      fails = true;
    }
    last_allocation = std::numeric_limits<std::int64_t>::max();
    if (!fails) break;
    REQUIRE_THROWS_WITH(x.c.length(sequence_id{1}), contains("no such sequence"));
  }
  CHECK(x.c.length(sequence_id{1}) == 100);
}

TEST_CASE("a prefetch for which there is no memory leaves nothing in the pool that was not fetched") {
  small<in_file<sealing>> x({.sequences = 1, .tokens = 200, .step_tokens = 4, .pool_runs = 1000});
  std::vector<logical_block> all;
  for (int b = 0; b < 11; ++b) all.push_back(logical_block(b));
  statistics seen;
  x.c.observe(&seen);
  auto const prefetch = [&] { x.c.prefetch(serial, 0, x.id, 0, {all.data(), 11}); };
  last_allocation = allocations.load();
  bool fails = false;
  try {
    prefetch();
  } catch (std::bad_alloc const&) {
    fails = true;
  }
  last_allocation = std::numeric_limits<std::int64_t>::max();
  REQUIRE(fails);
  seen = {};
  prefetch();
  CHECK(seen.pool_hits == 0);
  CHECK(seen.pool_misses == 11);
}

TEST_CASE("a truncation for which there is no memory takes nothing back") {
  for (std::int64_t const length : {64, 61}) {  // at a block's end, and within one
    small<with_outliers> x({.sequences = 1, .tokens = 200, .step_tokens = 4}, {.tokens = 16, .window = 8, .outliers = 100});
    auto const outliers = x.c.outliers(0, x.id, 0).count;
    for (std::int64_t n = 0;; ++n) {
      last_allocation = allocations + n;
      bool fails = false;
      try {
        x.c.truncate(serial, x.id, length);
      } catch (std::bad_alloc const&) {
        fails = true;
      }
      last_allocation = std::numeric_limits<std::int64_t>::max();
      if (!fails) break;
      REQUIRE(x.c.length(x.id) == 100);
      REQUIRE(x.c.outliers(0, x.id, 0).count == outliers);
    }
    CHECK(x.c.length(x.id) == length);
    CHECK(x.c.outliers(0, x.id, 0).count == length / 8);
  }
}

TEST_CASE("a plan for which there is no memory takes no page") {
  small<dense> x({.sequences = 4, .tokens = 200, .step_tokens = 4, .far_tokens = 256}, {});
  batch_entry const both[]{{x.c.fork(serial, x.id), 1}, {x.c.fork(serial, x.id), 1}};
  for (int i = 0; i < 12; ++i) {
    x.c.plan(serial, {both, 2});
    for (int layer = 0; layer < 2; ++layer) x.append(layer, 2);
  }
  for (std::int64_t n = 0;; ++n) {  // both seal into the second page, which the three share
    last_allocation = allocations + n;
    bool fails = false;
    try {
      x.c.plan(serial, {both, 2});
    } catch (std::bad_alloc const&) {
      fails = true;
    }
    last_allocation = std::numeric_limits<std::int64_t>::max();
    if (!fails) break;
    auto const other = x.c.begin_prompt(x.staging());
    REQUIRE_NOTHROW(x.c.finish_prompt(serial, other));  // takes the two pages that are left
    x.c.free(other);
  }
  auto const other = x.c.begin_prompt(x.staging());
  CHECK_THROWS_WITH(x.c.finish_prompt(serial, other), contains("far memory"));
}
#endif

}  // namespace contract_test
