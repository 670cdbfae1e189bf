// Compiled several times with other flags and another UNIT, and linked into one program: mixed_flags.cpp.
#include "cellar/cellar.hpp"

namespace {

template <class Scheme>
void decode(std::vector<float>& results) {
  constexpr int d = Scheme::head_dim, layers = 2, kv_heads = 2, query_heads = 6;
  constexpr cellar::i64 prompt = 150, steps = 20, width = kv_heads * d;
  std::uint32_t state = 1;
  auto const rows = [&](cellar::i64 n) {  // numbers within one, by integer arithmetic
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& y : x) {
      state = state * 1664525 + 1013904223;
      y = float(std::int32_t(state)) * 0x1p-31f;
    }
    return x;
  };
  std::vector<double> frequencies;
  for (int i = 0; i < d / 2; ++i) frequencies.push_back(1.0 / (1 + i * i));
  cellar::host::thread_pool pool(2);
  cellar::host::executor const on(pool);
  cellar::cache<Scheme> cache(
      on, {.layers = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = d, .rotary = {.inverse_frequencies = {frequencies.data(), d / 2}}},
      {.sequences = 1, .tokens = prompt + steps}, {.tokens = 32, .sinks = 2, .window = 8});
  auto keys = rows(layers * prompt * width), values = rows(layers * prompt * width);
  auto const id = cache.begin_prompt(cellar::prompt_staging<float>{keys.data(), values.data(), prompt, prompt});
  cache.finish_prompt(on, id);
  for (cellar::i64 step = 0; step < steps; ++step) {
    cellar::batch_entry const one{id, 1};
    cache.plan(on, {&one, 1});
    for (int layer = 0; layer < layers; ++layer) {
      auto const k = rows(width), v = rows(width), q = rows(query_heads * d);
      std::vector<float> out(q.size());
      cache.append(on, layer, cellar::packed_heads<float const>(k.data(), 1, kv_heads, d), cellar::packed_heads<float const>(v.data(), 1, kv_heads, d));
      cache.attend(on, layer, cellar::packed_heads<float const>(q.data(), 1, query_heads, d), cellar::packed_heads(out.data(), 1, query_heads, d));
      results.insert(results.end(), out.begin(), out.end());
    }
  }
}

}  // namespace

/// Outputs of several schemes.
std::vector<float> UNIT() {
  std::vector<float> results;
  decode<cellar::scheme::dense<64>>(results);
  decode<cellar::scheme::quest<64>>(results);
  decode<cellar::scheme::mean_landmark<64>>(results);
  decode<cellar::scheme::yakv_centred<64>>(results);
  return results;
}
