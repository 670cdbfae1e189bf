// What is known to go wrong in caches of this kind, docs/hazards.md: one test for each hazard that no other test has.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "cellar/core/rotary_scaling.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace hazards_test {

namespace {

namespace codecs = cellar::codec;
namespace selects = cellar::select;
host::executor const serial;

template <int D>
struct sealing_mean : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
};
template <int D>
struct sealing_yakv : scheme::yakv<D, float> {
  static constexpr bool keeps_generated = false;
};

/// One step of one sequence, of rows that are made of its position; the chosen ids are added to `chosen` where there are any.
template <class Scheme>
std::vector<float> step_of(cache<Scheme>& c, model_shape const& shape, sequence_id id, std::uint64_t seed = 0, std::vector<i64>* chosen = nullptr,
                           bool attends = true) {
  constexpr int d = Scheme::head_dim;
  batch_entry const one{id, 1};
  i64 const p = c.length(id);
  c.plan(serial, {&one, 1});
  std::vector<float> all;
  for (int layer = 0; layer < shape.layers; ++layer) {
    random_numbers r(std::uint64_t(p * 10 + layer) + seed * 1000003);
    auto const k = r.normals(shape.kv_heads * d), v = r.normals(shape.kv_heads * d), q = r.normals(shape.query_heads * d, 2);
    std::vector<float> out(q.size());
    c.append(serial, layer, packed_heads<float const>(k.data(), 1, shape.kv_heads, d), packed_heads<float const>(v.data(), 1, shape.kv_heads, d));
    if (!attends) continue;
    c.attend(serial, layer, packed_heads<float const>(q.data(), 1, shape.query_heads, d), packed_heads(out.data(), 1, shape.query_heads, d));
    all.insert(all.end(), out.begin(), out.end());
    for (int head = 0; chosen && head < shape.kv_heads; ++head)
      if (auto const ids = c.selected(0, head))
        for (auto const b : *ids) chosen->push_back(number(b));
  }
  return all;
}

/// A prompt of the rows that step_of would have appended.
template <class Scheme>
sequence_id prompt_of(cache<Scheme>& c, model_shape const& shape, i64 tokens, std::uint64_t seed = 0) {
  constexpr int d = Scheme::head_dim;
  i64 const width = shape.kv_heads * d;
  std::vector<float> keys, values;
  for (int layer = 0; layer < shape.layers; ++layer)
    for (i64 p = 0; p < tokens; ++p) {
      random_numbers r(std::uint64_t(p * 10 + layer) + seed * 1000003);
      for (auto* const to : {&keys, &values}) {
        auto const row = r.normals(width);
        to->insert(to->end(), row.begin(), row.end());
      }
    }
  auto const id = c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), tokens, tokens});
  c.finish_prompt(serial, id);
  return id;
}

}  // namespace

TEST_CASE("prompts shorter than their staging memory and than the cache give every head of every sequence its own rows") {  // H12
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    constexpr int d = 32;
    reference<Scheme> ref(2, 3, 2, 61);
    auto const& shape = ref.shape();
    auto const run = [&](i64 staging_capacity, i64 cache_tokens, int sequences) {
      cache<Scheme> c(serial, shape, {.sequences = sequences, .tokens = cache_tokens}, {.tokens = 32, .sinks = 2, .window = 8});
      std::vector<float> all;
      for (i64 const n : {90, 41, 77}) {
        i64 const capacity = staging_capacity == 0 ? n : staging_capacity;
        std::vector<float> keys(std::size_t(2 * capacity * 3 * d), std::nanf("")), values = keys;  // what is read beyond the prompt shows
        for (int layer = 0; layer < 2; ++layer) {
          random_numbers r(std::uint64_t(n * 2 + layer));
          for (auto* const to : {&keys, &values}) {
            auto const rows = r.normals(n * 3 * d);
            std::copy(rows.begin(), rows.end(), to->begin() + layer * capacity * 3 * d);
          }
        }
        auto const id = c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), capacity, n});
        c.finish_prompt(serial, id);
        std::fill(keys.begin(), keys.end(), std::nanf(""));  // it is the caller's again
        for (int i = 0; i < 3; ++i) {
          auto const out = step_of(c, shape, id);
          all.insert(all.end(), out.begin(), out.end());
        }
      }
      for (float const x : all) REQUIRE(is_finite(x));
      return all;
    };
    auto const exact = run(0, 93, 3);
    bool const is_same = run(91, 94, 3) == exact && run(400, 93, 3) == exact && run(90, 1000, 7) == exact && run(1001, 517, 4) == exact;
    CHECK(is_same);
  });
}

