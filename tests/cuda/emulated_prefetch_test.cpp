// Blocks that an engine names are in a device's near pools before the step that reads them.
#include "cuda/against_host.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

namespace {

template <bool IsReproducible>
struct bounds : scheme::quest<64, float> {
  static constexpr bool is_reproducible = IsReproducible;
};

struct tokens_alone : scheme::quest<64, float> {
  static constexpr int block_tokens = 1;
};

template <class Scheme>
void check_prefetch() {
  constexpr int D = 64, kv_heads = 2, query_heads = 4;
  constexpr i64 tokens = 300;
  emulator::device<> const on;
  budget b = Scheme::published;
  b.tokens = 64, b.dense_layers = 0, b.window = 8;
  using cache_type = cache<Scheme, emulator::device<>>;
  model_shape const shape{.layers = 1, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = D};
  limits const l{.sequences = 2, .tokens = 400, .pool_runs = 2 * kv_heads * 10};  // ten slots for each sequence and KV head
  cache_type with(on, shape, l, b), without(on, shape, l, b);
  random_numbers r(5);
  auto k = on.upload(r.normals(tokens * kv_heads * D)), v = on.upload(r.normals(tokens * kv_heads * D));
  sequence_id id{};
  for (auto* const c : {&with, &without}) {
    for (int i = 0; i < 2; ++i) {  // the second one is used
      id = c->begin_prompt(prompt_staging<float>{k.data(), v.data(), tokens, tokens});
      c->finish_prompt(on, id);
    }
  }
  auto step_k = on.upload(r.normals(kv_heads * D)), step_v = on.upload(r.normals(kv_heads * D)), q = on.upload(r.normals(query_heads * D));
  auto const step = [&](cache_type& c) {
    auto out = on.upload(std::vector<float>(query_heads * D));
    batch_entry const one{id, 1};
    c.plan(on, row_view<batch_entry const>{&one, 1});
    c.append(on, 0, packed_heads(step_k.data(), 1, kv_heads, D), packed_heads(step_v.data(), 1, kv_heads, D));
    c.template attend<float>(on, 0, packed_heads(q.data(), 1, query_heads, D), packed_heads(out.data(), 1, query_heads, D));
    std::vector<float> x(query_heads * D);
    on.download(x.data(), out.data(), i64(x.size() * sizeof(float)));
    return x;
  };
  auto const expected = step(without);
  auto const chosen = *without.selected(on, 0, 1);
  REQUIRE(chosen.size() == 4);

  // What the step will choose for KV head 1, in any order, one of them twice.
  std::vector<logical_block> wanted(chosen.rbegin(), chosen.rend());
  wanted.push_back(chosen[0]);
  auto const counts = [&] { return with.pool_hits_and_misses(on); };
  with.prefetch(on, 0, id, 1, {wanted.data(), i64(wanted.size())});
  CHECK(counts() == std::pair<i64, i64>(0, 4));
  with.prefetch(on, 0, id, 1, {wanted.data(), 2});
  CHECK(counts() == std::pair<i64, i64>(2, 4));
  auto const compare = [&](std::vector<float> const& got, std::vector<float> const& wanted_rows) {
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(wanted_rows[i]).margin(1e-5));
  };
  auto const got = step(with);
  CHECK(counts() == std::pair<i64, i64>(2 + 4, 4 + 4));  // head 1 has its blocks, head 0 none
  compare(got, expected);

  // More than the pool has room for: the first ones, as many as it has.
  std::vector<logical_block> all;
  for (int i = 16; i >= 0; --i) all.push_back(logical_block(i));
  with.prefetch(on, 0, id, 0, {all.data(), 17});
  auto const [hits, misses] = counts();
  CHECK(hits + misses == 14 + 10);
  with.prefetch(on, 0, id, 0, {all.data(), 10});
  CHECK(counts() == std::pair<i64, i64>(hits + 10, misses));
  for (int i = 0; i < 3; ++i) {  // the pool is whole
    auto const after = step(with);
    compare(after, step(without));
  }
  logical_block const beyond{40};
  CHECK_THROWS_WITH(with.prefetch(on, 0, id, 0, {&beyond, 1}), contains("sealed"));
  CHECK_THROWS_WITH(with.prefetch(on, 0, id, 2, {&beyond, 1}), contains("KV head"));
}

}  // namespace

TEST_CASE("blocks that are prefetched are hits of the next step, and change nothing else") {
  check_prefetch<bounds<true>>();
  check_prefetch<bounds<false>>();
}

TEST_CASE("more runs than one launch can name are brought all the same") {
  constexpr i64 tokens = 640, named = 600;
  emulator::device<> const on;
  cache<tokens_alone, emulator::device<>> c(on, {.layers = 1, .query_heads = 2, .kv_heads = 2, .head_dim = 64},
                                            {.sequences = 1, .tokens = 700, .pool_runs = 2 * named}, {.tokens = 8, .window = 8, .dense_layers = 0});
  random_numbers r(6);
  auto k = on.upload(r.normals(tokens * 2 * 64)), v = on.upload(r.normals(tokens * 2 * 64));
  auto const id = c.begin_prompt(prompt_staging<float>{k.data(), v.data(), tokens, tokens});
  c.finish_prompt(on, id);
  std::vector<logical_block> all;
  for (int i = 0; i < named; ++i) all.push_back(logical_block(i));
  c.prefetch(on, 0, id, 1, {all.data(), named});
  CHECK(c.pool_hits_and_misses(on) == std::pair<i64, i64>(0, named));
  c.prefetch(on, 0, id, 1, {all.data(), named});
  CHECK(c.pool_hits_and_misses(on) == std::pair<i64, i64>(named, named));
  for (i64 const one : {0, 255, 256, 300, 599}) c.prefetch(on, 0, id, 1, {all.data() + one, 1});
  CHECK(c.pool_hits_and_misses(on) == std::pair<i64, i64>(named + 5, named));
  c.prefetch(on, 0, id, 0, {all.data() + 5, 1});
  CHECK(c.pool_hits_and_misses(on) == std::pair<i64, i64>(named + 5, named + 1));
}
