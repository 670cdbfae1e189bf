// Latent attention: values are the first channels of their keys. And values of another width than keys.
#include <fstream>

#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace latent_test {

namespace {

template <class Codec, class Base = scheme::quest<40, float>>
struct keys_by : scheme::latent<Base, 32> {
  static constexpr int block_tokens = 8;
  using key_codec = Codec;
};
struct token_major_keys : keys_by<cellar::codec::int8<f16>> {
  using layout = cellar::layout::token_major;
};
template <int Dimension>
using over_all = cellar::codec::higgs<Dimension, 256, 0, bf16, cellar::scope::all_heads>;
struct over_all_heads : scheme::latent<scheme::yakv<40, float>, 24> {
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::before_rotary<over_all<2>>;
  using summary = cellar::summary::quantized_key<over_all<4>>;
};
struct grouped : keys_by<cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<8>>> {};
struct with_outliers : scheme::latent<scheme::shadow_kv<40, jacobi_eigensolver, float, cellar::codec::fixed_rank<20>>, 32> {
  static constexpr bool keeps_generated = false;
};
struct sealing_yakv : scheme::latent<scheme::yakv<40, float>, 32> {
  static constexpr bool keeps_generated = false;
};
/// Values of their own, of fewer or of more channels.
template <int D, int V, class Base = scheme::yakv<D, float>>
struct wide_and_narrow : Base {
  static constexpr int value_dim = V;
  static constexpr bool keeps_generated = false;
};
struct narrow_shared : wide_and_narrow<40, 24, scheme::yakv_before_rotary<40, float>> {};

std::vector<char> content(std::string const& path) {
  std::ifstream f(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(f), {}};
}

template <class F>
void for_each_kind(F const& f) {
  f(std::type_identity<scheme::latent<scheme::dense<24, float>, 16>>{});
  f(std::type_identity<keys_by<cellar::codec::fp8_e4m3<>>>{});
  f(std::type_identity<sealing_yakv>{});
  f(std::type_identity<over_all_heads>{});
  f(std::type_identity<grouped>{});
  f(std::type_identity<with_outliers>{});
  f(std::type_identity<wide_and_narrow<40, 24>>{});
  if constexpr (!is_sanitized) {
    f(std::type_identity<scheme::latent<scheme::sink_window<24, float>, 24>>{});
    f(std::type_identity<token_major_keys>{});
    f(std::type_identity<keys_by<cellar::codec::nvfp4, scheme::quest<48, float>>>{});
    f(std::type_identity<wide_and_narrow<24, 40, scheme::quest<24, float>>>{});
    f(std::type_identity<narrow_shared>{});
  }
}

}  // namespace

TEST_CASE("latent attention equals the reference over what was selected: every kind of key codec, ragged batches, roll back, forks") {
  for_each_kind([]<class Scheme>(std::type_identity<Scheme>) {
    constexpr bool discards = std::is_same_v<typename Scheme::select, select::none>;
    for (int const group : {1, 16}) {
      INFO(typeid(Scheme).name() << ", group " << group);
      reference<Scheme> ref(2, 2, group, std::uint64_t(group), 1);
      trial<Scheme> t(ref, {150, 67, 1}, 60, {.tokens = 32, .sinks = 3, .window = 12}, {}, 3, 1);
      for (int i = 0; i < 8; ++i)
        t.step(i % 2 == 0 ? std::vector<std::size_t>{0, 1, 2} : std::vector<std::size_t>{1, 0},
               i % 2 == 0 ? std::vector<std::int64_t>{1, 3, 1} : std::vector<std::int64_t>{1, 2}, rounding);
      auto const forked = t.fork(0);
      t.truncate(0, discards ? t.lengths[0] - 2 : 105);  // within a block
      for (int i = 0; i < 10; ++i) t.step({0, forked}, {3, 1}, rounding);
    }
  });
}