TEST_CASE("generation goes on past window, blocks and pages up to limits.generated_tokens, is refused there, and loses nothing") {  // H13
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    i64 const generated = 300;
    reference<Scheme> ref(1, 2, 2, 62, 1);
    trial<Scheme> t(ref, {70}, generated, {.tokens = 32, .sinks = 2, .window = 8});
    for (i64 i = 0; i < generated - 1; ++i) t.step({0}, {1}, rounding, i % 10 == 9 || i > generated - 12);
    auto const last = t.step({0}, {1}, rounding);
    batch_entry const one{t.ids[0], 1};
    for (int i = 0; i < 3; ++i) CHECK_THROWS_WITH(t.cache.plan(serial, {&one, 1}), contains("capacity exceeded"));
    CHECK(t.cache.length(t.ids[0]) == 370);
    i64 const sealed = t.cache.sealed_blocks(t.ids[0]);
    if (Scheme::keeps_generated) CHECK(sealed == (70 - 10) / Scheme::block_tokens);
    t.truncate(0, 369);
    t.cache.truncate(serial, t.ids[0], 369);  // nothing more
    CHECK(t.step({0}, {1}, rounding) == last);
  };
  for_each_scheme<32>(check);
  check(std::type_identity<sealing_mean<16>>{});
  check(std::type_identity<sealing_yakv<16>>{});
}

TEST_CASE("every group size reads the KV head that its query heads belong to") {  // H14
  auto const check = []<class Scheme>(std::type_identity<Scheme>, double tolerance) {
    constexpr int d = Scheme::head_dim;
    for (int const group : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 71})
      for (int const kv_heads : {1, 3}) {
        model_shape const shape{.layers = 1, .query_heads = group * kv_heads, .kv_heads = kv_heads, .head_dim = d};
        cache<Scheme> c(serial, shape, {.sequences = 1, .tokens = 120}, {.tokens = 32, .window = 8});
        std::vector<float> keys, values;  // values say which head they are of
        random_numbers r{std::uint64_t(group)};
        for (i64 p = 0; p < 100; ++p)
          for (int head = 0; head < kv_heads; ++head)
            for (int i = 0; i < d; ++i) {
              keys.push_back(r.normal());
              values.push_back(float(1 << 2 * head));
            }
        auto const id = c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), 100, 100});
        c.finish_prompt(serial, id);
        for (int i = 0; i < 20; ++i) {
          batch_entry const one{id, 1};
          c.plan(serial, {&one, 1});
          c.append(serial, 0, packed_heads<float const>(keys.data(), 1, kv_heads, d), packed_heads<float const>(values.data(), 1, kv_heads, d));
          auto const q = r.normals(shape.query_heads * d);
          std::vector<float> out(q.size());
          c.attend(serial, 0, packed_heads<float const>(q.data(), 1, shape.query_heads, d), packed_heads(out.data(), 1, shape.query_heads, d));
          for (int head = 0; head < shape.query_heads; ++head)
            for (int k = 0; k < d; ++k) REQUIRE(double(out[std::size_t(head * d + k)]) == Approx(1 << 2 * (head / group)).epsilon(tolerance));
        }
      }
  };
  check(std::type_identity<scheme::dense<16, float>>{}, 1e-5);
  check(std::type_identity<scheme::quest<16, float>>{}, 1e-5);
  check(std::type_identity<sealing_mean<16>>{}, 1e-5);
  check(std::type_identity<scheme::yakv<16, float>>{}, 0.45);  // what codes make of 4 is not taken for 1 or 16
  CHECK_THROWS_WITH((cache<scheme::dense<16, float>>(serial, {.layers = 1, .query_heads = 33, .kv_heads = 2, .head_dim = 16}, {.sequences = 1, .tokens = 10})),
                    contains("multiple of kv_heads"));
}

