// The operations face: an engine that owns near, far and summary memory, page tables and workspace, and calls the operations itself.
#include "cache/reference.hpp"
#include "operation/engine_memory.hpp"

using namespace cellar;

namespace {

/// Prompts of two sequences, and steps after them.
template <class Scheme>
void check(std::vector<i64> lengths, int steps_taken) {
  constexpr int d = Scheme::head_dim;
  budget const b{.tokens = 64, .sinks = 3, .window = 9};  // at first more than the shorter sequence has far
  limits const l{.sequences = 2, .tokens = std::max(lengths[0], lengths[1]) + 70};
  reference<Scheme> ref(1, 2, 3, 21, 2);
  model_shape shape = ref.shape();
  shape.rotary = ref.with_turns();  // the cache makes such a table for itself
  host::thread_pool pool(2);
  host::executor const on(pool);
  trial<Scheme> t(ref, lengths, 70, b, on);  // the cache, with the same data
  engine_memory<Scheme> mine(shape, l, b, on.workers());

  std::vector<i64> sealed;
  for (i64 s = 0; s < 2; ++s) {
    auto const& data = t.data[std::size_t(s)];
    i64 const n = lengths[std::size_t(s)], blocks = std::max<i64>(0, n - b.sinks - b.window) / Scheme::block_tokens;
    sealed.push_back(blocks);
    std::vector<float> scratch(std::size_t(on.workers() * operation::prompt_scratch_floats<Scheme>(shape, n, scalar_type::f32)));
    sequence_step const step{.slot = s, .pages = mine.pages_of(s, blocks), .sealed = blocks, .length = n};
    prompt_layer<Scheme> const layer{mine.layer(), packed_heads<float const>(data.keys.data(), n, 2, d),
                                     packed_heads<float const>(data.values.data(), n, 2, d)};
    host::seal_prompt<Scheme>(on, mine.map, {&layer, 1}, step, {scratch.data(), i64(scratch.size())});
  }
  for (int i = 0; i < steps_taken; ++i) {
    auto const expected = t.step({0, 1}, {1, 1}, 0, false);
    std::vector<sequence_step> steps;
    std::vector<float> k, v, q, out(std::size_t(2 * 6 * d));
    for (i64 s = 0; s < 2; ++s) {
      auto const& data = t.data[std::size_t(s)];
      i64& length = lengths[std::size_t(s)];
      auto const query = random_numbers(std::uint64_t((s * 100000 + length) * 100)).normals(6 * d, 2);  // as trial draws them
      q.insert(q.end(), query.begin(), query.end());
      k.insert(k.end(), ref.row(data.keys, data, 0, length), ref.row(data.keys, data, 0, length) + 2 * d);
      v.insert(v.end(), ref.row(data.values, data, 0, length), ref.row(data.values, data, 0, length) + 2 * d);
      ++length;
      i64 const before = sealed[std::size_t(s)];
      if (!Scheme::keeps_generated) sealed[std::size_t(s)] = std::max<i64>(0, length - b.sinks - b.window) / Scheme::block_tokens;
      steps.push_back({s, mine.pages_of(s, sealed[std::size_t(s)]), before, sealed[std::size_t(s)], length, 1, s, operation::budget_blocks<Scheme>(b, 0)});
    }
    row_view<sequence_step const> const all{steps.data(), 2};
    host::append_tokens<Scheme, float>(on, mine.map, mine.layer(), all,
                                       {packed_heads<float const>(k.data(), 2, 2, d), packed_heads<float const>(v.data(), 2, 2, d)}, mine.workspace);
    constexpr bool every = operation::selects_everything<Scheme>;
    auto const queries = packed_heads<float const>(q.data(), 2, 6, d);
    if constexpr (!every)
      host::select_blocks<Scheme, float>(on, mine.map, mine.layer(), all, queries, mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data(), nullptr, {},
                                         mine.samples.data());
    host::attend_blocks<Scheme, float>(on, mine.map, mine.layer(), all, queries, packed_heads(out.data(), 2, 6, d), mine.sizes, mine.workspace, mine.ids.data(),
                                       mine.counts.data(), every, nullptr, nullptr, {}, mine.samples.data());
    REQUIRE(out == expected);  // bit for bit
    if (!every)
      for (i64 item = 0; item < 4; ++item)  // ids ascending, then -1
        for (i64 j = mine.counts[std::size_t(item)]; j < mine.sizes.selected; ++j) REQUIRE(number(mine.ids[std::size_t(item * mine.sizes.selected + j)]) == -1);
  }
}

}  // namespace

TEST_CASE("operations over an engine's own paged memory do what the cache does, bit for bit") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) { check<Scheme>({150, 61}, 40); });
  check<scheme::magic_pig<32, float, 4, 40>>({150, 61}, 40);
}

TEST_CASE("lengths n * B + r for every r: padding that is NaN in near memory, far memory, summaries and states reaches no result") {  // H15
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    constexpr i64 page = memory_map<Scheme>::page_tokens, near = 3 + 9;  // of sinks and window
    for (i64 n = 1; n <= 2 * Scheme::block_tokens + near + 2; ++n) check<Scheme>({n, 1}, 3);
    for (i64 n = page + near - 2; n <= page + near + 18; ++n) check<Scheme>({n, n / 2}, 2);
  });
}

