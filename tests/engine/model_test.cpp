#include "engine/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "engine/attention.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/golden_models.hpp"
#include "engine/tokenizer.hpp"
#include "random.hpp"

namespace {

double log_probability(std::span<float const> logits, int token) {
  double sum = 0, top = *std::max_element(logits.begin(), logits.end());
  for (float const x : logits) sum += std::exp(double(x) - top);
  return double(logits[std::size_t(token)]) - top - std::log(sum);
}

/// Decodes the last tokens of a text through Cellar's dense scheme, after a prefill of the others.
std::vector<float> decoded(engine::model const& model, std::vector<int> const& tokens, std::size_t prefilled) {
  auto const& c = model.config();
  engine::staged_prompt staged;
  model.prefill(std::span(tokens).first(prefilled), staged);
  cellar::host::executor const on(model.threads());
  cellar::model_shape const shape{.layers = c.layers, .query_heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
  cellar::cache<cellar::scheme::dense<64, float>> cache(on, shape, {.sequences = 1, .tokens = std::int64_t(tokens.size())});
  auto const id = cache.begin_prompt(cellar::prompt_staging<float>{staged.keys.data(), staged.values.data(), staged.capacity, staged.tokens});
  cache.finish_prompt(on, id);
  std::vector<float> logits;
  for (std::size_t i = prefilled; i < tokens.size(); ++i) {
    cellar::batch_entry const one{id, 1};
    cache.plan(on, {&one, 1});
    auto const position = std::int64_t(i);
    model.decode(
        {&tokens[i], 1}, {&position, 1},
        [&](int layer, float const* q, float const* k, float const* v, float* out) {
          cache.append(on, layer, cellar::packed_heads(k, 1, c.kv_heads, 64), cellar::packed_heads(v, 1, c.kv_heads, 64));
          cache.attend(on, layer, cellar::packed_heads(q, 1, c.heads, 64), cellar::packed_heads(out, 1, c.heads, 64));
        },
        logits);
  }
  return logits;
}

}  // namespace

namespace {

void check_model(char const* variable, std::vector<golden_model::next> golden_model::*golden) {
  char const* const path = std::getenv(variable);
  if (!path || !*path) {
    skip(std::string("no model: set ") + variable + " to a GGUF file");
    return;
  }
  engine::gguf_file const file(path);
  engine::tokenizer const tokenizer(file);
  engine::model const model(file, 2);
  for (golden_model const& g : golden_models) {
    auto const tokens = tokenizer.encode(g.text);
    engine::staged_prompt staged;
    auto const prefilled = model.prefill(tokens, staged), stepped = decoded(model, tokens, tokens.size() / 2);
    for (auto const& logits : {prefilled, stepped})
      for (auto const& next : g.*golden) CHECK(log_probability(logits, next.token) == Approx(double(next.log_probability)).margin(2e-3));
  }
  engine::staged_prompt staged;
  CHECK_THROWS_WITH(model.prefill({}, staged), contains("no tokens"));
  int const unknown = model.config().vocabulary;
  CHECK_THROWS_WITH(model.prefill({&unknown, 1}, staged), contains("not in the vocabulary"));
}

}  // namespace

TEST_CASE("smollm expects next what an independent forward pass expects, in prefill and in decoding") {
  check_model("CELLAR_TEST_MODEL_SMOLLM", &golden_model::smollm);
}

TEST_CASE("qwen expects next what an independent forward pass expects, in prefill and in decoding") {
  check_model("CELLAR_TEST_MODEL_QWEN", &golden_model::qwen);
}

TEST_CASE("blocked causal attention equals the definition in double") {
  cellar::host::thread_pool threads(3);
  random_numbers r(1);
  for (auto const& [heads, kv_heads] : {std::pair{14, 2}, {9, 3}, {4, 4}})
    for (auto const& [rows, first] : {std::pair{1, 0}, {5, 0}, {70, 0}, {64, 64}, {33, 500}}) {
      int const d = 16;
      auto const q = r.normals(std::int64_t(rows) * heads * d), k = r.normals(std::int64_t(first + rows) * kv_heads * d),
                 v = r.normals(std::int64_t(first + rows) * kv_heads * d);
      std::vector<float> out(q.size());
      engine::causal_attention({heads, kv_heads, d}, q.data(), rows, first, k.data(), v.data(), out.data(), threads);
      for (int t = 0; t < rows; ++t)
        for (int h = 0; h < heads; ++h) {
          int const g = h / (heads / kv_heads);
          std::vector<double> weights, expected(std::size_t(d), 0.0);
          double sum = 0;
          for (int j = 0; j <= first + t; ++j) {
            double x = 0;
            for (int c = 0; c < d; ++c) x += double(q[std::size_t((t * heads + h) * d + c)]) * double(k[std::size_t((j * kv_heads + g) * d + c)]);
            weights.push_back(std::exp(x / std::sqrt(double(d))));
            sum += weights.back();
          }
          for (int j = 0; j <= first + t; ++j)
            for (int c = 0; c < d; ++c) expected[std::size_t(c)] += weights[std::size_t(j)] / sum * double(v[std::size_t((j * kv_heads + g) * d + c)]);
          for (int c = 0; c < d; ++c) REQUIRE(double(out[std::size_t((t * heads + h) * d + c)]) == Approx(expected[std::size_t(c)]).margin(1e-5));
        }
    }
}

TEST_CASE("matrix products, norms and activations agree with double") {
  cellar::host::thread_pool threads(2);
  random_numbers r(2);
  for (auto const& [rows, in, width] : {std::tuple{1, 64, 100}, {3, 40, 17}, {9, 128, 333}}) {
    auto const x = r.normals(std::int64_t(rows) * in), w = r.normals(std::int64_t(in) * width);
    std::vector<float> out(std::size_t(rows * width));
    engine::linear(x.data(), rows, in, w.data(), width, out.data(), threads);
    for (int i = 0; i < rows; ++i)
      for (int o = 0; o < width; ++o) {
        double s = 0;
        for (int c = 0; c < in; ++c) s += double(x[std::size_t(i * in + c)]) * double(w[std::size_t(o * in + c)]);
        REQUIRE(double(out[std::size_t(i * width + o)]) == Approx(s).margin(1e-4));
      }
  }
  auto x = r.normals(100), w = r.normals(100);
  std::vector<float> out(100);
  engine::rms_norm(x.data(), w.data(), 100, 1e-5, out.data());
  double square = 0;
  for (float const v : x) square += double(v) * double(v);
  for (std::size_t i = 0; i < 100; ++i) CHECK(double(out[i]) == Approx(double(x[i]) / std::sqrt(square / 100 + 1e-5) * double(w[i])).margin(1e-5));
  auto gate = r.normals(100, 20);
  auto const before = gate;
  engine::silu_times(gate.data(), w.data(), 100);
  for (std::size_t i = 0; i < 100; ++i) CHECK(double(gate[i]) == Approx(double(before[i]) / (1 + std::exp(-double(before[i]))) * double(w[i])).margin(1e-5));
}

TEST_CASE("a thread's exception reaches the caller, and the threads go on") {
  cellar::host::thread_pool threads(3);
  CHECK_THROWS_WITH(threads.run(50,
                                [](std::int64_t i, int) {
                                  if (i == 20) throw std::runtime_error("item 20");
                                }),
                    contains("item 20"));
  std::atomic<int> n = 0;
  threads.run(50, [&](std::int64_t, int) { ++n; });
  CHECK(n == 50);
}

namespace {

/// Metadata and tensors of a llama model that is as small as can be.
struct small_model {
  std::string architecture = "llama";
  std::uint32_t heads = 4, kv_heads = 2, hidden = 32, layers = 1, ffn = 16, vocabulary = 10;
  bool has_epsilon = true, has_down = true, scales_rotary = false;