TEST_CASE("chunks of any size, over a prefix that is there, make the prompt, whatever blocks and pages hold") {  // H16
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    constexpr int d = 32;
    reference<Scheme> ref(2, 2, 1, 63);
    auto const& shape = ref.shape();
    i64 const n = 301, capacity = 320, width = 2 * d;
    random_numbers r(63);
    auto const keys = r.normals(2 * n * width), values = r.normals(2 * n * width);
    auto const run = [&](i64 prefix, std::vector<i64> const& chunks) {
      cache<Scheme> c(serial, shape, {.sequences = 1, .tokens = 330}, {.tokens = 32, .sinks = 3, .window = 11});
      std::vector<float> staged_keys(std::size_t(2 * capacity * width), std::nanf("")), staged_values = staged_keys;
      for (int layer = 0; layer < 2; ++layer) {
        std::copy_n(keys.begin() + layer * n * width, prefix * width, staged_keys.begin() + layer * capacity * width);
        std::copy_n(values.begin() + layer * n * width, prefix * width, staged_values.begin() + layer * capacity * width);
      }
      auto const id = c.begin_prompt(prompt_staging<float>{staged_keys.data(), staged_values.data(), capacity, prefix});
      for (int layer = 0; layer < 2; ++layer) {
        std::size_t next = std::size_t(layer);  // layers in chunks of their own
        for (i64 p = prefix; p < n;) {
          i64 const m = std::min(chunks[next++ % chunks.size()], n - p), at = (layer * n + p) * width;
          c.append_chunk(serial, id, layer, packed_heads<float const>(keys.data() + at, m, 2, d), packed_heads<float const>(values.data() + at, m, 2, d));
          p += m;
        }
      }
      for (int layer = 0; layer < 2; ++layer)
        for (i64 i = 0; i < capacity * width; ++i) {
          float const k = staged_keys[std::size_t(layer * capacity * width + i)];
          if (i < n * width) REQUIRE(k == keys[std::size_t(layer * n * width + i)]);
          if (i >= n * width) REQUIRE(std::isnan(k));  // nothing beyond
        }
      c.finish_prompt(serial, id);
      std::vector<float> all;
      for (int i = 0; i < 25; ++i) {
        auto const out = step_of(c, shape, id);
        all.insert(all.end(), out.begin(), out.end());
      }
      return all;
    };
    auto const whole = run(0, {n});
    for (i64 const prefix : {0, 1, 16, 65, 300})
      for (auto const& chunks : {std::vector<i64>{1}, {7}, {63}, {65, 3}, {127, 128, 129}}) {
        bool const is_same = run(prefix, chunks) == whole;
        INFO("prefix " << prefix << ", chunks of " << chunks[0]);
        REQUIRE(is_same);
      }
  });
}

namespace {

template <int D>
struct by_threshold : scheme::quest<D, float> {
  using select = selects::threshold<std::ratio<2>>;
};
template <int D>
struct by_top_p : scheme::mean_landmark<D, float> {
  using select = selects::top_p<std::ratio<3, 4>>;
};

}  // namespace