TEST_CASE("operations refuse a step that its memory cannot hold, before they write") {
  using Scheme = scheme::quest<32, float>;
  model_shape const shape{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 32};
  budget const b{.tokens = 32, .window = 16};
  limits const l{.sequences = 1, .tokens = 200};
  engine_memory<Scheme> mine(shape, l, b, 1);
  mine.map.tail_rows = 40;
  auto const untouched = mine.near;
  host::executor const on;
  std::vector<float> rows(200 * 4 * 32, 0.5f), out(4 * 32, -7.f);
  auto const kv = packed_heads<float const>(rows.data(), 1, 2, 32);
  auto const q = packed_heads<float const>(rows.data(), 1, 4, 32);
  sequence_step const good{.slot = 0, .pages = mine.pages_of(0, 8), .sealed_before = 8, .sealed = 8, .length = 150, .new_tokens = 1, .selected_blocks = 2};
  auto const refused = [&](char const* words, auto const& change) {
    auto step = good;
    change(step);
    row_view<sequence_step const> const steps{&step, 1};
    CHECK_THROWS_WITH((host::append_tokens<Scheme, float>(on, mine.map, mine.layer(), steps, token_rows<float>{kv, kv}, mine.workspace)), contains(words));
    CHECK_THROWS_WITH(
        (host::select_blocks<Scheme, float>(on, mine.map, mine.layer(), steps, q, mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data())),
        contains(words));
    CHECK_THROWS_WITH((host::attend_blocks<Scheme, float>(on, mine.map, mine.layer(), steps, q, packed_heads(out.data(), 1, 4, 32), mine.sizes, mine.workspace,
                                                          mine.ids.data(), mine.counts.data(), false)),
                      contains(words));
  };
  refused("first_row", [](auto& s) { s.first_row = 1; });
  refused("first_row", [](auto& s) { s.new_tokens = 0; });
  refused("first_row", [](auto& s) { s.new_tokens = 2; });
  refused("page table", [](auto& s) { s.pages.count = 0; });
  refused("page table", [](auto& s) { s.sealed_before = 9; });
  refused("tokens of the step itself", [](auto& s) { s.length = 128; });
  refused("tail_rows", [](auto& s) { s.length = 169; });
  row_view<sequence_step const> const steps{&good, 1};
  auto const attend = [&](heads_view<float const> queries, heads_view<float> to) {
    host::attend_blocks<Scheme, float>(on, mine.map, mine.layer(), steps, queries, to, mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data(), true);
  };
  CHECK_THROWS_WITH(attend(packed_heads<float const>(rows.data(), 1, 3, 32), packed_heads(out.data(), 1, 4, 32)), contains("query_heads"));
  CHECK_THROWS_WITH(attend(q, heads_view<float>{out.data(), 1, 4, 32, 128, 0}), contains("query_heads"));  // heads upon one another
  auto many = good;
  many.selected_blocks = 8;
  CHECK_THROWS_WITH(
      (host::select_blocks<Scheme, float>(on, mine.map, mine.layer(), {&many, 1}, q, mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data())),
      contains("decode_workspace::selected"));
  prompt_layer<Scheme> const layer{mine.layer(), packed_heads<float const>(rows.data(), 100, 2, 32), packed_heads<float const>(rows.data(), 100, 2, 32)};
  auto const seal = [&](sequence_step const& step) { host::seal_prompt<Scheme>(on, mine.map, {&layer, 1}, step, {}); };
  CHECK_THROWS_WITH(seal({.pages = mine.pages_of(0, 0), .sealed = 5, .length = 100}), contains("page table"));
  CHECK_THROWS_WITH(seal({.pages = mine.pages_of(0, 8), .sealed = 7, .length = 100}), contains("exceed the prompt"));
  CHECK_THROWS_WITH(seal({.pages = mine.pages_of(0, 8), .sealed = 3, .length = 100}), contains("tail_rows"));
  CHECK_THROWS_WITH(seal({.pages = mine.pages_of(0, 8), .sealed = 5, .length = 101}), contains("[length, kv_heads, head_dim]"));
  std::vector<f16> const halves(rows.size());
  std::vector<float> many_floats(1 << 20);
  prompt_layer<Scheme> mixed[2] = {layer, layer};
  for (any_heads_view prompt_layer<Scheme>::*rows_of_layer : {&prompt_layer<Scheme>::keys, &prompt_layer<Scheme>::values}) {
    mixed[1] = layer;
    mixed[1].*rows_of_layer = packed_heads(halves.data(), 100, 2, 32);
    CHECK_THROWS_WITH(
        host::seal_prompt<Scheme>(on, mine.map, {mixed, 2}, {.pages = mine.pages_of(0, 8), .sealed = 5, .length = 100}, {many_floats.data(), 1 << 20}),
        contains("one scalar type"));
  }
  CHECK_THROWS_WITH(host::seal_prompt<Scheme>(on, mine.map, {}, {}, {}), contains("no layers"));
  CHECK(mine.near == untouched);
  CHECK(out == std::vector<float>(out.size(), -7.f));
}
