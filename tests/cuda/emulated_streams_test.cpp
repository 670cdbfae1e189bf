// What waits for what: steps that run long after they were enqueued, and selections ahead of attention on a stream beside it.
#include "cuda/families.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

namespace {

using scheme_type = families::shared<1, 2>;
using device = emulator::device<>;
constexpr int D = scheme_type::head_dim, kv_heads = 1, query_heads = 2;

model_shape shape_of(int layers) { return {.layers = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = D}; }

/// The life of some sequences; the caller's memory stays as it is until the end.
class life {
 public:
  life(device const& on, int layers, std::uint64_t seed) : on_(on), layers_(layers), random_(seed) {}

  float* numbers(i64 count) {
    held_.push_back(on_.upload(random_.normals(count)));  // waits, as an engine's upload might; what follows does not
    return held_.back().data();
  }
  std::vector<float> outputs() {
    std::vector<float> all;
    for (auto& [data, count] : outputs_) {
      std::vector<float> one(std::size_t(count), 0.0f);
      on_.download(one.data(), data, count * i64(sizeof(float)));
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  struct step_memory {
    float *k, *v, *q, *out;
  };
  /// Memory of a step's layers, before anything of the step is enqueued.
  std::vector<step_memory> memory(i64 rows) {
    std::vector<step_memory> all;
    for (int layer = 0; layer < layers_; ++layer) {
      all.push_back({numbers(rows * kv_heads * D), numbers(rows * kv_heads * D), numbers(rows * query_heads * D), numbers(rows * query_heads * D)});
      outputs_.push_back({all.back().out, rows * query_heads * D});
    }
    return all;
  }

 private:
  device on_;
  int layers_;
  random_numbers random_;
  std::deque<device::buffer<float>> held_;
  std::vector<std::pair<float*, i64>> outputs_;
};

template <class Scheme>
void append_and_attend(cache<Scheme, device>& c, device const& on, int layer, life::step_memory const& m, i64 rows) {
  c.append(on, layer, packed_heads<float const>(m.k, rows, kv_heads, D), packed_heads<float const>(m.v, rows, kv_heads, D));
  c.attend(on, layer, packed_heads<float const>(m.q, rows, query_heads, D), packed_heads(m.out, rows, query_heads, D));
}

/// Everything that a cache does, enqueued as far as its calls let it.
std::vector<float> whole_life(device const& on, std::uint64_t seed) {
  int const layers = 2;
  life all(on, layers, 7);
  i64 const prompt = 150;
  float *const k0 = all.numbers(layers * prompt * kv_heads * D), *const v0 = all.numbers(layers * prompt * kv_heads * D);
  std::vector<std::vector<life::step_memory>> memory;
  for (int i = 0; i < 12; ++i) memory.push_back(all.memory(4));
  {
    cache<scheme_type, device> c(on, shape_of(layers), {.sequences = 3, .tokens = 260, .step_tokens = 2, .step_sequences = 2}, {.tokens = 48, .window = 20});
    auto const begin = [&] {
      auto const id = c.begin_prompt(prompt_staging<float>{k0, v0, prompt, prompt});
      c.finish_prompt(on, id);
      return id;
    };
    auto const first = begin();
    auto second = begin();
    std::size_t at = 0;
    auto const step = [&](std::vector<batch_entry> const& batch) {
      c.plan(on, row_view<batch_entry const>{batch.data(), i64(batch.size())});
      i64 rows = 0;
      for (auto const& e : batch) rows += e.new_tokens;
      auto const& of_step = memory[at++];
      for (int layer = 0; layer < layers; ++layer) append_and_attend(c, on, layer, of_step[std::size_t(layer)], rows);
    };
    for (int i = 0; i < 4; ++i) step({{first, 1 + i % 2}, {second, 2}});
    auto const third = c.fork(on, second);
    c.free(second);
    step({{third, 2}, {first, 1}});
    std::vector<batch_entry> const given_up{{first, 2}, {third, 1}};
    c.plan(on, row_view<batch_entry const>{given_up.data(), 2});
    c.discard();
    for (int i = 0; i < 2; ++i) step({{first, 2}, {third, 1}});
    c.truncate(on, first, 120);
    step({{first, 1}, {third, 2}});
    c.free(first);
    second = begin();  // another prompt where one was
    step({{second, 2}, {third, 2}});
    c.truncate(on, third, c.length(third) - 1);
    step({{third, 1}, {second, 1}});
    if (seed % 2) c.free(third);
  }  // and the cache goes, with steps that have not run
  return all.outputs();
}

/// Steps whose selections are made ahead on a second stream, as an engine hides them. forgotten: which completion is not waited for.
enum class forgotten { nothing, attention, selection };
std::vector<float> ahead(device const& on, device const& side, forgotten what) {
  constexpr int layers = 3;
  life all(on, layers, 8);
  i64 const prompt = 150;
  float *const k0 = all.numbers(layers * prompt * kv_heads * D), *const v0 = all.numbers(layers * prompt * kv_heads * D);
  std::vector<std::vector<life::step_memory>> memory;
  for (int i = 0; i < 6; ++i) memory.push_back(all.memory(2));
  cache<scheme_type, device> c(on, shape_of(layers), {.sequences = 2, .tokens = 260, .step_tokens = 1, .step_sequences = 2}, {.tokens = 32, .window = 8});
  std::vector<batch_entry> batch;
  for (int i = 0; i < 2; ++i) {
    auto const id = c.begin_prompt(prompt_staging<float>{k0, v0, prompt, prompt});
    c.finish_prompt(on, id);
    batch.push_back({id, 1});
  }
  emulator::completion attended[layers], selected;
  for (auto const& of_step : memory) {
    c.plan(on, row_view<batch_entry const>{batch.data(), 2});
    for (int layer = 0; layer < layers; ++layer) {
      auto const& m = of_step[std::size_t(layer)];
      append_and_attend(c, on, layer, m, 2);
      attended[layer].record(on);
      if (what != forgotten::attention) attended[layer].wait(side);
      c.select(side, layer, packed_heads<float const>(m.q, 2, query_heads, D));
    }
    selected.record(side);
    if (what != forgotten::selection) selected.wait(on);  // before the next plan
  }
  auto const outputs = all.outputs();
  side.wait();
  return outputs;
}

/// Steps whose runs an engine has brought ahead on a second stream: those of the next layer, as it guesses them. Lists go as soon as they were given.
enum class guess { none, first_blocks, last_blocks };
std::vector<float> prefetched(device const& on, device const& side, guess what, bool waits, std::pair<i64, i64>* counts = nullptr) {
  using bounds = scheme::quest<D, float>;
  constexpr int layers = 2;
  life all(on, layers, 9);
  i64 const prompt = 330;
  float *const k0 = all.numbers(layers * prompt * kv_heads * D), *const v0 = all.numbers(layers * prompt * kv_heads * D);
  std::vector<std::vector<life::step_memory>> memory;
  for (int i = 0; i < 6; ++i) memory.push_back(all.memory(1));
  cache<bounds, device> c(on, shape_of(layers), {.sequences = 1, .tokens = 400, .step_tokens = 1}, {.tokens = 64, .window = 8, .dense_layers = 0});
  batch_entry const batch{c.begin_prompt(prompt_staging<float>{k0, v0, prompt, prompt}), 1};
  c.finish_prompt(on, batch.sequence);
  emulator::completion attended, brought;
  for (auto const& of_step : memory) {
    c.plan(on, row_view<batch_entry const>{&batch, 1});
    for (int layer = 0; layer < layers; ++layer) {
      append_and_attend(c, on, layer, of_step[std::size_t(layer)], 1);
      if (what == guess::none) continue;
      attended.record(on);
      if (waits) attended.wait(side);
      {
        std::vector<logical_block> named;
        for (int i = 0; i < 4; ++i) named.push_back(logical_block(what == guess::first_blocks ? i : 19 - i));
        c.prefetch(side, layer, batch.sequence, 0, {named.data(), 4});
        std::fill(named.begin(), named.end(), logical_block{11});
      }
      brought.record(side);
      if (waits) brought.wait(on);
    }
  }
  auto const outputs = all.outputs();
  side.wait();
  if (counts) *counts = c.pool_hits_and_misses(on);
  return outputs;
}

}  // namespace

TEST_CASE("runs brought ahead on another stream change no output, in any order that the completions leave, though the list has gone") {  // H3, H7
  std::pair<i64, i64> counts[3];
  auto const expected = prefetched(device(), device(), guess::none, true, &counts[0]);
  for (guess const what : {guess::first_blocks, guess::last_blocks}) {
    auto& serial = counts[int(what)];
    REQUIRE(prefetched(device(), device(), what, true, &serial) == expected);
    CHECK(serial.first + serial.second == counts[0].first + counts[0].second + 6 * 2 * 4);  // each of the named, whether it was there or not
    int differing = 0;
    for (std::uint64_t seed = 1; seed <= (is_sanitized ? 1 : 3); ++seed) {
      std::pair<i64, i64> late;
      emulator::streams two(2, seed);
      device const on(emulator::shuffled(1), &two, 0);
      REQUIRE(prefetched(on, on.on_stream(1), what, true, &late) == expected);
      CHECK(late == serial);
    }
    if (is_sanitized) continue;
    for (std::uint64_t seed = 1; seed <= 40 && differing == 0; ++seed) {
      emulator::streams two(2, seed);
      device const on(emulator::shuffled(1), &two, 0);
      differing += prefetched(on, on.on_stream(1), what, false) != expected;
    }
    CHECK(differing > 0);  // slots that attention reads are given to others: the completions are needed
  }
}

TEST_CASE("a step may run long after it was enqueued: what its calls used is still there, and the host did not read ahead of it") {  // H1, H3, H4, H29
  auto const expected = whole_life(device(), 0);
  for (std::uint64_t seed = 0; seed < 2; ++seed) {
    emulator::streams late(1, seed);
    REQUIRE(whole_life(device(emulator::shuffled(1), &late), seed) == expected);
  }
}

TEST_CASE("selections made ahead on another stream give what one stream gives, in any order that the completions leave") {
  auto const expected = ahead(device(), device(), forgotten::nothing);
  auto const on_two_streams = [&](std::uint64_t seed, forgotten what) {
    emulator::streams two(2, seed);
    device const on(emulator::shuffled(1), &two, 0);
    return ahead(on, on.on_stream(1), what);
  };
  std::uint64_t const seeds = 3;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) REQUIRE(on_two_streams(seed, forgotten::nothing) == expected);
  for (auto const what : {forgotten::attention, forgotten::selection}) {  // every one of them is needed
    int differing = 0;
    for (std::uint64_t seed = 1; seed <= seeds; ++seed) differing += on_two_streams(seed, what) != expected;
    INFO("not waited for: " << (what == forgotten::attention ? "attention" : "selection"));
    CHECK(differing > 0);
  }
}
