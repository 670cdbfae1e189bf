// The operations of a device on memory that an engine owns, without a cache; and prompts that come in chunks.
#include <cstring>

#include "cuda/against_host.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

namespace {

/// Memory of an engine, as it was left by whoever had it before.
class used_memory {
 public:
  used_memory(i64 bytes, unsigned char left) : bytes_(std::size_t(bytes + 64), std::byte{left}) {}
  std::byte* data() { return reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(bytes_.data()), 64)); }

 private:
  std::vector<std::byte> bytes_;
};
constexpr unsigned char nan_bytes = 0xff;  // of f32, f16 and bf16, and as an id -1

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
      host::append_tokens<Scheme, float>(on, map, memory, view, keys, values, workspace.data());
      host::select_blocks<Scheme, float>(on, map, memory, view, queries, sizes, workspace.data(), ids.data(), counts.data());
      host::attend_blocks<Scheme, float>(on, map, memory, view, queries, outputs, sizes, workspace.data(), ids.data(), counts.data(), false);
    } else {
      cuda::append_tokens<Scheme, float>(on, map, memory, view, keys, values, workspace.data());
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

TEST_CASE("operations of a device on an engine's own memory do what the host's do") {
  for (int const group : {1, 3, 7}) {
    INFO("group of " << group);
    check_own_memory<scheme::yakv<64, float>>({.group = group});
    check_own_memory<scheme::quest<64, float>>({.group = group});
    check_own_memory<scheme::mean_landmark<64, float>>({.group = group});
    if (is_sanitized) break;
  }
  check_own_memory<scheme::yakv_centred<80, float>>({});
}

TEST_CASE("what an engine's memory held before does not change a bit on a device, with every tail") {  // H15, H16
  int const block = 8, most = is_sanitized ? 2 : block + 2;
  for (int more = 0; more < most; ++more) {  // lengths of the second prompt go from shorter than sinks and window to past a block
    INFO("prompts of " << 64 + more << " and " << 9 + more << " tokens");
    check_used_memory<scheme::mean_landmark<64, float>>({.group = 2, .prompts = {64 + more, 9 + more}, .steps = 2});
    if (more % 3 == 0) check_used_memory<scheme::yakv<64, float>>({.group = 2, .prompts = {64 + more, 9 + more}, .steps = 2});
    if (more % 3 == 1) check_used_memory<scheme::quest<64, float>>({.group = 5, .prompts = {64 + more, 9 + more}, .steps = 2});
  }
}

namespace {

/// A prompt in the given chunks, and a step after it.
template <class Scheme, class T>
lived live_in_chunks(std::vector<i64> const& chunks, bool is_strided) {
  constexpr int d = Scheme::head_dim, heads = 2, query_heads = 4, layers = 2;
  emulator::device<> const on;
  i64 const tokens = std::accumulate(chunks.begin(), chunks.end(), i64{0}), capacity = tokens + 5;
  auto const f = against_host::frequencies(d);
  model_shape const shape{
      .layers = layers, .query_heads = query_heads, .kv_heads = heads, .head_dim = d, .rotary = {rotary_pairing::half_split, {f.data(), d / 2}}};
  cache<Scheme, emulator::device<>> c(on, shape, {.sequences = 1, .tokens = tokens + 4}, {.tokens = 40, .sinks = 3, .window = 9});
  std::vector<T> const empty(std::size_t(layers * capacity * heads * d), from_float<T>(undefined));
  auto k = on.upload(std::vector<T>(empty)), v = on.upload(std::vector<T>(empty));
  auto const id = c.begin_prompt(prompt_staging<T>{k.data(), v.data(), capacity, 0});
  random_numbers r(23);
  for (int layer = 0; layer < layers; ++layer) {
    auto const all_keys = against_host::rounded<T>(r.normals(tokens * heads * d)), all_values = against_host::rounded<T>(r.normals(tokens * heads * d));
    i64 first = 0;
    for (i64 const n : chunks) {
      // Rows as a fused projection leaves them: keys, then values, of a token; heads apart by more than their width.
      i64 const head_stride = is_strided ? d + 3 : d, token_stride = is_strided ? 2 * heads * head_stride + 5 : heads * d;
      auto const lay = [&](std::vector<T> const& from) {
        std::vector<T> rows(std::size_t(n * token_stride), from_float<T>(undefined));
        for (i64 t = 0; t < n; ++t)
          for (int h = 0; h < heads; ++h) std::copy_n(from.data() + ((first + t) * heads + h) * d, d, rows.data() + t * token_stride + h * head_stride);
        return on.upload(std::move(rows));
      };
      auto keys = lay(all_keys), values = lay(all_values);
      c.append_chunk(on, id, layer, heads_view<T>{keys.data(), n, heads, d, token_stride, head_stride},
                     heads_view<T const>{values.data(), n, heads, d, token_stride, head_stride});
      first += n;
    }
  }
  c.finish_prompt(on, id);
  batch_entry const entry{id, 1};
  c.plan(on, {&entry, 1});
  lived all;
  for (int layer = 0; layer < layers; ++layer) {
    auto key = on.upload(r.normals(heads * d)), value = on.upload(r.normals(heads * d)), q = on.upload(r.normals(query_heads * d, 2));
    std::vector<float> out(std::size_t(query_heads * d), undefined);
    auto to = on.upload(std::vector<float>(out));
    c.append(on, layer, packed_heads(key.data(), 1, heads, d), packed_heads(value.data(), 1, heads, d));
    c.template attend<float>(on, layer, packed_heads(q.data(), 1, query_heads, d), packed_heads(to.data(), 1, query_heads, d));
    on.download(out.data(), to.data(), i64(out.size() * sizeof(float)));
    all.outputs.insert(all.outputs.end(), out.begin(), out.end());
    for (int head = 0; head < heads; ++head) {
      auto const chosen = c.selected(on, 0, head);
      REQUIRE(chosen);
      all.ids.insert(all.ids.end(), chosen->begin(), chosen->end());
    }
  }
  return all;
}

template <class Scheme, class T>
void check_chunks() {
  auto const whole = live_in_chunks<Scheme, T>({140}, false);
  for (float const x : whole.outputs) REQUIRE(is_finite(x));
  for (auto const& chunks : {std::vector<i64>{1, 63, 64, 12}, {139, 1}, {7, 133}}) {
    auto const parts = live_in_chunks<Scheme, T>(chunks, true);
    CHECK(parts.ids == whole.ids);
    bool const is_same = parts.outputs == whole.outputs;
    CHECK(is_same);
  }
}

}  // namespace

TEST_CASE("a prompt in ragged chunks of strided rows is on a device what it is in one") {
  check_chunks<scheme::yakv<64>, bf16>();
  check_chunks<scheme::quest<64, f16>, f16>();
  check_chunks<scheme::mean_landmark<64, float>, float>();
}
