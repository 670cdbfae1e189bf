#include "engine/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "engine/attention.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/golden_gemma.hpp"
#include "engine/golden_models.hpp"
#include "engine/reference_model.hpp"
#include "engine/tokenizer.hpp"
#include "engine/window_cache.hpp"
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

/// Decodes the rest of several texts together after prefills of their beginnings: global layers through Cellar's dense scheme, windowed ones through the
/// engine's rings. Logits [text, vocabulary] of each step, until the first text ends.
template <int HeadDim>
std::vector<std::vector<float>> decoded_with_windows(engine::model const& model, std::vector<std::vector<int>> const& texts,
                                                     std::vector<int> const& prefilled) {
  auto const& c = model.config();
  auto const n = std::int64_t(texts.size());
  std::size_t longest = 0, steps = texts[0].size();
  for (std::size_t s = 0; s < texts.size(); ++s) {
    longest = std::max(longest, texts[s].size());
    steps = std::min(steps, texts[s].size() - std::size_t(prefilled[s]));
  }
  cellar::host::executor const on(model.threads());
  cellar::model_shape const shape{.layers = c.global_layers(), .query_heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
  cellar::cache<cellar::scheme::dense<HeadDim, float>> global(on, shape, {.sequences = int(n), .tokens = std::int64_t(longest)});
  engine::window_cache windowed(c);
  std::vector<cellar::batch_entry> batch;
  std::vector<int> numbers;
  for (std::size_t s = 0; s < texts.size(); ++s) {
    engine::staged_prompt staged;
    model.prefill(std::span(texts[s]).first(std::size_t(prefilled[s])), staged);
    batch.push_back({global.begin_prompt(cellar::prompt_staging<float>{staged.keys.data(), staged.values.data(), staged.capacity, staged.tokens}), 1});
    global.finish_prompt(on, batch.back().sequence);
    numbers.push_back(windowed.begin(staged));
  }
  std::vector<std::vector<float>> all(steps);
  for (std::size_t step = 0; step < steps; ++step) {
    global.plan(on, {batch.data(), n});
    std::vector<int> next;
    std::vector<std::int64_t> positions;
    for (std::size_t s = 0; s < texts.size(); ++s) {
      positions.push_back(prefilled[s] + std::int64_t(step));
      next.push_back(texts[s][std::size_t(positions.back())]);
    }
    model.decode(
        next, positions,
        [&](int layer, float const* q, float const* k, float const* v, float* out) {
          if (c.window(layer) > 0) {
            windowed.attend(layer, numbers, q, k, v, out, model.threads());
            return;
          }
          global.append(on, c.place(layer), cellar::packed_heads(k, n, c.kv_heads, HeadDim), cellar::packed_heads(v, n, c.kv_heads, HeadDim));
          global.attend(on, c.place(layer), cellar::packed_heads(q, n, c.heads, HeadDim), cellar::packed_heads(out, n, c.heads, HeadDim));
        },
        all[step]);
  }
  return all;
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

TEST_CASE("gemma's tokenizer gives what llama.cpp gives, and it expects what an independent forward pass expects, in prefill and in decoding") {
  char const* const path = std::getenv("CELLAR_TEST_MODEL_GEMMA");
  if (!path || !*path) {
    skip("no model: set CELLAR_TEST_MODEL_GEMMA to a GGUF file");
    return;
  }
  engine::gguf_file const file(path);
  engine::tokenizer const tokenizer(file);
  engine::model const model(file, 2);
  auto const& c = model.config();
  for (golden_gemma const& g : golden_gemmas) {
    CHECK(tokenizer.encode(g.text) == g.tokens);
    CHECK(tokenizer.decode(g.tokens) == g.text);
    engine::staged_prompt staged;
    auto const prefilled = model.prefill(g.tokens, staged);
    auto const stepped = decoded_with_windows<256>(model, {g.tokens}, {std::max(1, int(g.tokens.size()) - 10)});
    for (auto const& logits : {prefilled, stepped.back()})
      for (auto const& next : g.expected) CHECK(log_probability(logits, next.token) == Approx(next.log_probability).margin(2e-3));
  }
  CHECK(golden_gemmas.back().tokens.size() > std::size_t(c.window(0)) + 100);
}

TEST_CASE("every kind of model expects what a forward pass in double expects, in prefill and in decoding") {
  random_numbers r(9);
  for (auto const& [name, reference] : reference_models()) {
    INFO(name);
    std::string const bytes = reference.file().bytes();
    engine::gguf_file const file(std::as_bytes(std::span(bytes)), name);
    engine::model const model(file, 2);
    auto const& c = model.config();
    int constexpr sequences = 2, tokens = 40;
    int const prefilled[sequences] = {3, 21};  // within a window, and beyond
    std::vector<int> texts[sequences];
    std::vector<reference_model::row> expected[sequences];
    auto const is_near = [](std::span<float const> logits, reference_model::row const& wanted) {
      double worst = 0;
      for (std::size_t i = 0; i < wanted.size(); ++i) worst = std::max(worst, std::abs(double(logits[i]) - wanted[i]));
      return logits.size() == wanted.size() && worst < 2e-4;
    };
    for (int s = 0; s < sequences; ++s) {
      for (int i = 0; i < tokens; ++i) texts[s].push_back(int(r.below(reference.vocabulary)));
      expected[s] = reference.logits(texts[s]);
      engine::staged_prompt staged;
      std::int64_t seen = 0;
      model.prefill_all(texts[s], staged, 0, [&](std::int64_t position, std::span<float const> logits) {
        CHECK(is_near(logits, expected[s][std::size_t(position)]));
        ++seen;
      });
      CHECK(seen == tokens);
    }

    auto const stepped = decoded_with_windows<16>(model, {texts[0], texts[1]}, {prefilled[0], prefilled[1]});
    REQUIRE(stepped.size() == std::size_t(tokens - prefilled[1]));
    for (std::size_t step = 0; step < stepped.size(); ++step)
      for (int s = 0; s < sequences; ++s) {
        auto const logits = std::span(stepped[step]).subspan(std::size_t(s * c.vocabulary), std::size_t(c.vocabulary));
        CHECK(is_near(logits, expected[s][std::size_t(prefilled[s]) + step]));
      }
  }
}

TEST_CASE("windowed layers are counted, placed and staged behind the global ones") {
  reference_model m;
  m.architecture = "gemma3";
  m.layers = 8;
  m.window = 5;
  m.period = 3;
  m.draw(1);
  std::string const bytes = m.file().bytes();
  auto const c = engine::read_config(engine::gguf_file(std::as_bytes(std::span(bytes)), "gemma"));
  CHECK(c.windows == std::vector<std::int64_t>{5, 5, 0, 5, 5, 0, 5, 5});
  CHECK(c.global_layers() == 2);
  CHECK(c.place(2) == 0);
  CHECK(c.place(5) == 1);
  CHECK(c.place(0) == 0);
  CHECK(c.place(7) == 5);
  engine::staged_prompt staged;
  staged.reserve(c, 10);
  CHECK(staged.key(2, 0) == staged.keys.data());
  CHECK(staged.value(5, 3) == staged.values.data() + 13 * c.kv_width());
  CHECK(staged.key(0, 0) == staged.keys.data() + 20 * c.kv_width());
}

TEST_CASE("blocked causal attention equals the definition in double") {
  cellar::host::thread_pool threads(3);
  random_numbers r(1);
  for (auto const& [heads, kv_heads] : {std::pair{14, 2}, {9, 3}, {4, 4}})
    for (auto const& [rows, first, window] : {std::tuple{1, 0, 0},
                                              {5, 0, 0},
                                              {70, 0, 0},
                                              {64, 64, 0},
                                              {33, 500, 0},
                                              {1, 0, 1},
                                              {5, 0, 2},
                                              {70, 0, 3},
                                              {200, 400, 20},
                                              {33, 500, 500},
                                              {90, 500, 300}}) {
      int const d = 16;
      auto const q = r.normals(std::int64_t(rows) * heads * d), k = r.normals(std::int64_t(first + rows) * kv_heads * d),
                 v = r.normals(std::int64_t(first + rows) * kv_heads * d);
      std::vector<float> out(q.size());
      engine::causal_attention({heads, kv_heads, d}, q.data(), rows, first, k.data(), v.data(), out.data(), threads, window);
      for (int t = 0; t < rows; ++t)
        for (int h = 0; h < heads; ++h) {
          int const g = h / (heads / kv_heads), begin = window > 0 ? std::max(0, first + t - window + 1) : 0;
          std::vector<double> weights, expected(std::size_t(d), 0.0);
          double sum = 0;
          for (int j = begin; j <= first + t; ++j) {
            double x = 0;
            for (int c = 0; c < d; ++c) x += double(q[std::size_t((t * heads + h) * d + c)]) * double(k[std::size_t((j * kv_heads + g) * d + c)]);
            weights.push_back(std::exp(x / std::sqrt(double(d))));
            sum += weights.back();
          }
          for (int j = begin; j <= first + t; ++j)
            for (int c = 0; c < d; ++c) expected[std::size_t(c)] += weights[std::size_t(j - begin)] / sum * double(v[std::size_t((j * kv_heads + g) * d + c)]);
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
  auto other = before;
  engine::gelu_times(other.data(), w.data(), 100);
  for (std::size_t i = 0; i < 100; ++i) {
    double const x = double(before[i]), z = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
    CHECK(double(other[i]) == Approx(x * (1 + std::tanh(z)) / 2 * double(w[i])).margin(1e-5));
  }
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
  bool has_epsilon = true, has_down = true;
  std::function<void(gguf_writer&)> more;

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
    if (more) more(w);
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
  auto const refused_with = [&](std::string const& architecture, std::function<void(gguf_writer&)> const& more, std::string const& words) {
    refused(
        [&](small_model& m) {
          m.architecture = architecture;
          m.more = more;
        },
        words);
  };
  refused_with(
      "llama", [](gguf_writer& w) { w.string("llama.rope.scaling.type", "longrope"); }, "\"longrope\"");
  refused_with(
      "llama", [](gguf_writer& w) { w.string("llama.rope.scaling.type", "yarn"); }, "no llama.rope.scaling.factor");
  auto const yarn = [](gguf_writer& w) {
    w.string("qwen3.rope.scaling.type", "yarn");
    w.value("qwen3.rope.scaling.factor", 6, 4.f);
  };
  refused_with("qwen3", yarn, "no qwen3.rope.scaling.original_context_length");
  refused_with(
      "qwen3",
      [&](gguf_writer& w) {
        yarn(w);
        w.value("qwen3.rope.scaling.yarn_log_multiplier", 6, 0.1f);
      },
      "yarn_log_multiplier");
  auto const tensor = [](char const* name, std::uint64_t n) { return [=](gguf_writer& w) { w.tensor(name, {n}, 0, std::string(4 * n, '\0')); }; };
  refused_with("qwen2", tensor("rope_freqs.weight", 4), "rotary factors of its own");
  refused_with("llama", tensor("rope_freqs.weight", 3), "each of the 4 channel pairs");
  refused_with("llama", tensor("rope_freqs.weight", 4), "not positive");
  refused_with("llama", tensor("rope_factors_long.weight", 4), "two sets");
  refused_with("llama", tensor("blk.0.attn_q_norm.weight", 8), "for qwen3 and gemma3, not for llama");
  refused_with(
      "llama", [](gguf_writer& w) { w.value("llama.attention.key_length", 4, std::uint32_t{1 << 20}); }, "1048576 wide");
  refused_with(
      "llama", [](gguf_writer& w) { w.value("llama.rope.freq_base", 6, 0.f); }, "base of the model's rotary");
  refused_with("qwen3", {}, "blk.0.attn_q_norm.weight");
  refused_with(
      "llama", [](gguf_writer& w) { w.value("llama.expert_count", 4, std::uint32_t{8}); }, "mixture of experts");
  refused_with(
      "gemma3", [](gguf_writer& w) { w.value("gemma3.final_logit_softcapping", 6, 30.f); }, "caps its logits");
  refused_with(
      "gemma3", [](gguf_writer& w) { w.value("gemma3.attention.sliding_window", 4, std::uint32_t{0}); }, "sliding window");
}
