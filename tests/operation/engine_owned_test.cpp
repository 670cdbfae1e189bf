// The operations face: an engine that owns near, far and summary memory, page tables and workspace, and calls the operations itself.
#include <memory>
#include <random>

#include "cache/reference.hpp"

using namespace cellar;

namespace {

/// An engine's memory for one layer. Every byte starts as 0xff: NaN in every float type.
template <class Scheme>
class engine_memory {
 public:
  engine_memory(model_shape const& shape, limits const& l, budget const& b, int workers)
      : map{shape, b.sinks, l.tokens},
        pages(l.sequences * ceil_div(l.tokens, memory_map<Scheme>::page_tokens)),
        layout{map.geometry(), pages * memory_map<Scheme>::page_blocks},
        far(filled(layout.bytes())),
        summaries(filled(pages * map.summary_page())),
        near(filled(l.sequences * map.near_sequence())),
        state(filled(l.sequences * map.state_sequence() + 16)),
        workspace(static_cast<std::byte*>(std::aligned_alloc(64, std::size_t(round_up(operation::workspace_bytes<Scheme>(shape, l, b, workers), 64))))),
        sizes(operation::workspace_for<Scheme>(shape, l, b)),
        ids(std::size_t(l.sequences * shape.kv_heads * sizes.selected)),
        counts(std::size_t(l.sequences * shape.kv_heads)) {
    std::mt19937 engine(3);  // the engine's pages lie anywhere
    for (i64 p = 0; p < pages; ++p) table.push_back(page_id(p));
    std::shuffle(table.begin(), table.end(), engine);
  }
  ~engine_memory() { std::free(workspace); }

  layer_memory<Scheme> layer() { return {layout, far.data(), summaries.data(), near.data(), state.data()}; }
  row_view<page_id const> pages_of(i64 sequence, i64 sealed) {
    i64 const each = pages / i64(counts.size() / std::size_t(map.shape.kv_heads));
    return {table.data() + sequence * each, ceil_div(sealed, memory_map<Scheme>::page_blocks)};
  }

  memory_map<Scheme> map;
  i64 pages;
  typename Scheme::layout layout;
  std::vector<std::byte> far, summaries, near, state;
  std::byte* workspace;
  operation::decode_workspace<Scheme> sizes;
  std::vector<page_id> table;
  std::vector<logical_block> ids;
  std::vector<i64> counts;

 private:
  static std::vector<std::byte> filled(i64 n) { return std::vector<std::byte>(std::size_t(n), std::byte{0xff}); }
};

template <class Scheme>
void check() {
  constexpr int d = Scheme::head_dim;
  budget const b{.tokens = 32, .sinks = 3, .window = 9};
  limits const l{.sequences = 2, .tokens = 220};
  reference<Scheme> ref(1, 2, 3, 21, 2);
  model_shape const& shape = ref.shape();
  host::thread_pool pool(2);
  host::executor const on(pool);
  trial<Scheme> t(ref, {150, 61}, 70, b, on);  // the cache, with the same data
  engine_memory<Scheme> mine(shape, l, b, on.workers());

  std::vector<i64> lengths{150, 61}, sealed;
  for (i64 s = 0; s < 2; ++s) {
    auto const& data = t.data[std::size_t(s)];
    i64 const n = lengths[std::size_t(s)], blocks = (n - b.sinks - b.window) / Scheme::block_tokens;
    sealed.push_back(blocks);
    std::vector<float> scratch(std::size_t(on.workers() * 2 * n * d));
    sequence_step const step{.slot = s, .pages = mine.pages_of(s, blocks), .sealed = blocks, .length = n};
    host::seal_prompt<Scheme, float>(on, mine.map, mine.layer(), step, packed_heads<float const>(data.keys.data(), n, 2, d),
                                     packed_heads<float const>(data.values.data(), n, 2, d), {scratch.data(), i64(scratch.size())});
  }
  for (int i = 0; i < 40; ++i) {
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
      if (!Scheme::keeps_generated) sealed[std::size_t(s)] = (length - b.sinks - b.window) / Scheme::block_tokens;
      steps.push_back({s, mine.pages_of(s, sealed[std::size_t(s)]), before, sealed[std::size_t(s)], length, 1, s, operation::budget_blocks<Scheme>(b, 0)});
    }
    row_view<sequence_step const> const all{steps.data(), 2};
    host::append_tokens<Scheme, float>(on, mine.map, mine.layer(), all, packed_heads<float const>(k.data(), 2, 2, d),
                                       packed_heads<float const>(v.data(), 2, 2, d), mine.workspace);
    constexpr bool every = operation::selects_everything<Scheme>;
    auto const queries = packed_heads<float const>(q.data(), 2, 6, d);
    if (!every) host::select_blocks<Scheme, float>(on, mine.map, mine.layer(), all, queries, mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data());
    host::attend_blocks<Scheme, float>(on, mine.map, mine.layer(), all, queries, packed_heads(out.data(), 2, 6, d), mine.sizes, mine.workspace, mine.ids.data(),
                                       mine.counts.data(), every);
    REQUIRE(out == expected);  // bit for bit
    if (!every)
      for (i64 item = 0; item < 4; ++item)  // ids ascending, then -1
        for (i64 j = mine.counts[std::size_t(item)]; j < mine.sizes.selected; ++j) REQUIRE(number(mine.ids[std::size_t(item * mine.sizes.selected + j)]) == -1);
  }
}

}  // namespace

TEST_CASE("operations over an engine's own paged memory do what the cache does, bit for bit") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) { check<Scheme>(); });
}