TEST_CASE("what a sequence selects does not depend on the batch: top_k, threshold and top_p") {  // H20
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    auto const selected = [](std::vector<std::vector<std::size_t>> const& batches) {
      reference<Scheme> ref(1, 2, 2, 64);
      trial<Scheme> t(ref, {150, 70, 230}, 8, {.tokens = 64, .sinks = 2, .window = 8});
      std::vector<std::vector<i64>> of(3);
      for (int i = 0; i < 6; ++i)
        for (auto const& who : batches) {
          t.step(who, std::vector<i64>(who.size(), 1), 0, false);
          for (std::size_t s = 0; s < who.size(); ++s)
            for (int head = 0; head < 2; ++head) {
              auto const ids = *t.cache.selected(i64(s), head);
              of[who[s]].push_back(-ids.count);
              for (auto const b : ids) of[who[s]].push_back(number(b));
            }
        }
      return of;
    };
    auto const alone = selected({{0}, {1}, {2}});
    CHECK(selected({{0, 1, 2}}) == alone);
    CHECK(selected({{2, 0}, {1}}) == alone);
    CHECK(selected({{1, 2, 0}}) == alone);
  };
  check(std::type_identity<scheme::quest<16, float>>{});
  check(std::type_identity<by_threshold<16>>{});
  check(std::type_identity<by_top_p<16>>{});
}

TEST_CASE("blocks that seal after queries are found by summaries as those of a prompt are") {  // H21
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    model_shape const shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
    limits const l{.sequences = 1, .tokens = 420};
    budget const b{.tokens = 48, .sinks = 2, .window = 9};
    cache<Scheme> queried(serial, shape, l, b), silent(serial, shape, l, b);
    auto const x = prompt_of(queried, shape, 40), y = prompt_of(silent, shape, 40);
    for (int i = 0; i < 330; ++i) {
      step_of(silent, shape, y, 0, nullptr, false);
      step_of(queried, shape, x);
      if (i % 33 != 0) continue;
      cache<Scheme> rebuilt(serial, shape, l, b);
      auto const z = prompt_of(rebuilt, shape, queried.length(x));
      REQUIRE(rebuilt.sealed_blocks(z) == queried.sealed_blocks(x));
      std::vector<i64> ids[3];
      auto const outputs = step_of(queried, shape, x, 0, &ids[0]);
      bool const is_same = step_of(silent, shape, y, 0, &ids[1]) == outputs && step_of(rebuilt, shape, z, 0, &ids[2]) == outputs;
      REQUIRE(is_same);
      REQUIRE(ids[0] == ids[1]);
      REQUIRE(ids[0] == ids[2]);
    }
  };
  check(std::type_identity<scheme::quest<16, float>>{});
  check(std::type_identity<sealing_mean<16>>{});
  check(std::type_identity<sealing_yakv<16>>{});
}

namespace {

template <int D>
struct low_rank_keys : sealing_mean<D> {
  using key_codec = codecs::low_rank<cellar::codec::fixed_rank<12>, jacobi_eigensolver, float>;
};
template <int D>
struct scaled_planes : sealing_mean<D> {  // scales beside both codes
  using key_codec = codecs::int4<>;
  using value_codec = codecs::int8<>;
};
template <int D>
struct shared_scales : sealing_yakv<D> {  // codes and scales of all heads, a summary of all heads
  using key_codec = codecs::higgs<2, 256, 0, bf16, scope::all_heads>;
  using value_codec = codecs::fp8_e4m3<float>;
  using summary = cellar::summary::quantized_key<codecs::higgs<4, 256, 0, bf16, scope::all_heads>>;
};
template <int D>
struct learnt : scheme::yakv_centred<D, float> {
  static constexpr bool keeps_generated = false;
};

}  // namespace

