// The operations of a device on memory that an engine owns, where codecs learn and turn keys: against the host. Those that do not learn are held against their
// definitions by emulated_operations_test.cpp.
#include "cuda/against_host.hpp"
#include "cuda/used_memory.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

namespace {

struct lived {
  std::vector<logical_block> ids;  // [step][sequence][KV head][selected]
  std::vector<float> outputs;
};

struct engine_options {
  int group = 3;
  i64 prompts[2] = {150, 97};
  int steps = 3;
  unsigned char left = 0;  // what memory is filled with before
};

/// Two sequences in the engine's own memory, prompt and steps, each of which appends one token to either.
template <class Scheme, class On>
lived live_in_own_memory(On const& on, engine_options const& o) {
  constexpr int d = Scheme::head_dim, heads = 2;
  using map_type = memory_map<Scheme>;
  int const query_heads = heads * o.group;
  auto const f = against_host::frequencies(d);
  i64 const longest = std::max(o.prompts[0], o.prompts[1]) + o.steps;
  std::vector<float> turns(std::size_t(turn_floats({rotary_pairing::half_split, {f.data(), d / 2}}, longest)));
  fill_turns({rotary_pairing::half_split, {f.data(), d / 2}}, longest, turns.data());
  model_shape const shape{.layers = 1,
                          .query_heads = query_heads,
                          .kv_heads = heads,
                          .head_dim = d,
                          .rotary = {rotary_pairing::half_split, {f.data(), d / 2}, {turns.data(), i64(turns.size())}}};
  budget const b{.tokens = Scheme::block_tokens * 5, .sinks = 3, .window = 9};
  limits const l{.sequences = 2, .tokens = longest, .generated_tokens = o.steps, .step_sequences = 2};
  map_type const map{shape, b.sinks, operation::tail_rows<Scheme>(l, b)};
  auto const sizes = operation::workspace_for<Scheme>(shape, l, b);
  i64 const each = ceil_div(longest, map_type::page_tokens), pages = 2 * each + 1;
  typename Scheme::layout const layout{map.geometry(), pages * map_type::page_blocks};
  used_memory far(layout.bytes(), o.left), summaries(pages * map.summary_page(), o.left), near(2 * map.near_sequence(), o.left),
      state(2 * map.state_sequence() + 16, o.left);
  i64 bytes = 0;
  if constexpr (On::is_host)
    bytes = operation::workspace_bytes<Scheme>(shape, l, b, on.workers());
  else
    bytes = cuda::step_workspace_bytes<Scheme>(on, shape, l, b);
  used_memory workspace(bytes, o.left);
  std::vector<logical_block> ids(std::size_t(2 * heads * sizes.selected), logical_block{-1});
  std::vector<i64> counts(std::size_t(2 * heads));
  layer_memory<Scheme> const memory{layout, far.data(), summaries.data(), near.data(), state.data()};

  std::vector<page_id> tables[2];
  for (i64 p = 0; p < each; ++p) {  // in turns and from the end; the first page is nobody's
    tables[0].push_back(page_id(2 * (each - p)));
    tables[1].push_back(page_id(2 * (each - p) - 1));
  }
  i64 length[2], sealed[2];
  random_numbers r(17);
  for (int s = 0; s < 2; ++s) {
    length[s] = o.prompts[s];
    sealed[s] = operation::sealable_blocks<Scheme>(b, length[s], 0);
    auto const k = r.normals(length[s] * heads * d), v = r.normals(length[s] * heads * d);
    prompt_layer<Scheme> const layer{memory, packed_heads(k.data(), length[s], heads, d), packed_heads(v.data(), length[s], heads, d)};
    sequence_step const step{.slot = 1 - s, .pages = {tables[s].data(), each}, .sealed = sealed[s], .length = length[s]};
    if constexpr (On::is_host) {
      std::vector<float> scratch(std::size_t(on.workers() * operation::prompt_scratch_floats<Scheme>(shape, length[s], scalar_type::f32)));
      host::seal_prompt<Scheme>(on, map, {&layer, 1}, step, {scratch.data(), i64(scratch.size())});
    } else {
      std::vector<float> scratch(std::size_t(cuda::prompt_floats<Scheme>(on, shape, length[s], scalar_type::f32)), o.left ? undefined : 0.0f);
      cuda::seal_prompt<Scheme>(on, map, {&layer, 1}, step, {scratch.data(), i64(scratch.size())});
    }
  }
  lived all;
  for (int i = 0; i < o.steps; ++i) {
    sequence_step steps[2];
    for (int s = 0; s < 2; ++s) {
      i64 const before = sealed[s];
      ++length[s];
      if (!Scheme::keeps_generated) sealed[s] = std::max(before, operation::sealable_blocks<Scheme>(b, length[s], 1));
      steps[s] = {.slot = 1 - s,
                  .pages = {tables[s].data(), each},
                  .sealed_before = before,
                  .sealed = sealed[s],
                  .length = length[s],
                  .new_tokens = 1,
                  .first_row = s,
                  .selected_blocks = 5,
                  .number = i + 1};
    }
    row_view<sequence_step const> const view{steps, 2};
    auto const k = r.normals(2 * heads * d), v = r.normals(2 * heads * d), q = r.normals(2 * query_heads * d, 2);
    std::vector<float> out(q.size(), undefined);
    auto const keys = packed_heads(k.data(), 2, heads, d), values = packed_heads(v.data(), 2, heads, d);
    auto const queries = packed_heads(q.data(), 2, query_heads, d);
    auto const outputs = packed_heads(out.data(), 2, query_heads, d);
    if constexpr (On::is_host) {
      host::append_tokens<Scheme, float>(on, map, memory, view, {keys, values}, workspace.data());
      host::select_blocks<Scheme, float>(on, map, memory, view, queries, sizes, workspace.data(), ids.data(), counts.data());
      host::attend_blocks<Scheme, float>(on, map, memory, view, queries, outputs, sizes, workspace.data(), ids.data(), counts.data(), false);
    } else {
      cuda::append_tokens<Scheme, float>(on, map, memory, view, {keys, values}, workspace.data());
      cuda::select_blocks<Scheme, float>(on, map, memory, view, queries, sizes, workspace.data(), ids.data(), counts.data());
      cuda::attend_blocks<Scheme, float>(on, map, memory, view, queries, outputs, sizes, workspace.data(), ids.data(), counts.data(), false);
    }
    for (i64 item = 0; item < 2 * heads; ++item) {
      i64 const count = counts[std::size_t(item)];
      REQUIRE(count == std::min<i64>(5, sealed[item / heads]));
      for (i64 j = 0; j < sizes.selected; ++j) all.ids.push_back(j < count ? ids[std::size_t(item * sizes.selected + j)] : logical_block{-1});
    }
    all.outputs.insert(all.outputs.end(), out.begin(), out.end());
  }
  return all;
}

template <class Scheme>
void check_own_memory(engine_options o) {
  auto const expected = live_in_own_memory<Scheme>(host::executor(), o);
  auto const got = live_in_own_memory<Scheme>(emulator::device<>(), o);
  CHECK(got.ids == expected.ids);
  REQUIRE(got.outputs.size() == expected.outputs.size());
  double worst = 0;
  for (std::size_t row = 0; row < got.outputs.size(); row += Scheme::head_dim)
    worst = std::max(worst, against_host::error_of(expected.outputs.data() + row, got.outputs.data() + row, Scheme::head_dim));
  CHECK(worst < 2e-5);
}

template <class Scheme>
void check_used_memory(engine_options o) {
  o.left = 0;
  auto const expected = live_in_own_memory<Scheme>(emulator::device<>(), o);
  for (float const x : expected.outputs) REQUIRE(is_finite(x));
  o.left = nan_bytes;
  auto const got = live_in_own_memory<Scheme>(emulator::device<>(), o);
  CHECK(got.ids == expected.ids);
  bool const is_same = got.outputs == expected.outputs;
  CHECK(is_same);
}

}  // namespace

TEST_CASE("what learns from a prompt does on a device, in an engine's own memory, what it does on the host, whatever that memory held before") {
  for (int const group : {1, 3}) {
    INFO("group of " << group);
    check_own_memory<scheme::yakv_centred<80, float>>({.group = group});
    check_used_memory<scheme::yakv_centred<80, float>>({.group = group, .steps = 2});
    if (is_sanitized) break;
  }
  check_own_memory<scheme::yakv_before_rotary<64, float>>({});
}
