#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/gguf.hpp"
#include "engine/numeric.hpp"

/// A small inference engine for the examples: dense prefill, and decode whose attention belongs to the caller. No part of the library.
namespace engine {

enum class rotary_pairing { adjacent, half_split };  // channels (2i, 2i + 1), or (i, i + head_dim / 2)

struct model_config {
  std::string architecture;
  int layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0, ffn = 0, vocabulary = 0;
  std::int64_t context = 0;  // tokens
  double rope_theta = 0, norm_epsilon = 0;
  rotary_pairing pairing = rotary_pairing::half_split;
  bool has_qkv_bias = false, has_tied_output = false;

  /// Floats in the keys (or values) of one token in one layer.
  std::int64_t kv_width() const { return std::int64_t(kv_heads) * head_dim; }
};

/// Reads and checks the shape of a model; throws std::runtime_error with a sentence where this engine cannot run it.
model_config read_config(gguf_file const& file);

/// Keys (after rotary embedding) and values of one prompt, f32.
///
///     keys, values   [layer][token, up to capacity][kv_head][head_dim]
struct staged_prompt {
  std::vector<float> keys, values;
  std::int64_t tokens = 0, capacity = 0, width = 0;  // width = kv_heads * head_dim

  /// Makes room for `capacity` tokens and drops what was there. A prefill keeps a capacity that suffices.
  void reserve(model_config const& config, std::int64_t new_capacity);

  float* key(int layer, std::int64_t token) { return keys.data() + (layer * capacity + token) * width; }
  float* value(int layer, std::int64_t token) { return values.data() + (layer * capacity + token) * width; }
  float const* key(int layer, std::int64_t token) const { return keys.data() + (layer * capacity + token) * width; }
  float const* value(int layer, std::int64_t token) const { return values.data() + (layer * capacity + token) * width; }
};

/// Rotates `rows` vectors of `heads` heads in place. cosines, sines [rows, head_dim / 2].
void rotate(float* x, std::int64_t rows, int heads, int head_dim, rotary_pairing pairing, float const* cosines, float const* sines);

/// Attention of one layer of a decode step: new queries, keys and values in, output out; all [row, heads or kv_heads, head_dim].
using decode_attention = std::function<void(int layer, float const* q, float const* k, float const* v, float* out)>;

using progress_report = std::function<void(std::int64_t tokens_done)>;
using logits_report = std::function<void(std::int64_t position, std::span<float const> logits)>;

/// A llama or qwen2 transformer with f32 weights. One call at a time: the threads are shared.
class model {
 public:
  model(gguf_file const& file, int threads);

  model_config const& config() const { return config_; }

  /// Angle per position of channel pair i, theta^(-2i / head_dim).
  std::vector<double> const& inverse_frequencies() const { return inverse_frequencies_; }

  /// The engine's threads, for the caller's work between its own.
  cellar::host::thread_pool& threads() const { return *threads_; }

  /// Runs all tokens from position 0, fills `staged` and returns the logits [vocabulary] after the last token.
  std::vector<float> prefill(std::span<int const> tokens, staged_prompt& staged, progress_report const& progress = {}) const;

  /// As prefill, and hands out the logits of every position from first_logits on.
  void prefill_all(std::span<int const> tokens, staged_prompt& staged, std::int64_t first_logits, logits_report const& logits_of,
                   progress_report const& progress = {}) const;

  /// One step for several rows: row i has token tokens[i] at position positions[i]. logits [rows, vocabulary]. Weights are read once.
  void decode(std::span<int const> tokens, std::span<std::int64_t const> positions, decode_attention const& attend, std::vector<float>& logits) const;

 private:
  struct layer_weights {
    std::vector<float> attention_norm, qkv, qkv_bias, output, ffn_norm, gate_up, down;  // qkv and gate_up: matrices under each other
  };

  void check(std::span<int const> tokens) const;
  void embed(std::span<int const> tokens, float* x) const;
  void run_layers(float* x, std::span<std::int64_t const> positions, decode_attention const& attend, bool only_keys_and_values_of_last) const;
  void output_logits(float const* x, std::int64_t rows, float* logits) const;

  model_config config_;
  std::vector<double> inverse_frequencies_;
  std::vector<float> embedding_, output_norm_, output_;  // output_ is empty if tied
  std::vector<layer_weights> layers_;
  std::unique_ptr<cellar::host::thread_pool> threads_;
};

}  // namespace engine
