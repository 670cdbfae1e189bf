#pragma once
// What the examples write_your_own_* share: random keys and values of one layer, a cache of a scheme that decodes over them, and exact attention beside it.
#include <cmath>
#include <random>
#include <vector>

#include "cellar/cellar.hpp"

/// A prompt and tokens that are decoded after it, one a step.
struct problem {
  cellar::model_shape shape{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  cellar::i64 prompt = 0, steps = 30;
  std::vector<float> keys, values;  // (token, kv head, channel)
  std::vector<float> queries;       // (step, query head, channel)
};

/// Normal numbers; queries that many times larger, since few keys matter to a query of a language model.
inline problem random_problem(float query_scale, cellar::i64 prompt = 1000) {
  problem p;
  p.prompt = prompt;
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  auto const fill = [&](std::vector<float>& x, cellar::i64 rows, float scale) {
    x.resize(std::size_t(rows * p.shape.head_dim));
    for (float& y : x) y = scale * normal(engine);
  };
  fill(p.keys, (p.prompt + p.steps) * p.shape.kv_heads, 1);
  fill(p.values, (p.prompt + p.steps) * p.shape.kv_heads, 1);
  fill(p.queries, p.steps * p.shape.query_heads, query_scale);
  return p;
}

/// The outputs of all steps, (step, query head, channel), by a cache of that scheme.
template <class Scheme>
std::vector<float> decode(problem const& p, cellar::tier_options_of<typename Scheme::tier> const& tier = {}, cellar::statistics* observer = nullptr) {
  cellar::model_shape const& shape = p.shape;
  cellar::host::thread_pool pool(2);
  cellar::host::executor const on(pool);
  cellar::cache<Scheme> cache(on, shape, {.sequences = 1, .tokens = p.prompt + p.steps}, Scheme::published, tier);
  cache.observe(observer);
  auto keys = p.keys, values = p.values;
  auto const sequence = cache.begin_prompt(cellar::prompt_staging<float>{keys.data(), values.data(), p.prompt, p.prompt});
  cache.finish_prompt(on, sequence);
  std::vector<float> out(p.queries.size());
  cellar::batch_entry const batch[]{{sequence, 1}};
  for (cellar::i64 step = 0; step < p.steps; ++step) {
    auto const kv = [&](std::vector<float> const& x) {
      return cellar::packed_heads(x.data() + (p.prompt + step) * shape.kv_heads * shape.head_dim, 1, shape.kv_heads, shape.head_dim);
    };
    cellar::i64 const row = step * shape.query_heads * shape.head_dim;
    cache.plan(on, {batch, 1});
    cache.append(on, 0, kv(p.keys), kv(p.values));
    cache.attend(on, 0, cellar::packed_heads(p.queries.data() + row, 1, shape.query_heads, shape.head_dim),
                 cellar::packed_heads(out.data() + row, 1, shape.query_heads, shape.head_dim));
  }
  return out;
}

/// The same outputs by attention to every key, in double. logit(x, query position, key position) as an attention variant has it.
template <class Logit>
std::vector<double> exact(problem const& p, Logit const& logit) {
  int const d = p.shape.head_dim, kv_heads = p.shape.kv_heads;
  std::vector<double> out(p.queries.size());
  for (cellar::i64 row = 0; row < p.steps * p.shape.query_heads; ++row) {
    cellar::i64 const position = p.prompt + row / p.shape.query_heads, head = row % p.shape.query_heads / p.shape.group();
    float const* const q = p.queries.data() + row * d;
    double* const to = out.data() + row * d;
    double sum = 0;
    for (cellar::i64 i = 0; i <= position; ++i) {
      float const* const key = p.keys.data() + (i * kv_heads + head) * d;
      double x = 0;
      for (int c = 0; c < d; ++c) x += double(q[c]) * double(key[c]);
      double const weight = std::exp(logit(x / std::sqrt(double(d)), position, i));
      sum += weight;
      for (int c = 0; c < d; ++c) to[c] += weight * double(p.values[std::size_t((i * kv_heads + head) * d + c)]);
    }
    for (int c = 0; c < d; ++c) to[c] /= sum;
  }
  return out;
}
inline std::vector<double> exact(problem const& p) {
  return exact(p, [](double x, cellar::i64, cellar::i64) { return x; });
}

/// |got - expected| / |expected|, as vectors.
inline double relative_error(std::vector<float> const& got, std::vector<double> const& expected) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(double(got[i]) - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(error / size);
}
