#include "engine/model.hpp"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "engine/attention.hpp"

namespace engine {
namespace {

std::int64_t constexpr chunk = 512;  // tokens that go through a prefill's matrix products together

void require(bool condition, std::string const& sentence) {
  if (!condition) throw std::runtime_error(sentence);
}

int small(std::int64_t value, char const* name) {
  require(value > 0 && value < (std::int64_t(1) << 30), std::string("The model file gives ") + std::to_string(value) + " as its " + name + ".");
  return int(value);
}

// Reads the tensors `names` under each other, checking each shape {rows, columns}; a vector is {1, columns} or {columns}.
std::vector<float> read_stacked(gguf_file const& file, std::initializer_list<std::pair<std::string, std::int64_t>> names, std::int64_t columns) {
  std::vector<float> all;
  for (auto const& [name, rows] : names) {
    require(file.has_tensor(name), "The model file has no tensor " + name + ".");
    std::int64_t floats = 1;
    std::vector<std::int64_t> const& shape = file.shape(name);
    for (std::int64_t extent : shape) floats *= extent;
    require(!shape.empty() && shape.back() == columns && floats == rows * columns,
            "The tensor " + name + " does not have " + std::to_string(rows) + " rows of " + std::to_string(columns) + " numbers.");
    std::size_t const before = all.size();
    all.resize(before + std::size_t(floats));
    file.read_rows(name, 0, rows, all.data() + before);
  }
  return all;
}

// A bias is a vector, or several behind each other.
std::vector<float> read_vectors(gguf_file const& file, std::initializer_list<std::pair<std::string, std::int64_t>> names) {
  std::vector<float> all;
  for (auto const& [name, columns] : names) {
    std::vector<float> const one = read_stacked(file, {{name, 1}}, columns);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

}  // namespace

model_config read_config(gguf_file const& file) {
  model_config c;
  require(file.has("general.architecture"), "The model file does not name its architecture.");
  c.architecture = file.get<std::string>("general.architecture");
  require(c.architecture == "llama" || c.architecture == "qwen2",
          "This engine runs the architectures llama and qwen2; the model file is of the architecture " + c.architecture + ".");
  std::string const prefix = c.architecture + ".";
  auto const count = [&](char const* key) {
    require(file.has(prefix + key), "The model file has no " + prefix + key + ".");
    return file.get<std::int64_t>(prefix + key);
  };
  c.layers = small(count("block_count"), "number of layers");
  c.heads = small(count("attention.head_count"), "number of heads");
  c.kv_heads = file.has(prefix + "attention.head_count_kv") ? small(count("attention.head_count_kv"), "number of key-value heads") : c.heads;
  c.hidden = small(count("embedding_length"), "hidden width");
  c.ffn = small(count("feed_forward_length"), "feed-forward width");
  c.context = small(count("context_length"), "context length");
  c.head_dim = file.has(prefix + "attention.key_length") ? small(count("attention.key_length"), "head width") : c.hidden / c.heads;
  require(c.heads % c.kv_heads == 0, "The number of heads of the model is not a multiple of its number of key-value heads.");
  require(c.head_dim > 0 && c.head_dim % 2 == 0, "The head width of the model is not even.");
  require(!file.has(prefix + "attention.value_length") || count("attention.value_length") == c.head_dim,
          "The keys and values of the model differ in width; this engine runs models where they agree.");
  require(!file.has(prefix + "rope.dimension_count") || count("rope.dimension_count") == c.head_dim,
          "The model rotates a part of each head only; this engine runs models that rotate whole heads.");
  require(!file.has(prefix + "rope.scaling.type") || file.get<std::string>(prefix + "rope.scaling.type") == "none",
          "The model scales its rotary positions; this engine runs models that do not.");
  require(!file.has_tensor("rope_freqs.weight"), "The model brings its own rotary frequencies; this engine computes them from a base.");
  require(!file.has(prefix + "expert_count") || count("expert_count") == 0, "The model is a mixture of experts; this engine runs dense models.");
  require(!file.has_tensor("blk.0.attn_output.bias") && !file.has_tensor("blk.0.ffn_down.bias"),
          "The model has biases after its attention or feed-forward layers; this engine runs models without.");
  require(!file.has_tensor("blk.0.attn_q_norm.weight"), "The model normalizes its queries and keys; this engine runs models that do not.");
  require(file.has(prefix + "attention.layer_norm_rms_epsilon"), "The model file has no epsilon for its RMS norms.");
  c.norm_epsilon = file.get<double>(prefix + "attention.layer_norm_rms_epsilon");
  c.rope_theta = file.has(prefix + "rope.freq_base") ? file.get<double>(prefix + "rope.freq_base") : 10000.0;
  c.pairing = c.architecture == "llama" ? rotary_pairing::adjacent : rotary_pairing::half_split;
  c.has_qkv_bias = file.has_tensor("blk.0.attn_q.bias");
  c.has_tied_output = !file.has_tensor("output.weight");
  require(file.has_tensor("token_embd.weight") && file.shape("token_embd.weight").size() == 2, "The model file has no token embedding.");
  c.vocabulary = small(file.shape("token_embd.weight")[0], "vocabulary");
  return c;
}

void staged_prompt::reserve(model_config const& config, std::int64_t new_capacity) {
  tokens = 0;
  capacity = new_capacity;
  width = config.kv_width();
  keys.assign(std::size_t(config.layers * capacity * width), 0.f);
  values.assign(std::size_t(config.layers * capacity * width), 0.f);
}

void rotate(float* x, std::int64_t rows, int heads, int head_dim, rotary_pairing pairing, float const* cosines, float const* sines) {
  int const half = head_dim / 2;
  for (std::int64_t r = 0; r < rows; ++r) {
    float const *const c = cosines + r * half, *const s = sines + r * half;
    for (int h = 0; h < heads; ++h) {
      float* const v = x + (r * heads + h) * head_dim;
      if (pairing == rotary_pairing::half_split) {
        for (int i = 0; i < half; ++i) {
          float const a = v[i], b = v[i + half];
          v[i] = a * c[i] - b * s[i];
          v[i + half] = a * s[i] + b * c[i];
        }
      } else {
        for (int i = 0; i < half; ++i) {
          float const a = v[2 * i], b = v[2 * i + 1];
          v[2 * i] = a * c[i] - b * s[i];
          v[2 * i + 1] = a * s[i] + b * c[i];
        }
      }
    }
  }
}

model::model(gguf_file const& file, int threads) : config_(read_config(file)), threads_(std::make_unique<cellar::host::thread_pool>(std::max(1, threads))) {
  openblas_set_num_threads(1);  // products run one call a thread, on slices
  model_config const& c = config_;
  for (int i = 0; i < c.head_dim / 2; ++i) inverse_frequencies_.push_back(std::pow(c.rope_theta, -2.0 * i / c.head_dim));
  std::int64_t const q = std::int64_t(c.heads) * c.head_dim, kv = c.kv_width();
  embedding_ = read_stacked(file, {{"token_embd.weight", c.vocabulary}}, c.hidden);
  output_norm_ = read_vectors(file, {{"output_norm.weight", c.hidden}});
  if (!c.has_tied_output) output_ = read_stacked(file, {{"output.weight", c.vocabulary}}, c.hidden);
  layers_.resize(std::size_t(c.layers));
  threads_->run(c.layers, [&](std::int64_t i, int) {
    std::string const p = "blk." + std::to_string(i) + ".";
    layer_weights& l = layers_[std::size_t(i)];
    l.attention_norm = read_vectors(file, {{p + "attn_norm.weight", c.hidden}});
    l.qkv = read_stacked(file, {{p + "attn_q.weight", q}, {p + "attn_k.weight", kv}, {p + "attn_v.weight", kv}}, c.hidden);
    if (c.has_qkv_bias) l.qkv_bias = read_vectors(file, {{p + "attn_q.bias", q}, {p + "attn_k.bias", kv}, {p + "attn_v.bias", kv}});
    l.output = read_stacked(file, {{p + "attn_output.weight", c.hidden}}, q);
    l.ffn_norm = read_vectors(file, {{p + "ffn_norm.weight", c.hidden}});
    l.gate_up = read_stacked(file, {{p + "ffn_gate.weight", c.ffn}, {p + "ffn_up.weight", c.ffn}}, c.hidden);
    l.down = read_stacked(file, {{p + "ffn_down.weight", c.hidden}}, c.ffn);
  });
}

void model::check(std::span<int const> tokens) const {
  require(!tokens.empty(), "The engine was given no tokens.");
  for (int token : tokens) require(token >= 0 && token < config_.vocabulary, "The token " + std::to_string(token) + " is not in the vocabulary of the model.");
}

void model::embed(std::span<int const> tokens, float* x) const {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    std::copy_n(embedding_.data() + std::int64_t(tokens[i]) * config_.hidden, config_.hidden, x + std::int64_t(i) * config_.hidden);
}

void model::run_layers(float* x, std::span<std::int64_t const> positions, decode_attention const& attend, bool only_keys_and_values_of_last) const {
  model_config const& c = config_;
  std::int64_t const rows = std::int64_t(positions.size()), hidden = c.hidden, ffn = c.ffn;
  std::int64_t const q_width = std::int64_t(c.heads) * c.head_dim, kv_width = c.kv_width(), qkv_width = q_width + 2 * kv_width, half = c.head_dim / 2;
  std::vector<float> cosines(std::size_t(rows * half)), sines(cosines.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < half; ++i) {
      double const angle = double(positions[std::size_t(r)]) * inverse_frequencies_[std::size_t(i)];
      cosines[std::size_t(r * half + i)] = float(std::cos(angle));
      sines[std::size_t(r * half + i)] = float(std::sin(angle));
    }
  auto const floats = [&](std::int64_t width) { return std::vector<float>(std::size_t(rows * width)); };
  std::vector<float> normed = floats(hidden), qkv = floats(qkv_width), q = floats(q_width), k = floats(kv_width), v = floats(kv_width), mixed = floats(q_width),
                     delta = floats(hidden), gate_up = floats(2 * ffn), activated = floats(ffn);
  // Work on single rows is spread over the threads where there are many rows.
  auto const each_row = [&](auto const& work) {
    std::int64_t const part = std::max<std::int64_t>(1, rows <= 16 ? rows : 32);
    threads_->run((rows + part - 1) / part, [&](std::int64_t task, int) {
      for (std::int64_t r = task * part; r < std::min(rows, (task + 1) * part); ++r) work(r);
    });
  };
  auto const add_delta_and_norm = [&](bool add, std::vector<float> const* weight) {
    each_row([&](std::int64_t r) {
      float *const to = x + r * hidden, *const from = delta.data() + r * hidden;
      if (add)
        for (std::int64_t i = 0; i < hidden; ++i) to[i] += from[i];
      if (weight) rms_norm(to, weight->data(), hidden, c.norm_epsilon, normed.data() + r * hidden);
    });
  };
  add_delta_and_norm(false, &layers_.front().attention_norm);
  for (int layer = 0; layer < c.layers; ++layer) {
    layer_weights const& w = layers_[std::size_t(layer)];
    bool const is_last = layer + 1 == c.layers;
    linear(normed.data(), rows, hidden, w.qkv.data(), qkv_width, qkv.data(), *threads_);
    each_row([&](std::int64_t r) {
      float* const from = qkv.data() + r * qkv_width;
      if (c.has_qkv_bias)
        for (std::int64_t i = 0; i < qkv_width; ++i) from[i] += w.qkv_bias[std::size_t(i)];
      float const *const cosine = cosines.data() + r * half, *const sine = sines.data() + r * half;
      rotate(from, 1, c.heads + c.kv_heads, c.head_dim, c.pairing, cosine, sine);  // keys lie behind queries
      std::copy_n(from, q_width, q.data() + r * q_width);
      std::copy_n(from + q_width, kv_width, k.data() + r * kv_width);
      std::copy_n(from + q_width + kv_width, kv_width, v.data() + r * kv_width);
    });
    if (is_last && only_keys_and_values_of_last) {
      attend(layer, nullptr, k.data(), v.data(), nullptr);
      return;
    }
    attend(layer, q.data(), k.data(), v.data(), mixed.data());
    linear(mixed.data(), rows, q_width, w.output.data(), hidden, delta.data(), *threads_);
    add_delta_and_norm(true, &w.ffn_norm);
    linear(normed.data(), rows, hidden, w.gate_up.data(), 2 * ffn, gate_up.data(), *threads_);
    each_row([&](std::int64_t r) {
      float* const gate = gate_up.data() + r * 2 * ffn;
      silu_times(gate, gate + ffn, ffn);
      std::copy_n(gate, ffn, activated.data() + r * ffn);
    });
    linear(activated.data(), rows, ffn, w.down.data(), hidden, delta.data(), *threads_);
    add_delta_and_norm(true, is_last ? nullptr : &layers_[std::size_t(layer) + 1].attention_norm);
  }
}

void model::output_logits(float const* x, std::int64_t rows, float* logits) const {
  std::vector<float> normed(std::size_t(rows * config_.hidden));
  for (std::int64_t r = 0; r < rows; ++r)
    rms_norm(x + r * config_.hidden, output_norm_.data(), config_.hidden, config_.norm_epsilon, normed.data() + r * config_.hidden);
  linear(normed.data(), rows, config_.hidden, (config_.has_tied_output ? embedding_ : output_).data(), config_.vocabulary, logits, *threads_);
}

std::vector<float> model::prefill(std::span<int const> tokens, staged_prompt& staged, progress_report const& progress) const {
  std::vector<float> last;
  auto const keep = [&](std::int64_t, std::span<float const> logits) { last.assign(logits.begin(), logits.end()); };
  prefill_all(tokens, staged, std::int64_t(tokens.size()) - 1, keep, progress);
  return last;
}

void model::prefill_all(std::span<int const> tokens, staged_prompt& staged, std::int64_t first_logits, logits_report const& logits_of,
                        progress_report const& progress) const {
  check(tokens);
  std::int64_t const n = std::int64_t(tokens.size()), hidden = config_.hidden, width = config_.kv_width();
  require(n <= config_.context,
          "The prompt has " + std::to_string(n) + " tokens; the model was trained for " + std::to_string(config_.context) + " at the most.");
  if (staged.capacity < n || staged.width != width || std::int64_t(staged.keys.size()) != config_.layers * staged.capacity * width) staged.reserve(config_, n);
  staged.tokens = 0;
  attention_shape const shape{config_.heads, config_.kv_heads, config_.head_dim};
  std::vector<float> x, logits;
  std::vector<std::int64_t> positions;
  for (std::int64_t first = 0; first < n; first += chunk) {
    std::int64_t const rows = std::min(chunk, n - first);
    x.resize(std::size_t(rows * hidden));
    embed(tokens.subspan(std::size_t(first), std::size_t(rows)), x.data());
    positions.resize(std::size_t(rows));
    for (std::int64_t r = 0; r < rows; ++r) positions[std::size_t(r)] = first + r;
    auto const attend = [&](int layer, float const* q, float const* k, float const* v, float* out) {
      std::copy_n(k, rows * width, staged.key(layer, first));
      std::copy_n(v, rows * width, staged.value(layer, first));
      if (q) causal_attention(shape, q, rows, first, staged.key(layer, 0), staged.value(layer, 0), out, *threads_);
    };
    run_layers(x.data(), positions, attend, first + rows <= first_logits);
    staged.tokens = first + rows;
    for (std::int64_t r = std::max<std::int64_t>(0, first_logits - first); r < rows;) {
      std::int64_t const some = std::min<std::int64_t>(64, rows - r);
      logits.resize(std::size_t(some) * std::size_t(config_.vocabulary));
      output_logits(x.data() + r * hidden, some, logits.data());
      for (std::int64_t i = 0; i < some; ++i)
        logits_of(first + r + i, std::span(logits).subspan(std::size_t(i) * std::size_t(config_.vocabulary), std::size_t(config_.vocabulary)));
      r += some;
    }
    if (progress) progress(first + rows);
  }
}

void model::decode(std::span<int const> tokens, std::span<std::int64_t const> positions, decode_attention const& attend, std::vector<float>& logits) const {
  check(tokens);
  require(tokens.size() == positions.size(), "A decode step needs one position per token.");
  std::vector<float> x(tokens.size() * std::size_t(config_.hidden));
  embed(tokens, x.data());
  run_layers(x.data(), positions, attend, false);
  logits.resize(tokens.size() * std::size_t(config_.vocabulary));
  output_logits(x.data(), std::int64_t(tokens.size()), logits.data());
}

}  // namespace engine
