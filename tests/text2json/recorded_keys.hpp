#pragma once
#include <cmath>
#include <cstdlib>
#include <string>

#include "cache/reference.hpp"
#include "engine/model.hpp"
#include "engine/tokenizer.hpp"
#include "text2json/documents.hpp"

/// Keys, values and queries of real models.
namespace recorded_keys {

using namespace cellar;

inline constexpr int d = 64;

/// Some layers of a model while it answers a generated document.
struct recording {
  std::vector<double> frequencies;
  std::vector<recorded_layer> layers;
};

inline recording record(char const* path, int prompt_tokens, int steps) {
  engine::gguf_file const file(path);
  engine::tokenizer const tokenizer(file);
  engine::model const model(file, 2);
  auto const& c = model.config();
  REQUIRE(c.head_dim == d);
  text2json::generator const generate{.tokens = prompt_tokens, .count_tokens = [&](std::string_view text) { return int(tokenizer.encode(text).size()); }};
  auto const document = generate(0);
  auto const prompt = tokenizer.encode(document.problem), answer = tokenizer.encode(document.answer, false, false);
  REQUIRE(std::int64_t(answer.size()) >= steps);

  engine::staged_prompt staged;
  model.prefill(prompt, staged);
  recording r{model.angles(0).inverse_frequencies, {}};
  std::vector<int> numbers{0, c.layers / 3, 2 * c.layers / 3, c.layers - 1};
  auto const pairing = c.pairing == engine::rotary_pairing::adjacent ? rotary_pairing::adjacent : rotary_pairing::half_split;
  model_shape const shape{.layers = 1, .query_heads = c.heads, .kv_heads = c.kv_heads, .head_dim = d};
  for (int const layer : numbers) {
    recorded_layer one{shape, staged.tokens, steps, {}, {}, {}};
    one.keys.assign(staged.key(layer, 0), staged.key(layer, 0) + staged.tokens * c.kv_width());
    one.values.assign(staged.value(layer, 0), staged.value(layer, 0) + staged.tokens * c.kv_width());
    r.layers.push_back(one);
  }
  host::executor const on(model.threads());
  model_shape all = shape;
  all.layers = c.layers;
  cache<scheme::dense<d, float>> dense(on, all, {.sequences = 1, .tokens = staged.tokens + steps});
  auto const id = dense.begin_prompt(prompt_staging<float>{staged.keys.data(), staged.values.data(), staged.capacity, staged.tokens});
  dense.finish_prompt(on, id);
  std::vector<float> logits;
  for (int step = 0; step < steps; ++step) {
    batch_entry const entry{id, 1};
    dense.plan(on, {&entry, 1});
    std::int64_t const position = staged.tokens + step;
    model.decode(
        {&answer[std::size_t(step)], 1}, {&position, 1},
        [&](int layer, float const* q, float const* k, float const* v, float* out) {
          dense.append(on, layer, packed_heads(k, 1, c.kv_heads, d), packed_heads(v, 1, c.kv_heads, d));
          dense.attend(on, layer, packed_heads(q, 1, c.heads, d), packed_heads(out, 1, c.heads, d));
          for (std::size_t i = 0; i < numbers.size(); ++i)
            if (numbers[i] == layer) {
              auto& one = r.layers[i];
              one.keys.insert(one.keys.end(), k, k + c.kv_width());
              one.values.insert(one.values.end(), v, v + c.kv_width());
              one.queries.insert(one.queries.end(), q, q + std::int64_t(c.heads) * d);
            }
        },
        logits);
  }
  for (auto& one : r.layers) one.shape.rotary = {pairing, {r.frequencies.data(), d / 2}};
  return r;
}

/// What f32 logits may be off by: a share of the sum of their products' sizes, which are sums of 64 products in eight parts. Outputs are off by twice that.
inline double logit_rounding(recorded_layer const& layer) {
  double logit = 0;
  int const heads = layer.shape.query_heads, group = layer.shape.group();
  for (std::int64_t step = 0; step < layer.steps; ++step)
    for (int h = 0; h < heads; ++h)
      for (std::int64_t p = 0; p < layer.prompt + layer.steps; ++p) {
        auto const* const q = layer.queries.data() + (step * heads + h) * d;
        auto const* const k = layer.keys.data() + (p * layer.shape.kv_heads + h / group) * d;
        double sum = 0;
        for (int c = 0; c < d; ++c) sum += std::abs(double(q[c]) * double(k[c]));
        logit = std::max(logit, sum * double(layer.shape.scale()));
      }
  return logit * 8 * 0x1p-24;
}

/// What an output may be off by, in each channel.
inline double output_rounding(recorded_layer const& layer) {
  double value = 0;
  for (float const x : layer.values) value = std::max(value, std::abs(double(x)));
  return value * (rounding + 2 * logit_rounding(layer));
}

/// f of every recorded layer of the model that the environment variable names; without one the test says that it is skipped.
template <class F>
void for_layers(char const* variable, int prompt_tokens, int steps, F const& f) {
  char const* const path = std::getenv(variable);
  if (!path || !*path) {
    skip(std::string("no model: set ") + variable + " to a GGUF file");
    return;
  }
  auto const recorded = record(path, prompt_tokens, steps);
  for (auto const& layer : recorded.layers) f(layer);
}

}  // namespace recorded_keys