TEST_CASE("every plane, summary and state moves with a sequence: outputs and selection after fork, copy on write and snapshot, over used memory") {  // H22, H23
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(2, 2, 2, 65);
    auto const& shape = ref.shape();
    limits const l{.sequences = 3, .tokens = 260};
    budget const b{.tokens = 32, .sinks = 3, .window = 8};
    auto const path = scratch_path();
    // Memory of a cache in which other sequences have been, all of it: stale bytes are finite and wrong.
    auto const poison = [&](cache<Scheme>& c) {
      std::vector<sequence_id> ids;
      for (std::uint64_t s = 0; s < 3; ++s) {
        ids.push_back(prompt_of(c, shape, 200, 77 + s));
        for (int i = 0; i < 60; ++i) step_of(c, shape, ids.back(), 77 + s, nullptr, i % 20 == 0);
      }
      for (auto const id : ids) c.free(id);
    };
    cache<Scheme> expected(serial, shape, l, b), moved(serial, shape, l, b);
    poison(moved);
    auto const x = prompt_of(expected, shape, 150);
    step_of(expected, shape, x);
    bool const discards = std::is_same_v<typename Scheme::select, select::none>;
    expected.truncate(serial, x, discards ? expected.length(x) - 1 : 117);  // a block with codes that are kept
    expected.save(serial, x, path);
    auto const restored = moved.restore(serial, path), fork = moved.fork(serial, restored);
    std::filesystem::remove(path);
    std::vector<i64> ids[3];
    for (int i = 0; i < 100; ++i) {
      INFO("step " << i);
      auto const outputs = step_of(expected, shape, x, 0, &ids[0]);
      if (i < 40) step_of(moved, shape, restored, 5);  // other tokens, which must not reach the fork
      if (i == 40) moved.free(restored);
      bool const is_same = step_of(moved, shape, fork, 0, &ids[1]) == outputs;
      REQUIRE(is_same);
      REQUIRE(ids[0] == ids[1]);
    }
  };
  for_each_scheme<32>(check);
  check(std::type_identity<low_rank_keys<16>>{});
  check(std::type_identity<scaled_planes<16>>{});
  check(std::type_identity<shared_scales<16>>{});
  check(std::type_identity<learnt<16>>{});
  check(std::type_identity<in_file<scaled_planes<16>>>{});
  check(std::type_identity<in_file<shared_scales<16>>>{});
  check(std::type_identity<in_file<learnt<16>>>{});
}

TEST_CASE("far memory full with every sequence alive refuses cleanly, however often, and one that is freed lets the others finish") {  // H32
  using Scheme = sealing_mean<16>;                                                                                                     // pages of 128 tokens
  model_shape const shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
  budget const b{.tokens = 32, .window = 8};
  cache<Scheme> tight(serial, shape, {.sequences = 3, .tokens = 400, .far_tokens = 4 * 128}, b), ample(serial, shape, {.sequences = 3, .tokens = 400}, b);
  std::vector<sequence_id> ids, same;
  for (std::uint64_t s = 0; s < 3; ++s) {
    ids.push_back(prompt_of(tight, shape, 120, s));
    same.push_back(prompt_of(ample, shape, 120, s));
  }
  auto const go_on = [&](std::size_t s) {
    auto const out = step_of(tight, shape, ids[s], s);
    bool const is_same = out == step_of(ample, shape, same[s], s);
    REQUIRE(is_same);
  };
  // One of them takes the page that is left; then all need one.
  for (std::size_t s = 0; s < 3; ++s)
    while ((tight.length(ids[s]) + 1 - 8) / 8 <= (s == 0 ? 32 : 16)) go_on(s);
  for (int i = 0; i < 100; ++i)
    for (std::size_t s = 0; s < 3; ++s) {
      batch_entry const one{ids[s], 1}, all[]{{ids[0], 1}, {ids[1], 1}, {ids[2], 1}};
      REQUIRE_THROWS_WITH(tight.plan(serial, {&one, 1}), contains("far memory (limits.far_tokens) is full; free a sequence first"));
      REQUIRE_THROWS_WITH(tight.plan(serial, {all, 3}), contains("far memory"));
      REQUIRE_THROWS_WITH(tight.finish_prompt(serial, ids[s]), contains("not filling a prompt"));
    }
  tight.free(ids[0]);
  for (int i = 0; i < 110; ++i)
    for (std::size_t const s : {1, 2}) go_on(s);
  for (std::size_t const s : {1, 2}) CHECK(tight.sealed_blocks(ids[s]) > 16);
}

