// Ids that serve several layers and steps, what stands for blocks that were not chosen, and schemes that need no far memory.
#include <limits>

#include "cache/reference.hpp"

using namespace cellar;

namespace shared_selection_test {

namespace {

template <int D, int Layers, i64 Steps>
struct sharing : scheme::quest<D, float> {
  static constexpr budget published{.tokens = 48};
  using reuse = cellar::select::reuse_ids<Layers, Steps>;
};

struct one_block : sharing<16, 1, 8> {
  static constexpr int block_tokens = 4;
};

using ids = std::vector<std::vector<std::int64_t>>;  // [layer][id] of KV head 0

/// Steps of one token whose selections are noted layer by layer.
template <class Scheme>
struct watched {
  static constexpr int d = Scheme::head_dim;
  reference<Scheme> ref;
  sequence_data data;
  host::executor on;
  cellar::cache<Scheme> cache;
  sequence_id id;

  explicit watched(int layers, budget const& b = {.tokens = 48, .window = 4})
      : ref(layers, 1, 2, 71), data(ref.sequence(200, 300)), cache(on, ref.shape(), {.sequences = 2, .tokens = 300}, b) {
    std::vector<float> keys, values;
    id = cache.begin_prompt(ref.staging(data, keys, values));
    cache.finish_prompt(on, id);
  }
  void plan() {
    batch_entry const one{id, 1};
    cache.plan(on, {&one, 1});
  }
  void append(int layer) {
    i64 const p = cache.length(id) - 1;
    cache.append(on, layer, packed_heads<float const>(ref.row(data.keys, data, layer, p), 1, 1, d),
                 packed_heads<float const>(ref.row(data.values, data, layer, p), 1, 1, d));
  }
  std::vector<float> query(int layer, i64 length) const { return random_numbers(std::uint64_t(length * 100 + layer)).normals(2 * d, 2); }
  void select(int layer, i64 length) {
    auto const q = query(layer, length);
    cache.select(on, layer, packed_heads<float const>(q.data(), 1, 2, d));
  }
  std::vector<std::int64_t> attend(int layer) {
    auto const q = query(layer, cache.length(id));
    std::vector<float> out(q.size());
    cache.attend(on, layer, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
    std::vector<std::int64_t> chosen;
    if (auto const selected = cache.selected(0, 0))
      for (auto const b : *selected) chosen.push_back(number(b));
    return chosen;
  }
  ids step() {
    plan();
    ids all;
    for (int layer = 0; layer < ref.shape().layers; ++layer) {
      append(layer);
      all.push_back(attend(layer));
    }
    return all;
  }
};

}  // namespace

TEST_CASE("one selection serves its layers: they take the ids of the first of them, and every group of layers its own") {
  watched<sharing<16, 3, 1>> shared(8, {.tokens = 48, .window = 4, .dense_layers = 1});
  watched<sharing<16, 1, 1>> alone(8, {.tokens = 48, .window = 4, .dense_layers = 1});
  for (int i = 0; i < 5; ++i) {
    auto const a = shared.step(), b = alone.step();
    CHECK(a[0].empty());  // dense
    for (int const first : {1, 4, 7}) {
      CHECK(a[std::size_t(first)] == b[std::size_t(first)]);
      for (int layer = first; layer < std::min(first + 3, 8); ++layer) CHECK(a[std::size_t(layer)] == a[std::size_t(first)]);
    }
    CHECK(a[2] != b[2]);
  }
}

TEST_CASE("one selection serves its steps of a sequence, and is made anew after them") {
  watched<sharing<16, 1, 4>> shared(2);
  watched<sharing<16, 1, 1>> alone(2);
  ids last;
  for (int i = 0; i < 12; ++i) {
    auto const a = shared.step(), b = alone.step();
    if (i % 4 == 0)
      CHECK(a == b);
    else
      CHECK(a == last);
    last = a;
  }
}

TEST_CASE("a step attends to what was selected after the step before, by its query, and selects itself where nothing was") {
  watched<sharing<16, 1, 2>> ahead(2);
  watched<sharing<16, 1, 1>> alone(2);
  ids before;
  for (int i = 0; i < 24; ++i) {
    auto const a = ahead.step(), b = alone.step();
    CHECK(a == (i == 0 || i == 9 ? b : before));
    before = b;
    if (i == 8) continue;  // what was selected in step 7 serves step 8 and no later one
    for (int layer = 0; layer < 2; ++layer) ahead.select(layer, ahead.cache.length(ahead.id));
  }
}

TEST_CASE("a layer attends to what was selected ahead in the same step, among the blocks that it had before") {
  watched<sharing<16, 1, 2>> ahead(2);
  watched<sharing<16, 1, 1>> alone(2);
  watched<sharing<16, 1, 2>> all(2, {.tokens = 300, .window = 4});
  int sealing = 0;
  for (int i = 0; i < 40; ++i) {
    i64 const sealed = ahead.cache.sealed_blocks(ahead.id);
    ahead.plan(), alone.plan(), all.plan();
    for (int layer = 0; layer < 2; ++layer) {
      ahead.select(layer, ahead.cache.length(ahead.id));  // not appended yet
      all.select(layer, all.cache.length(all.id));
      ahead.append(layer), alone.append(layer), all.append(layer);
      CHECK(i64(all.attend(layer).size()) == sealed);
      auto const a = ahead.attend(layer), b = alone.attend(layer);
      CHECK(std::all_of(a.begin(), a.end(), [&](std::int64_t id) { return id < sealed; }));
      if (ahead.cache.sealed_blocks(ahead.id) == sealed)
        CHECK(a == b);
      else
        ++sealing;
      ahead.select(layer, ahead.cache.length(ahead.id));  // now it is
      CHECK(ahead.attend(layer) == b);
    }
  }
  CHECK(sealing > 0);
}

TEST_CASE("selecting ahead is refused where no step is planned, and in a layer that shares a selection, and does nothing in dense layers") {
  watched<sharing<16, 2, 2>> w(5, {.tokens = 48, .window = 4, .dense_layers = 1});
  CHECK_THROWS_WITH(w.cache.select(w.on, 1, packed_heads<float const>(nullptr, 1, 2, 16)), contains("plan a step first"));
  w.plan();
  CHECK_THROWS_WITH(w.select(2, 1), contains("shares the selection"));
  CHECK_THROWS_WITH(w.select(5, 1), contains("no such layer"));
  std::vector<float> q(32, undefined);
  CHECK_THROWS_WITH(w.cache.select(w.on, 1, packed_heads<float const>(q.data(), 1, 2, 16)), contains("NaN"));
  CHECK_THROWS_WITH(w.cache.select(w.on, 1, packed_heads<float const>(q.data(), 1, 1, 16)), contains("query_heads"));
  CHECK_NOTHROW(w.select(0, 1));
  for (int layer = 0; layer < 5; ++layer) w.append(layer);
  CHECK(w.attend(0).empty());
  CHECK_THROWS_WITH(w.attend(2), contains("shares the selection"));
  w.select(1, 7);
  CHECK(!w.attend(2).empty());
}

TEST_CASE("sequences of one batch keep the ids of their own steps, attended exactly") {
  using Scheme = sharing<16, 2, 3>;
  reference<Scheme> ref(3, 2, 2, 72);
  trial<Scheme> t(ref, {150, 90, 120}, 40, {.tokens = 32, .sinks = 2, .window = 4}, {}, 1, 1);
  for (int i = 0; i < 12; ++i)
    t.step(i % 2 ? std::vector<std::size_t>{2, 0} : std::vector<std::size_t>{0, 1, 2},
           i % 2 ? std::vector<std::int64_t>{1, 1} : std::vector<std::int64_t>{1, 1, 1}, rounding);
  t.truncate(0, 40);  // shared ids lie beyond: they are left out
  auto const fork = t.fork(1);
  for (int i = 0; i < 7; ++i) t.step({0, fork, 1}, {1, 1, 1}, rounding);
}

TEST_CASE("kept ids leave out a block that was truncated, also once another sealed in its place") {
  int hits = 0;
  for (i64 length = 100; length > 60; length -= 3) {
    watched<one_block> w(1, {.tokens = 4, .window = 4});
    auto const first = w.step();
    REQUIRE(first[0].size() == 1);
    w.cache.truncate(w.on, w.id, length);
    bool const is_cut = first[0][0] * 4 + 4 > length;
    hits += is_cut;
    for (int i = 0; i < 200; ++i) {  // seals the cut blocks anew, unattended
      if (w.cache.length(w.id) == 201) break;
      w.plan();
      w.append(0);
      if (i == 3) CHECK(w.attend(0) == (is_cut ? std::vector<std::int64_t>{} : first[0]));
      if (i == 6) CHECK(w.attend(0) == (is_cut ? std::vector<std::int64_t>{} : first[0]));
    }
  }
  CHECK(hits > 0);
}

TEST_CASE("a layer that shares a selection is refused before the one that makes it, also after discard") {
  watched<sharing<16, 2, 1>> w(4);
  w.plan();
  for (int layer = 0; layer < 4; ++layer) w.append(layer);
  CHECK_THROWS_WITH(w.attend(1), contains("shares the selection"));
  auto const first = w.attend(0);
  CHECK(w.attend(1) == first);
  CHECK(w.attend(0) == first);  // again, in the same step
  CHECK_THROWS_WITH(w.attend(3), contains("shares the selection"));
  auto const third = w.attend(2);
  CHECK(w.attend(3) == third);
  w.plan();
  w.append(0);
  w.attend(0);
  w.cache.discard();
  w.plan();
  w.append(0);
  w.append(1);
  CHECK_THROWS_WITH(w.attend(1), contains("shares the selection"));
}

namespace {

template <int D, int Tokens>
struct with_mean_value : scheme::quest<D, float> {  // landmarks that are the keys, or their means
  static constexpr int block_tokens = Tokens;
  using summary = cellar::summary::mean<float>;
  using remainder = cellar::attention::mean_value;
};
template <int D, int Tokens>
struct capped_with_mean_value : with_mean_value<D, Tokens> {
  using attention = cellar::attention::soft_cap<std::ratio<2>>;
};

}  // namespace

TEST_CASE("the mean value stands for the blocks that were not chosen, weighed by their logits") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, i64 budget_tokens) {
    constexpr int d = Scheme::head_dim, b = Scheme::block_tokens;
    int const group = 3;
    i64 const prompt = 150, sinks = 2, window = 6;
    reference<Scheme> ref(1, 2, group, 73);
    trial<Scheme> t(ref, {prompt}, 40, {.tokens = budget_tokens, .sinks = sinks, .window = window});
    auto const& s = t.data[0];
    i64 const prompt_far = t.cache.sealed_blocks(t.ids[0]) * b;
    for (int step = 0; step < 30; ++step) {
      i64 const length = t.lengths[0] + 1;
      auto const q = random_numbers(std::uint64_t((length - 1) * 100)).normals(2 * group * d, 2);  // as trial draws them
      auto const out = t.step({0}, {1}, 0, false);
      i64 const sealed = t.cache.sealed_blocks(t.ids[0]);
      for (int head = 0; head < 2; ++head) {
        auto const keys = ref.head_rows(s.keys, s, 0, head, 0, length), values = ref.head_rows(s.values, s, 0, head, 0, length);
        std::vector<double> mean(d, 0.0);
        for (i64 p = sinks; p < sinks + prompt_far; ++p)
          for (int c = 0; c < d; ++c) mean[std::size_t(c)] += double(values[std::size_t(p * d + c)]) / double(prompt_far);
        std::vector<bool> is_chosen(std::size_t(sealed), false);
        auto const chosen = *t.cache.selected(0, head);
        for (auto const id : chosen) is_chosen[std::size_t(number(id))] = true;
        for (int g = 0; g < group; ++g) {
          float const* const query = q.data() + (head * group + g) * d;
          auto const logit = [&](i64 first, i64 tokens) {  // of the mean of some keys
            double x = 0;
            for (i64 p = first; p < first + tokens; ++p)
              for (int c = 0; c < d; ++c) x += double(query[c]) * double(keys[std::size_t(p * d + c)]) / double(tokens);
            return variant_reference<typename Scheme::attention>::logit(x * double(ref.shape().scale()));
          };
          double sum = 0;
          std::vector<double> expected(d, 0.0);
          auto const add = [&](double weight, auto const& value) {
            sum += weight;
            for (int c = 0; c < d; ++c) expected[std::size_t(c)] += weight * double(value(c));
          };
          for (i64 p = 0; p < length; ++p)
            if (i64 const block = (p - sinks) / b; p < sinks || block >= sealed || is_chosen[std::size_t(block)])
              add(std::exp(logit(p, 1)), [&](int c) { return values[std::size_t(p * d + c)]; });
          for (i64 block = 0; block < sealed; ++block)
            if (!is_chosen[std::size_t(block)]) add(b * std::exp(logit(sinks + block * b, b)), [&](int c) { return mean[std::size_t(c)]; });
          for (int c = 0; c < d; ++c) REQUIRE(double(out[std::size_t((head * group + g) * d + c)]) == Approx(expected[std::size_t(c)] / sum).margin(rounding));
        }
      }
    }
  };
  check(std::type_identity<with_mean_value<16, 1>>{}, 8);
  check(std::type_identity<with_mean_value<16, 8>>{}, 24);
  check(std::type_identity<with_mean_value<32, 8>>{}, 100000);  // nothing is left
  check(std::type_identity<capped_with_mean_value<16, 8>>{}, 24);
}

