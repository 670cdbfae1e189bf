#include "engine/model.hpp"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

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
  bool const is_gemma = c.architecture == "gemma3";
  require(c.architecture == "llama" || c.architecture == "qwen2" || c.architecture == "qwen3" || is_gemma,
          "This engine runs the architectures llama, qwen2, qwen3 and gemma3; the model file is of the architecture " + c.architecture + ".");
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
  require(c.head_dim <= 1 << 16, "The heads of the model are " + std::to_string(c.head_dim) + " wide; this engine has room for 65536.");
  require(!file.has(prefix + "attention.value_length") || count("attention.value_length") == c.head_dim,
          "The keys and values of the model differ in width; this engine runs models where they agree.");
  require(!file.has(prefix + "rope.dimension_count") || count("rope.dimension_count") == c.head_dim,
          "The model rotates a part of each head only; this engine runs models that rotate whole heads.");
  require(!file.has(prefix + "expert_count") || count("expert_count") == 0, "The model is a mixture of experts; this engine runs dense models.");
  require(!file.has_tensor("blk.0.attn_output.bias") && !file.has_tensor("blk.0.ffn_down.bias"),
          "The model has biases after its attention or feed-forward layers; this engine runs models without.");
  for (char const* const key : {"attn_logit_softcapping", "final_logit_softcapping"})
    require(!file.has(prefix + key) || file.get<double>(prefix + key) == 0, "The model caps its logits; this engine runs models that do not.");
  c.has_head_norms = is_gemma || c.architecture == "qwen3";
  c.has_post_norms = c.has_gelu = is_gemma;
  require(c.has_head_norms || !file.has_tensor("blk.0.attn_q_norm.weight"),
          "The model normalizes its queries and keys, which this engine does for qwen3 and gemma3, not for " + c.architecture + ".");
  require(file.has(prefix + "attention.layer_norm_rms_epsilon"), "The model file has no epsilon for its RMS norms.");
  c.norm_epsilon = file.get<double>(prefix + "attention.layer_norm_rms_epsilon");
  c.rope_theta = file.has(prefix + "rope.freq_base") ? file.get<double>(prefix + "rope.freq_base") : 10000.0;
  require(c.rope_theta > 0 && std::isfinite(c.rope_theta), "The base of the model's rotary frequencies is not a positive number.");
  c.pairing = c.architecture == "llama" ? rotary_pairing::adjacent : rotary_pairing::half_split;
  c.has_qkv_bias = file.has_tensor("blk.0.attn_q.bias");
  c.has_tied_output = !file.has_tensor("output.weight");
  require(file.has_tensor("token_embd.weight") && file.shape("token_embd.weight").size() == 2, "The model file has no token embedding.");
  c.vocabulary = small(file.shape("token_embd.weight")[0], "vocabulary");
  for (int layer = 0; layer < c.layers; ++layer) {  // or a small file could claim millions of layers
    std::string const name = "blk." + std::to_string(layer) + ".attn_norm.weight";
    require(file.has_tensor(name), "The model file has no tensor " + name + ".");
  }
  c.windows.assign(std::size_t(c.layers), 0);
  if (is_gemma) {
    c.embedding_factor = std::sqrt(double(c.hidden));
    int constexpr layers_of_27b = 62;  // the one model of the family whose attention is not scaled by the width of its heads
    if (c.layers == layers_of_27b) c.query_factor = std::sqrt(double(c.head_dim) * c.heads / c.hidden);
    std::int64_t const window = file.has(prefix + "attention.sliding_window") ? small(count("attention.sliding_window"), "sliding window") : 0;
    std::int64_t const period =
        file.has(prefix + "attention.sliding_window_pattern") ? small(count("attention.sliding_window_pattern"), "period of windowed layers") : 6;
    for (int layer = 0; layer < c.layers; ++layer)
      if ((layer + 1) % period != 0) c.windows[std::size_t(layer)] = window;
  }
  return c;
}

void staged_prompt::reserve(model_config const& config, std::int64_t new_capacity) {
  tokens = 0;
  capacity = new_capacity;
  width = config.kv_width();
  slots.clear();
  for (int layer = 0; layer < config.layers; ++layer) slots.push_back(config.place(layer) + (config.window(layer) > 0 ? config.global_layers() : 0));
  keys.assign(std::size_t(config.layers * capacity * width), 0.f);
  values.assign(std::size_t(config.layers * capacity * width), 0.f);
}