  std::string bytes() const {
    gguf_writer w;
    std::string const p = architecture + ".";
    w.string("general.architecture", architecture);
    w.value(p + "block_count", 4, layers);
    w.value(p + "context_length", 4, std::uint32_t{64});
    w.value(p + "embedding_length", 4, hidden);
    w.value(p + "feed_forward_length", 4, ffn);
    w.value(p + "attention.head_count", 4, heads);
    w.value(p + "attention.head_count_kv", 4, kv_heads);
    if (has_epsilon) w.value(p + "attention.layer_norm_rms_epsilon", 6, 1e-5f);
    if (scales_rotary) w.string(p + "rope.scaling.type", "yarn");
    auto const tensor = [&](std::string const& name, std::vector<std::uint64_t> const& shape) {
      std::uint64_t n = 1;
      for (auto const x : shape) n *= x;
      w.tensor(name, shape, 0, std::string(4 * n, '\0'));
    };
    std::uint64_t const kv = heads ? hidden / heads * kv_heads : hidden;
    tensor("token_embd.weight", {hidden, vocabulary});
    tensor("output_norm.weight", {hidden});
    tensor("blk.0.attn_norm.weight", {hidden});
    tensor("blk.0.attn_q.weight", {hidden, hidden});
    tensor("blk.0.attn_k.weight", {hidden, kv});
    tensor("blk.0.attn_v.weight", {hidden, kv});
    tensor("blk.0.attn_output.weight", {hidden, hidden});
    tensor("blk.0.ffn_norm.weight", {hidden});
    tensor("blk.0.ffn_gate.weight", {hidden, ffn});
    tensor("blk.0.ffn_up.weight", {hidden, ffn});
    if (has_down) tensor("blk.0.ffn_down.weight", {ffn, hidden});
    return w.bytes();
  }
};

}  // namespace

TEST_CASE("models that this engine cannot run are refused with a sentence") {
  {
    scratch_file const f(small_model{}.bytes());
    engine::gguf_file const file(f.path());
    engine::model const model(file, 1);
    CHECK(model.config().head_dim == 8);
    engine::staged_prompt staged;
    std::vector<int> const tokens(65, 1);
    CHECK(model.prefill(std::span(tokens).first(64), staged) == std::vector<float>(10, 0.f));
    CHECK_THROWS_WITH(model.prefill(tokens, staged), contains("64"));  // longer than the context
  }
  auto const refused = [](auto const& change, std::string const& words) {
    small_model m;
    change(m);
    scratch_file const f(m.bytes());
    engine::gguf_file const file(f.path());
    CHECK_THROWS_WITH(engine::model(file, 1), contains(words));
  };
  refused([](auto& m) { m.architecture = "mamba"; }, "mamba");
  refused([](auto& m) { m.kv_heads = 3; }, "multiple");
  refused([](auto& m) { m.heads = 0; }, "head");
  refused([](auto& m) { m.layers = 0; }, "layer");
  refused([](auto& m) { m.layers = 2; }, "blk.1");
  refused([](auto& m) { m.has_epsilon = false; }, "epsilon");
  refused([](auto& m) { m.has_down = false; }, "blk.0.ffn_down.weight");
  refused([](auto& m) { m.scales_rotary = true; }, "rotary");
}