TEST_CASE("the sizes of DeepSeek: 576 channels of keys, 512 of values, up to 128 query heads") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, int group, i64 prompt, double tolerance) {
    host::thread_pool pool(3);  // one sequence, one KV head: the workers share its parts
    reference<Scheme> ref(1, 1, group, std::uint64_t(group));
    trial<Scheme> t(ref, {prompt}, 4, {.tokens = 256, .sinks = 4, .window = 16}, host::executor(pool));
    auto const out = t.step({0}, {1}, tolerance);
    CHECK(i64(out.size()) == group * 512);
    t.step({0}, {1}, tolerance);
    reference<Scheme> same(1, 1, group, std::uint64_t(group));
    trial<Scheme> alone(same, {prompt}, 4, {.tokens = 256, .sinks = 4, .window = 16});
    CHECK(alone.step({0}, {1}, tolerance, false) == out);
  };
  check(std::type_identity<scheme::latent<scheme::dense<576, float>, 512>>{}, 16, 1200, 2 * rounding);
  check(std::type_identity<scheme::latent<scheme::dense<576>, 512>>{}, 128, 130, 2 * rounding);
  check(std::type_identity<scheme::latent<scheme::yakv<576>, 512>>{}, 16, 300, 2 * rounding);
}

TEST_CASE("values in keys take no memory, and are what the keys are") {
  using Scheme = scheme::latent<scheme::dense<576>, 512>;
  memory_map<Scheme> const map{{.layers = 1, .query_heads = 128, .kv_heads = 1, .head_dim = 576}, 4, 100};
  CHECK(map.geometry().block_bytes() == 16 * 576 * 2);
  CHECK(map.near_sequence() == 104 * 576 * 2);
  CHECK(operation::append_workspace_bytes<Scheme>(map.shape) == 64 * 576 * 4);

  std::vector<std::byte> near(std::size_t(map.near_sequence()));
  layer_memory<Scheme> memory{};
  memory.near = near.data();
  sequence_view<Scheme> const view{map, memory, 0, {}};
  CHECK(view.near_row(0, 1, 70) == view.near_row(0, 0, 70));
  CHECK(reinterpret_cast<std::byte*>(view.near_row(0, 0, 70)) == near.data() + 70 * 576 * 2);

  // Keys whose last channels are zero, against a cache that stores these values.
  using dense = scheme::dense<24, f16>;
  using small = scheme::latent<dense, 16>;
  random_numbers random(3);
  auto const keys = random.normals(90 * 24), queries = random.normals(4 * 24);
  std::vector<float> values(90 * 24);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 24 < 16 ? keys[i] : 0.0f;
  host::executor const on;
  auto const attended = [&]<class S>(std::type_identity<S>) {
    cache<S> c(on, {.layers = 1, .query_heads = 4, .kv_heads = 1, .head_dim = 24}, {.sequences = 1, .tokens = 90}, {.sinks = 1, .window = 20});
    auto k = keys, v = values;
    constexpr bool in_keys = memory_map<S>::values_in_keys;
    auto const id = c.begin_prompt(prompt_staging<float>{k.data(), in_keys ? nullptr : v.data(), 89, 50});
    auto const rows = [&](std::vector<float> const& x, i64 first, i64 n) { return packed_heads(x.data() + first * 24, n, 1, 24); };
    if constexpr (in_keys)
      c.append_chunk(on, id, 0, token_rows<float>{rows(keys, 50, 39)});
    else
      c.append_chunk(on, id, 0, rows(keys, 50, 39), rows(values, 50, 39));
    c.finish_prompt(on, id);
    batch_entry const one{id, 1};
    c.plan(on, {&one, 1});
    if constexpr (in_keys)
      c.append(on, 0, token_rows<float>{rows(keys, 89, 1)});
    else
      c.append(on, 0, rows(keys, 89, 1), rows(values, 89, 1));
    std::vector<float> out(4 * S::value_dim);
    c.template attend<float>(on, 0, packed_heads<float const>(queries.data(), 1, 4, 24), packed_heads(out.data(), 1, 4, S::value_dim));
    CHECK(c.usage(id).far == 4 * 16 * (in_keys ? 24 : 48) * 2);
    return out;
  };
  auto const all = attended(std::type_identity<dense>{}), mine = attended(std::type_identity<small>{});
  for (int h = 0; h < 4; ++h)
    for (int c = 0; c < 16; ++c) REQUIRE(mine[std::size_t(h * 16 + c)] == all[std::size_t(h * 24 + c)]);
}