TEST_CASE("a prompt without far tokens has no mean value: what is chosen of the generated ones is attended alone") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    for (i64 const prompt : {1, 8}) {
      reference<Scheme> ref(1, 2, 2, 76);
      trial<Scheme> t(ref, {prompt}, 100, {.tokens = 8, .window = 8});
      for (int i = 0; i < 100; ++i) t.step({0}, {1}, rounding);
      CHECK(t.cache.sealed_blocks(t.ids[0]) > t.cache.selected(0, 0)->count);
    }
  };
  check(std::type_identity<with_mean_value<16, 1>>{});
  check(std::type_identity<with_mean_value<16, 8>>{});
}

TEST_CASE("a scheme that never reads far memory has none, and runs on in what its window needs") {
  using Scheme = scheme::sink_window<16, float>;
  i64 const tokens = 1000000000;
  reference<Scheme> ref(1, 1, 2, 74);
  host::executor const on;
  cache<Scheme> c(on, ref.shape(), {.sequences = 2, .tokens = tokens}, {.sinks = 4, .window = 40});
  auto const data = ref.sequence(100, 3000);
  std::vector<float> keys, values;
  auto const id = c.begin_prompt(ref.staging(data, keys, values));
  c.finish_prompt(on, id);
  CHECK(c.usage(id).far == 0);
  CHECK(c.usage(id).summary == 0);
  CHECK(c.map().near_sequence() < 100 * 2 * 16 * 4);
  for (i64 p = 100; p < 3000; ++p) {
    batch_entry const one{id, 1};
    c.plan(on, {&one, 1});
    auto const q = random_numbers(std::uint64_t(p)).normals(32, 2);
    std::vector<float> out(32);
    c.append(on, 0, packed_heads<float const>(ref.row(data.keys, data, 0, p), 1, 1, 16), packed_heads<float const>(ref.row(data.values, data, 0, p), 1, 1, 16));
    c.attend(on, 0, packed_heads<float const>(q.data(), 1, 2, 16), packed_heads(out.data(), 1, 2, 16));
    if (p % 50 != 0) continue;
    std::vector<std::int64_t> seen{0, 1, 2, 3};
    for (i64 x = 4 + c.sealed_blocks(id) * 16; x <= p; ++x) seen.push_back(x);
    CHECK(i64(seen.size()) >= 44);
    CHECK(i64(seen.size()) < 44 + 16);
    auto const k = ref.head_rows(data.keys, data, 0, 0, 0, p + 1), v = ref.head_rows(data.values, data, 0, 0, 0, p + 1);
    for (int g = 0; g < 2; ++g) {
      auto const expected = ref.attend(q.data() + g * 16, k, v, seen);
      for (int x = 0; x < 16; ++x) REQUIRE(double(out[std::size_t(g * 16 + x)]) == Approx(expected[std::size_t(x)]).margin(rounding));
    }
  }
  c.truncate(on, id, 2990);
  CHECK_THROWS_WITH(c.truncate(on, id, 2900), contains("discarded"));
  CHECK(c.length(c.fork(on, id)) == 2990);
}

