// Composes a scheme of one's own as a type, runs it on random keys and values, and compares it with dense attention.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cellar/cellar.hpp"

// A landmark per token in 2 bits near; keys in 4 bits and values exact, far; a quarter of the prompt read each step.
struct mine : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 1;
  static constexpr cellar::budget published{.share = 0.25, .sinks = 4, .window = 32};
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256>>;
  using select = cellar::select::top_k;
  using key_codec = cellar::codec::higgs<2, 256>;
};

/// One decode step over a prompt, in a cache of that scheme. Keys and values [tokens + 1, kv_heads, 64]: the last token is the step's.
template <class Scheme>
std::vector<float> attend_once(cellar::model_shape const& shape, std::vector<float>& keys, std::vector<float>& values, std::vector<float> const& q,
                               long tokens) {
  cellar::host::thread_pool pool;
  cellar::host::executor const on(pool);
  cellar::cache<Scheme> cache(on, shape, {.sequences = 1, .tokens = tokens + 1});
  // Staging holds the prompt of every layer; this model has one layer, so the step's own rows lie right behind it.
  auto const sequence = cache.begin_prompt(cellar::prompt_staging<float>{keys.data(), values.data(), tokens, tokens});
  cache.finish_prompt(on, sequence);

  cellar::batch_entry const batch[]{{sequence, 1}};
  cache.plan(on, {batch, 1});
  std::vector<float> out(q.size());
  long const last = tokens * shape.kv_heads * 64;
  cache.append(on, 0, cellar::packed_heads<float const>(keys.data() + last, 1, shape.kv_heads, 64),
               cellar::packed_heads<float const>(values.data() + last, 1, shape.kv_heads, 64));
  cache.attend(on, 0, cellar::packed_heads<float const>(q.data(), 1, shape.query_heads, 64), cellar::packed_heads(out.data(), 1, shape.query_heads, 64));

  auto const usage = cache.usage(sequence);
  std::printf("near %6.1f bytes a token, far %6.1f\n", double(usage.summary + usage.always_near + usage.generated) / double(tokens + 1),
              double(usage.far) / double(tokens + 1));
  return out;
}

int main() {
  cellar::model_shape const shape{.layers = 1, .query_heads = 8, .kv_heads = 2, .head_dim = 64};
  long const tokens = 2000;
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  auto const numbers = [&](long n, float scale) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& y : x) y = scale * normal(engine);
    return x;
  };
  auto keys = numbers((tokens + 1) * 2 * 64, 1), values = numbers((tokens + 1) * 2 * 64, 1);
  auto const q = numbers(8 * 64, 3);  // peaked attention: few keys matter, as in a language model

  auto const dense = attend_once<cellar::scheme::dense<64>>(shape, keys, values, q, tokens), sparse = attend_once<mine>(shape, keys, values, q, tokens);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    error += std::pow(double(dense[i]) - double(sparse[i]), 2);
    size += std::pow(double(dense[i]), 2);
  }
  double const relative = std::sqrt(error / size);
  std::printf("relative error %.3f\n", relative);
  return relative < 0.25 ? 0 : 1;
}