TEST_CASE("every edge of what is supported is refused by name") {  // H36
  auto const refused = [](auto scheme, char const* words, auto const& change) {
    using Scheme = typename decltype(scheme)::type;
    static double const frequencies[Scheme::head_dim / 2] = {};
    model_shape s{
        .layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = Scheme::head_dim, .rotary = {.inverse_frequencies = {frequencies, Scheme::head_dim / 2}}};
    limits l{.sequences = 1, .tokens = 100};
    budget b{.tokens = 16};
    CHECK_NOTHROW(cache<Scheme>(serial, s, l, b));
    change(s, l, b);
    CHECK_THROWS_WITH(cache<Scheme>(serial, s, l, b), contains(words));
  };
  std::type_identity<scheme::quest<16, float>> const quest;
  for (int const d : {0, 4, 12, 580, 584, -16}) refused(quest, "head_dim must be a multiple of 8 up to 576", [&](auto& s, auto&, auto&) { s.head_dim = d; });
  refused(quest, "head_dim is not the scheme's", [](auto& s, auto&, auto&) {
    s.head_dim = 24;
    s.rotary = {};
  });
  refused(quest, "must be positive", [](auto& s, auto&, auto&) { s.layers = 0; });
  refused(quest, "multiple of kv_heads", [](auto& s, auto&, auto&) { s.query_heads = 3; });
  refused(quest, "softmax_scale", [](auto& s, auto&, auto&) { s.softmax_scale = -1; });
  refused(quest, "softmax_scale", [](auto& s, auto&, auto&) { s.softmax_scale = std::nanf(""); });
  refused(quest, "head_dim / 2 inverse frequencies", [](auto& s, auto&, auto&) { s.rotary.inverse_frequencies.count = 4; });
  refused(quest, "above zero", [](auto&, auto&, auto& b) { b.tokens = 0; });
  refused(quest, "negative", [](auto&, auto&, auto& b) { b.dense_layers = -1; });
  refused(quest, "negative", [](auto&, auto&, auto& b) { b.sinks = -1; });
  refused(quest, "step_tokens must be positive", [](auto&, auto& l, auto&) { l.step_tokens = 0; });
  refused(quest, "negative", [](auto&, auto& l, auto&) { l.step_sequences = -1; });
  refused(quest, "negative", [](auto&, auto& l, auto&) { l.far_tokens = -1; });
  refused(quest, "32-bit ids", [](auto&, auto& l, auto&) { l.tokens = i64{1} << 40; });
  refused(std::type_identity<shared_scales<16>>{}, "at most 4096 channels", [](auto& s, auto&, auto&) { s.kv_heads = s.query_heads = 257; });
  refused(std::type_identity<scheme::yakv_centred<16, float>>{}, "rotary must be set", [](auto& s, auto&, auto&) { s.rotary = {}; });
}

namespace {

template <int D>
struct local_layers : scheme::sink_window<D, float> {  // all that its queries see is near
  using attention = cellar::attention::sliding_window<24>;
};
template <int D>
struct global_layers : scheme::quest<D, float> {};

}  // namespace

