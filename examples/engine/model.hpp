#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/backend.hpp"
#include "engine/gguf.hpp"
#include "engine/numeric.hpp"
#include "engine/rotary.hpp"

/// A small inference engine for the examples: dense prefill, and decode whose attention belongs to the caller. No part of the library.
namespace engine {

struct model_config {
  std::string architecture;
  int layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0, ffn = 0, vocabulary = 0;
  std::int64_t context = 0;  // tokens
  double rope_theta = 0, norm_epsilon = 0;
  rotary_pairing pairing = rotary_pairing::half_split;
  bool has_qkv_bias = false, has_tied_output = false;
  bool has_head_norms = false;        ///< Of each head of queries and keys, before they are rotated.
  bool has_post_norms = false;        ///< Of what attention and feed-forward layers give, before it is added.
  bool has_gelu = false;              ///< Instead of SiLU.
  double embedding_factor = 1;        ///< Of what goes into the first layer.
  double query_factor = 1;            ///< Of queries, where attention divides its scores by another number than sqrt(head_dim).
  std::vector<std::int64_t> windows;  ///< Of each layer: how many tokens a token sees, itself included; 0 for all (global layers).

  /// Floats in the keys (or values) of one token in one layer.
  std::int64_t kv_width() const { return std::int64_t(kv_heads) * head_dim; }

  std::int64_t window(int layer) const { return windows[std::size_t(layer)]; }
  /// Layers that see all tokens: a cache for them has this many.
  int global_layers() const { return int(std::count(windows.begin(), windows.end(), 0)); }
  /// Where a layer stands among those of its kind, global or windowed: its number in a cache for them.
  int place(int layer) const {
    bool const is_global = window(layer) == 0;
    return int(std::count_if(windows.begin(), windows.begin() + layer, [&](std::int64_t w) { return (w == 0) == is_global; }));
  }
};

/// Reads and checks the shape of a model; throws std::runtime_error with a sentence where this engine cannot run it.
model_config read_config(gguf_file const& file);

/// Keys (after rotary embedding) and values of one prompt, f32, and queries of its end.
///
///     keys, values   [slot][token, up to capacity][kv_head][head_dim], the global layers' slots before the windowed ones': a cache for the global layers
///                    takes the first of them
///     queries        [slot][observed][head][head_dim], of the last `observed` tokens: as many as the caller asks for before the prefill
struct staged_prompt {
  std::vector<float> keys, values, queries;
  std::int64_t observed = 0;
  std::vector<int> slots;                            // of each layer
  std::int64_t tokens = 0, capacity = 0, width = 0;  // width = kv_heads * head_dim

  /// Makes room for `capacity` tokens and drops what was there. A prefill keeps a capacity that suffices.
  void reserve(model_config const& config, std::int64_t new_capacity);

  float* key(int layer, std::int64_t token) { return keys.data() + at(layer, token); }
  float* value(int layer, std::int64_t token) { return values.data() + at(layer, token); }
  float const* key(int layer, std::int64_t token) const { return keys.data() + at(layer, token); }
  float const* value(int layer, std::int64_t token) const { return values.data() + at(layer, token); }
  std::int64_t at(int layer, std::int64_t token) const { return (slots[std::size_t(layer)] * capacity + token) * width; }
};

/// Attention of one layer of a decode step: new queries, keys and values in, output out; all [row, heads or kv_heads, head_dim].
using decode_attention = std::function<void(int layer, float const* q, float const* k, float const* v, float* out)>;

using progress_report = std::function<void(std::int64_t tokens_done)>;
using logits_report = std::function<void(std::int64_t position, std::span<float const> logits)>;

/// A llama, qwen2, qwen3 or gemma3 transformer with f32 weights. One call at a time: the threads are shared.
class model {
 public:
  /// Products and a prompt's attention run on the backend, or on the model's own threads.
  model(gguf_file const& file, int threads, std::unique_ptr<backend> on = nullptr);

  model_config const& config() const { return config_; }

  /// How a layer's queries and keys are rotated.
  rotary_angles const& angles(int layer) const { return config_.window(layer) > 0 ? windowed_angles_ : angles_; }

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
    std::vector<float> attention_norm, qkv_bias, ffn_norm, q_norm, k_norm, post_attention_norm, post_ffn_norm;
    int qkv = 0, output = 0, gate_up = 0, down = 0;  // the backend's; qkv and gate_up: matrices under each other
  };

  void check(std::span<int const> tokens) const;
  void embed(std::span<int const> tokens, float* x) const;
  void run_layers(float* x, std::span<std::int64_t const> positions, decode_attention const& attend, bool only_keys_and_values_of_last) const;
  void output_logits(float const* x, std::int64_t rows, float* logits) const;

  model_config config_;
  rotary_angles angles_, windowed_angles_;
  std::shared_ptr<std::vector<float> const> embedding_;
  std::vector<float> output_norm_;
  int output_ = 0;
  std::vector<layer_weights> layers_;
  std::unique_ptr<cellar::host::thread_pool> threads_;
  std::unique_ptr<backend> backend_;
};

}  // namespace engine