model::model(gguf_file const& file, int threads, std::unique_ptr<backend> on)
    : config_(read_config(file)),
      threads_(std::make_unique<cellar::host::thread_pool>(std::max(1, threads))),
      backend_(on ? std::move(on) : host_backend(*threads_)) {
  openblas_set_num_threads(1);  // products run one call a thread, on slices
  model_config const& c = config_;
  angles_ = scaled_angles(file, c.head_dim, c.rope_theta);
  std::string const windowed_base = c.architecture + ".rope.freq_base_swa";
  windowed_angles_ = plain_angles(c.head_dim, file.has(windowed_base) ? file.get<double>(windowed_base) : 10000.0);
  std::int64_t const q = std::int64_t(c.heads) * c.head_dim, kv = c.kv_width();
  auto const shared = [](std::vector<float>&& x) { return std::make_shared<std::vector<float> const>(std::move(x)); };
  embedding_ = shared(read_stacked(file, {{"token_embd.weight", c.vocabulary}}, c.hidden));
  output_norm_ = read_vectors(file, {{"output_norm.weight", c.hidden}});
  output_ = backend_->add(c.has_tied_output ? embedding_ : shared(read_stacked(file, {{"output.weight", c.vocabulary}}, c.hidden)));
  layers_.resize(std::size_t(c.layers));
  struct matrices {
    std::vector<float> qkv, output, gate_up, down;
  };
  std::vector<matrices> all(layers_.size());
  threads_->run(c.layers, [&](std::int64_t i, int) {
    std::string const p = "blk." + std::to_string(i) + ".";
    layer_weights& l = layers_[std::size_t(i)];
    matrices& m = all[std::size_t(i)];
    l.attention_norm = read_vectors(file, {{p + "attn_norm.weight", c.hidden}});
    m.qkv = read_stacked(file, {{p + "attn_q.weight", q}, {p + "attn_k.weight", kv}, {p + "attn_v.weight", kv}}, c.hidden);
    if (c.has_qkv_bias) l.qkv_bias = read_vectors(file, {{p + "attn_q.bias", q}, {p + "attn_k.bias", kv}, {p + "attn_v.bias", kv}});
    m.output = read_stacked(file, {{p + "attn_output.weight", c.hidden}}, q);
    if (c.has_head_norms) {
      l.q_norm = read_vectors(file, {{p + "attn_q_norm.weight", c.head_dim}});
      l.k_norm = read_vectors(file, {{p + "attn_k_norm.weight", c.head_dim}});
    }
    if (c.has_post_norms) {
      l.post_attention_norm = read_vectors(file, {{p + "post_attention_norm.weight", c.hidden}});
      l.post_ffn_norm = read_vectors(file, {{p + "post_ffw_norm.weight", c.hidden}});
    }
    l.ffn_norm = read_vectors(file, {{p + "ffn_norm.weight", c.hidden}});
    m.gate_up = read_stacked(file, {{p + "ffn_gate.weight", c.ffn}, {p + "ffn_up.weight", c.ffn}}, c.hidden);
    m.down = read_stacked(file, {{p + "ffn_down.weight", c.hidden}}, c.ffn);
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    layers_[i].qkv = backend_->add(shared(std::move(all[i].qkv)));
    layers_[i].output = backend_->add(shared(std::move(all[i].output)));
    layers_[i].gate_up = backend_->add(shared(std::move(all[i].gate_up)));
    layers_[i].down = backend_->add(shared(std::move(all[i].down)));
  }
}

void model::check(std::span<int const> tokens) const {
  require(!tokens.empty(), "The engine was given no tokens.");
  for (int token : tokens) require(token >= 0 && token < config_.vocabulary, "The token " + std::to_string(token) + " is not in the vocabulary of the model.");
}

void model::embed(std::span<int const> tokens, float* x) const {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (std::int64_t c = 0; c < config_.hidden; ++c)
      x[std::int64_t(i) * config_.hidden + c] = (*embedding_)[std::size_t(std::int64_t(tokens[i]) * config_.hidden + c)] * float(config_.embedding_factor);
}

void model::run_layers(float* x, std::span<std::int64_t const> positions, decode_attention const& attend, bool only_keys_and_values_of_last) const {
  model_config const& c = config_;
  std::int64_t const rows = std::int64_t(positions.size()), hidden = c.hidden, ffn = c.ffn;
  std::int64_t const q_width = std::int64_t(c.heads) * c.head_dim, kv_width = c.kv_width(), qkv_width = q_width + 2 * kv_width, half = c.head_dim / 2;
  struct turns {
    std::vector<float> cosines, sines;
  };
  auto const turns_by = [&](rotary_angles const& angles) {
    turns t;
    for (std::int64_t const position : positions)
      for (double const frequency : angles.inverse_frequencies) {
        t.cosines.push_back(float(std::cos(double(position) * frequency) * angles.magnitude));
        t.sines.push_back(float(std::sin(double(position) * frequency) * angles.magnitude));
      }
    return t;
  };
  turns const global_turns = turns_by(angles_), windowed_turns = c.global_layers() < c.layers ? turns_by(windowed_angles_) : turns{};
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
  auto const add_delta_and_norm = [&](bool add, std::vector<float> const* post_weight, std::vector<float> const* weight) {
    each_row([&](std::int64_t r) {
      float *const to = x + r * hidden, *const from = delta.data() + r * hidden;
      if (add && c.has_post_norms) rms_norm(from, post_weight->data(), hidden, c.norm_epsilon, from);
      if (add)
        for (std::int64_t i = 0; i < hidden; ++i) to[i] += from[i];
      if (weight) rms_norm(to, weight->data(), hidden, c.norm_epsilon, normed.data() + r * hidden);
    });
  };
  add_delta_and_norm(false, nullptr, &layers_.front().attention_norm);
  for (int layer = 0; layer < c.layers; ++layer) {
    layer_weights const& w = layers_[std::size_t(layer)];
    bool const is_last = layer + 1 == c.layers;
    backend_->linear(w.qkv, normed.data(), rows, hidden, qkv_width, qkv.data());
    each_row([&](std::int64_t r) {
      float* const from = qkv.data() + r * qkv_width;
      if (c.has_qkv_bias)
        for (std::int64_t i = 0; i < qkv_width; ++i) from[i] += w.qkv_bias[std::size_t(i)];
      if (c.has_head_norms)
        for (int h = 0; h < c.heads + c.kv_heads; ++h)
          rms_norm(from + h * c.head_dim, (h < c.heads ? w.q_norm : w.k_norm).data(), c.head_dim, c.norm_epsilon, from + h * c.head_dim);
      if (c.query_factor != 1)
        for (std::int64_t i = 0; i < q_width; ++i) from[i] *= float(c.query_factor);
      turns const& t = c.window(layer) > 0 ? windowed_turns : global_turns;
      float const *const cosine = t.cosines.data() + r * half, *const sine = t.sines.data() + r * half;
      rotate(from, 1, c.heads + c.kv_heads, c.head_dim, c.pairing, cosine, sine);  // keys lie behind queries
      std::copy_n(from, q_width, q.data() + r * q_width);
      std::copy_n(from + q_width, kv_width, k.data() + r * kv_width);
      std::copy_n(from + q_width + kv_width, kv_width, v.data() + r * kv_width);
    });
    if (is_last && only_keys_and_values_of_last) {
      attend(layer, q.data(), k.data(), v.data(), nullptr);
      return;
    }
    attend(layer, q.data(), k.data(), v.data(), mixed.data());
    backend_->linear(w.output, mixed.data(), rows, q_width, hidden, delta.data());
    add_delta_and_norm(true, &w.post_attention_norm, &w.ffn_norm);
    backend_->linear(w.gate_up, normed.data(), rows, hidden, 2 * ffn, gate_up.data());
    each_row([&](std::int64_t r) {
      float* const gate = gate_up.data() + r * 2 * ffn;
      (c.has_gelu ? gelu_times : silu_times)(gate, gate + ffn, ffn);
      std::copy_n(gate, ffn, activated.data() + r * ffn);
    });
    backend_->linear(w.down, activated.data(), rows, ffn, hidden, delta.data());
    add_delta_and_norm(true, &w.post_ffn_norm, is_last ? nullptr : &layers_[std::size_t(layer) + 1].attention_norm);
  }
}

void model::output_logits(float const* x, std::int64_t rows, float* logits) const {
  std::vector<float> normed(std::size_t(rows * config_.hidden));
  for (std::int64_t r = 0; r < rows; ++r)
    rms_norm(x + r * config_.hidden, output_norm_.data(), config_.hidden, config_.norm_epsilon, normed.data() + r * config_.hidden);
  backend_->linear(output_, normed.data(), rows, config_.hidden, config_.vocabulary, logits);
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
  std::int64_t const q_width = std::int64_t(config_.heads) * config_.head_dim, observed = std::min(staged.observed, n);
  staged.queries.resize(std::size_t(config_.layers * observed * q_width));
  backend_->begin_prompt();
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
      for (std::int64_t r = std::max<std::int64_t>(0, n - observed - first); r < rows; ++r)
        std::copy_n(q + r * q_width, q_width, staged.queries.begin() + (staged.slots[std::size_t(layer)] * observed + first + r - (n - observed)) * q_width);
      if (out) backend_->prompt_attention(layer, shape, q, rows, first, staged.key(layer, 0), staged.value(layer, 0), out, config_.window(layer));
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