TEST_CASE("layers of two kinds interleaved in two caches: windows beside selection, prompts of any length, roll back and fork") {  // H39
  constexpr int d = 16;
  using local = local_layers<d>;
  using global = global_layers<d>;
  i64 const window = 24, rolled_back = 5;
  reference<local> ref(4, 2, 2, 66);  // rows of all four layers
  model_shape shape = ref.shape();
  shape.layers = 2;
  for (i64 const n : {1, 10, 23, 24, 25, 60, 150}) {
    limits const l{.sequences = 2, .tokens = n + 60, .step_tokens = 3};
    cache<local> windows(serial, shape, l, {.window = window + rolled_back});  // what may be rolled back stays near as well
    cache<global> whole(serial, shape, l, {.tokens = 32, .window = 8});
    auto const s = ref.sequence(n, n + 60);
    auto const prompt = [&](auto& c, int first_layer) {
      std::vector<float> keys, values;
      for (int layer = first_layer; layer < 4; layer += 2) {
        keys.insert(keys.end(), ref.row(s.keys, s, layer, 0), ref.row(s.keys, s, layer, 0) + n * 2 * d);
        values.insert(values.end(), ref.row(s.values, s, layer, 0), ref.row(s.values, s, layer, 0) + n * 2 * d);
      }
      auto const id = c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), n, n});
      c.finish_prompt(serial, id);
      return id;
    };
    auto w = prompt(windows, 0);
    auto g = prompt(whole, 1);
    i64 length = n;
    auto const step = [&](i64 tokens) {
      batch_entry const in_windows{w, tokens}, in_whole{g, tokens};
      windows.plan(serial, {&in_windows, 1});
      whole.plan(serial, {&in_whole, 1});
      for (int layer = 0; layer < 4; ++layer) {
        auto const q = random_numbers(std::uint64_t(length * 4 + layer)).normals(tokens * 4 * d, 2);
        std::vector<float> out(q.size());
        auto const rows = [&](std::vector<float> const& x) { return packed_heads<float const>(ref.row(x, s, layer, length), tokens, 2, d); };
        auto const run = [&](auto& c) {
          c.append(serial, layer / 2, rows(s.keys), rows(s.values));
          c.attend(serial, layer / 2, packed_heads<float const>(q.data(), tokens, 4, d), packed_heads(out.data(), tokens, 4, d));
        };
        layer % 2 == 0 ? run(windows) : run(whole);
        for (i64 t = 0; t < tokens; ++t)
          for (int head = 0; head < 4; ++head) {
            auto const keys = ref.head_rows(s.keys, s, layer, head / 2, 0, length + tokens),
                       values = ref.head_rows(s.values, s, layer, head / 2, 0, length + tokens);
            std::vector<i64> visible;
            if (layer % 2 == 0) {
              for (i64 p = std::max<i64>(0, length + t - window + 1); p <= length + t; ++p) visible.push_back(p);
            } else {
              auto const ids = *whole.selected(0, head / 2);
              for (auto const b : ids)
                for (i64 i = 0; i < 16; ++i) visible.push_back(number(b) * 16 + i);
              for (i64 p = whole.sealed_blocks(g) * 16; p <= length + t; ++p) visible.push_back(p);
            }
            auto const expected = ref.attend(q.data() + (t * 4 + head) * d, keys, values, visible);  // both schemes are exact, and no logit is bent
            for (int c = 0; c < d; ++c) REQUIRE(double(out[std::size_t((t * 4 + head) * d + c)]) == Approx(expected[std::size_t(c)]).margin(rounding));
          }
      }
      length += tokens;
    };
    for (int i = 0; i < 16; ++i) {
      step(i % 3 + 1);
      if (i % 5 == 4 && length - rolled_back >= 1) {
        length -= rolled_back;
        windows.truncate(serial, w, length);
        whole.truncate(serial, g, length);
      }
      if (i == 8) {
        auto const other_w = windows.fork(serial, w);
        auto const other_g = whole.fork(serial, g);
        windows.free(std::exchange(w, other_w));
        whole.free(std::exchange(g, other_g));
      }
    }
  }
}

namespace {

/// The last tokens alone are seen, so that every one of them shows in some query.
template <int D>
struct recent : scheme_defaults<D, float> {
  using attention = cellar::attention::sliding_window<80>;
};
template <int D>
struct exact_before_rotary : recent<D> {
  using key_codec = codecs::before_rotary<codecs::identity<float>>;
};
template <int D>
struct full_rank : recent<D> {  // as many directions as channels: nothing is lost but rounding
  using key_codec = codecs::low_rank<cellar::codec::fixed_rank<D>, jacobi_eigensolver, float>;
};
template <int D>
struct exact_centred : recent<D> {
  using key_codec = codecs::centred<codecs::identity<float>, codecs::rotated_mean>;
};

}  // namespace