namespace {

template <int Tokens>
struct windowed : scheme::sink_window<16, float> {
  static constexpr int block_tokens = 4;
  using attention = cellar::attention::sliding_window<Tokens>;
};

}  // namespace

TEST_CASE("a sliding window is kept whole, or the budget and the roll back that would cut it are refused") {  // H39
  using Scheme = windowed<20>;
  reference<Scheme> ref(1, 1, 2, 75);
  host::executor const on;
  auto const make = [&](i64 window, i64 step_tokens) {
    return cache<Scheme>(on, ref.shape(), {.sequences = 1, .tokens = 200, .step_tokens = step_tokens}, {.window = window});
  };
  CHECK_NOTHROW(make(20, 1));
  CHECK_THROWS_WITH(make(19, 1), contains("sliding window"));
  CHECK_NOTHROW(make(23, 4));
  CHECK_THROWS_WITH(make(22, 4), contains("sliding window"));
  for (i64 const step : {2, 20, 21, 22, 23, 40, 150, 190}) {  // the first query of a step sees 19 keys before it, those of the step are no substitute
    CHECK_THROWS_WITH(make(20, step), contains("sliding window"));
    if (step + 18 < 200) CHECK_THROWS_WITH(make(step + 18, step), contains("sliding window"));
    CHECK_NOTHROW(make(step + 19, step));
  }
  CHECK_NOTHROW(make(std::numeric_limits<i64>::max(), 1000));  // nothing ever leaves such a window
  CHECK_NOTHROW(make(5, 200));                                 // one step of all tokens
  auto const deep = [&](int dense_layers, i64 window) {
    auto shape = ref.shape();
    shape.layers = 2;
    return cache<Scheme>(on, shape, {.sequences = 1, .tokens = 200}, {.window = window, .dense_layers = dense_layers});
  };
  CHECK_THROWS_WITH(deep(1, 4), contains("sliding window"));  // the second layer reads nothing far
  CHECK_NOTHROW(deep(1, 20));
  CHECK_NOTHROW(deep(2, 4));
  auto partly = deep(1, 20);
  auto const kept = ref.sequence(150, 200);
  std::vector<float> twice;
  for (int i = 0; i < 2; ++i) twice.insert(twice.end(), kept.keys.begin(), kept.keys.begin() + 150 * 16);
  auto const both = partly.begin_prompt(prompt_staging<float>{twice.data(), twice.data(), 150, 150});
  partly.finish_prompt(on, both);
  CHECK_THROWS_WITH(partly.truncate(on, both, 140), contains("discarded"));
  CHECK_THROWS_WITH(partly.truncate(on, both, 100), contains("discarded"));
  CHECK(partly.length(both) == 150);
  cache<Scheme> young(on, ref.shape(), {.sequences = 1, .tokens = 200}, {.sinks = 4, .window = 30});
  auto const short_prompt = ref.sequence(15, 20);
  std::vector<float> k15, v15;
  auto const nothing_sealed = young.begin_prompt(ref.staging(short_prompt, k15, v15));
  young.finish_prompt(on, nothing_sealed);
  CHECK_NOTHROW(young.truncate(on, nothing_sealed, 12));
  for (i64 taken = 0; taken <= 12; ++taken) {
    auto c = make(26, 1);
    auto const data = ref.sequence(150, 200);
    std::vector<float> keys, values;
    auto const id = c.begin_prompt(ref.staging(data, keys, values));
    c.finish_prompt(on, id);
    i64 const first = c.sealed_blocks(id) * 4, length = 150 - taken;  // of what is near
    if (length - 19 < first) {
      CHECK_THROWS_WITH(c.truncate(on, id, length), contains("discarded"));
      CHECK(c.length(id) == 150);
      continue;
    }
    c.truncate(on, id, length);
    batch_entry const one{id, 1};
    c.plan(on, {&one, 1});
    auto const q = ref.random().normals(32, 2);
    std::vector<float> out(32);
    c.append(on, 0, packed_heads<float const>(ref.row(data.keys, data, 0, length), 1, 1, 16),
             packed_heads<float const>(ref.row(data.values, data, 0, length), 1, 1, 16));
    c.attend(on, 0, packed_heads<float const>(q.data(), 1, 2, 16), packed_heads(out.data(), 1, 2, 16));
    std::vector<std::int64_t> seen;
    for (i64 p = length - 19; p <= length; ++p) seen.push_back(p);
    auto const k = ref.head_rows(data.keys, data, 0, 0, 0, length + 1), v = ref.head_rows(data.values, data, 0, 0, 0, length + 1);
    for (int g = 0; g < 2; ++g) {
      auto const expected = ref.attend(q.data() + g * 16, k, v, seen);
      for (int x = 0; x < 16; ++x) REQUIRE(double(out[std::size_t(g * 16 + x)]) == Approx(expected[std::size_t(x)]).margin(rounding));
    }
  }
}

}  // namespace shared_selection_test