TEST_CASE("latent attention by a file and from a snapshot is the same bit for bit") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    using filed = in_file<Scheme>;
    budget const b{.tokens = 32, .sinks = 3, .window = 8};
    reference<Scheme> ref(2, 2, 3, 41, 1);
    reference<filed> same(2, 2, 3, 41, 1);
    trial<Scheme> a(ref, {150, 70}, 60, b, {}, 1, 1);
    trial<filed> f(same, {150, 70}, 60, b, {}, 1, 1);
    auto const both = [&](std::vector<std::size_t> const& who) {
      std::vector<i64> const ones(who.size(), 1);
      REQUIRE(a.step(who, ones, rounding) == f.step(who, ones, rounding));
    };
    for (int i = 0; i < 5; ++i) both({0, 1});
    a.truncate(0, 100);
    f.truncate(0, 100);
    for (int i = 0; i < 15; ++i) both({0, 1});
    // Restored beside the saved one.
    auto const path = scratch_path();
    a.cache.save({}, a.ids[0], path);
    a.ids.push_back(a.cache.restore({}, path));
    a.data.push_back(sequence_data(a.data[0]));
    a.lengths.push_back(a.lengths[0]);
    auto const again = scratch_path();
    a.cache.save({}, a.ids.back(), again);
    REQUIRE(content(path) == content(again));
    for (int i = 0; i < 12; ++i) a.step({0, 2}, {1, 1}, rounding);
  };
  check(std::type_identity<sealing_yakv>{});
  check(std::type_identity<keys_by<cellar::codec::identity<float>>>{});
  check(std::type_identity<wide_and_narrow<40, 24>>{});
}

TEST_CASE("rows that a scheme does not store are refused") {
  using Scheme = scheme::latent<scheme::dense<24, float>, 16>;
  host::executor const on;
  cache<Scheme> c(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 24}, {.sequences = 1, .tokens = 90});
  std::vector<float> rows(90 * 24, 0.5f), out(2 * 24);
  auto const some = [&](i64 n, int dim) { return packed_heads<float const>(rows.data(), n, 1, dim); };
  CHECK_THROWS_WITH(c.begin_prompt(prompt_staging<float>{rows.data(), rows.data(), 20, 10}), contains("values are channels of its keys"));
  auto const id = c.begin_prompt(prompt_staging<float>{rows.data(), nullptr, 20, 10});
  CHECK_THROWS_WITH(c.append_chunk(on, id, 0, token_rows<float>{some(2, 24), some(2, 16)}), contains("values are channels of its keys"));
  c.finish_prompt(on, id);
  batch_entry const one{id, 1};
  c.plan(on, {&one, 1});
  CHECK_THROWS_WITH(c.append(on, 0, token_rows<float>{some(1, 24), some(1, 16)}), contains("values are channels of its keys"));
  CHECK_THROWS_WITH(c.append(on, 0, token_rows<float>{some(1, 16)}), contains("keys must be"));
  c.append(on, 0, token_rows<float>{some(1, 24)});
  auto const q = packed_heads<float const>(rows.data(), 1, 2, 24);
  CHECK_THROWS_WITH(c.attend(on, 0, q, packed_heads(out.data(), 1, 2, 24)), contains("value_dim"));
  c.attend(on, 0, q, packed_heads(out.data(), 1, 2, 16));
  CHECK(out[0] == 0.5f);

  cache<scheme::dense<24, float>> ordinary(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 24}, {.sequences = 1, .tokens = 90});
  CHECK_THROWS_WITH(ordinary.begin_prompt(prompt_staging<float>{rows.data(), nullptr, 20, 10}), contains("memory for keys and values"));
  auto const other = ordinary.begin_prompt(prompt_staging<float>{rows.data(), rows.data(), 20, 10});
  CHECK_THROWS_WITH(ordinary.append_chunk(on, other, 0, token_rows<float>{some(2, 24)}), contains("values must be"));
  ordinary.finish_prompt(on, other);
  batch_entry const same{other, 1};
  ordinary.plan(on, {&same, 1});
  CHECK_THROWS_WITH(ordinary.append(on, 0, token_rows<float>{some(1, 24)}), contains("values must be"));
}

}  // namespace latent_test