TEST_CASE("keys are rebuilt at their absolute positions, beyond 100 000, sealed and reopened, for every embedding") {  // H11
  constexpr int d = 8;
  i64 const tokens = 100100, later = 60;
  std::vector<std::vector<double>> frequencies(4, std::vector<double>(d / 2));
  auto const to = [&](std::size_t i) { return row_view<double>{frequencies[i].data(), d / 2}; };
  plain_inverse_frequencies(1e4, to(0));
  linear_inverse_frequencies(1e4, 4, to(1));
  llama3_inverse_frequencies(5e5, {.original_context = 64}, to(2));
  yarn_inverse_frequencies(1e4, {.original_context = 256}, to(3));
  random_numbers r(67);
  auto const raw = r.normals((tokens + later) * d), values = r.normals((tokens + later) * d);
  for (auto const& f : frequencies)
    for (auto const pairing : {rotary_pairing::adjacent, rotary_pairing::half_split}) {
      model_shape const shape{.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = d, .rotary = {pairing, {f.data(), d / 2}}};
      std::vector<float> keys(raw.size());  // embedded by the definition, in double
      for (i64 row = 0; row < tokens + later; ++row)
        for (int i = 0; i < d / 2; ++i) {
          int const a = pairing == rotary_pairing::adjacent ? 2 * i : i, b = pairing == rotary_pairing::adjacent ? 2 * i + 1 : i + d / 2;
          double const angle = double(row) * f[std::size_t(i)], x = double(raw[std::size_t(row * d + a)]), y = double(raw[std::size_t(row * d + b)]);
          keys[std::size_t(row * d + a)] = float(x * std::cos(angle) - y * std::sin(angle));
          keys[std::size_t(row * d + b)] = float(x * std::sin(angle) + y * std::cos(angle));
        }
      // Outputs of queries that look for the token 30 before: at the end of the prompt, after rolling back into a sealed block, and at those tokens of that
      // block that were coded when it sealed again.
      auto const outputs = [&]<class Scheme>(std::type_identity<Scheme>) {
        cache<Scheme> c(serial, shape, {.sequences = 1, .tokens = tokens + later}, {.sinks = 5, .window = 8});
        auto const id = c.begin_prompt(prompt_staging<float>{keys.data(), const_cast<float*>(values.data()), tokens, tokens});
        c.finish_prompt(serial, id);
        std::vector<float> all;
        auto const step = [&](bool attends) {
          i64 const p = c.length(id);
          batch_entry const one{id, 1};
          c.plan(serial, {&one, 1});
          c.append(serial, 0, packed_heads<float const>(keys.data() + p * d, 1, 1, d), packed_heads<float const>(values.data() + p * d, 1, 1, d));
          if (!attends) return;
          std::vector<float> q, out(2 * d);
          for (int i = 0; i < 2 * d; ++i) q.push_back(8 * keys[std::size_t((p - 30) * d + i)]);  // of two tokens
          c.attend(serial, 0, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
          all.insert(all.end(), out.begin(), out.end());
        };
        step(true);
        i64 const length = tokens - 35, sealed = (length - 5) / 16, kept = (length - 5) % 16;
        REQUIRE(kept > 0);
        c.truncate(serial, id, length);
        REQUIRE(c.sealed_blocks(id) == sealed);
        for (int i = 0; i < 30 + 16 - kept; ++i) step(i == 0 || i >= 30);
        REQUIRE(c.sealed_blocks(id) > sealed);
        return all;
      };
      auto const expected = outputs(std::type_identity<recent<d>>{});
      // A key that is turned there and back is off by at most 8 * 2^-24 of its length (under 5), a logit by 8 * 25 / sqrt(8) of that, an output by twice the
      // logit's error times the largest value (under 5). Sums of 16 coefficients are off by three times as much.
      auto const check = [&]<class Scheme>(std::type_identity<Scheme> scheme, double bound) {
        auto const out = outputs(scheme);
        REQUIRE(out.size() == expected.size());
        for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(double(out[i]) == Approx(double(expected[i])).margin(bound));
      };
      check(std::type_identity<exact_before_rotary<d>>{}, 3.5e-4);
      check(std::type_identity<full_rank<d>>{}, 1e-3);
      check(std::type_identity<exact_centred<d>>{}, 3.5e-4);
    }
}

}  // namespace hazards_test
