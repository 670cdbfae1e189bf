#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model.hpp"

namespace engine {

/// Exact attention of windowed layers in decoding: of each sequence and windowed layer, a ring of the last keys and values that can be seen. Its memory does
/// not grow with the tokens. Global layers need another cache.
class window_cache {
 public:
  explicit window_cache(model_config const& config) : config_(config) {}

  /// Starts a sequence with a prompt's last tokens, and returns its number: 0, 1, 2...
  int begin(staged_prompt const& prompt);

  /// Attention of one layer: row r appends a token to sequences[r], and sees it and those before it within the window. All [row, heads or kv_heads, head_dim].
  ///
  /// Requires  layer has a window; sequences began here, none of them is there twice
  void attend(int layer, std::span<int const> sequences, float const* q, float const* k, float const* v, float* out, cellar::host::thread_pool& on);

 private:
  struct ring {
    std::vector<float> keys, values;  // [token % window][kv_head][head_dim]
    std::int64_t tokens = 0;          // so far
  };
  void append(ring& to, std::int64_t window, float const* k, float const* v) const;

  model_config config_;
  std::vector<std::vector<ring>> sequences_;  // [sequence][place of the layer]
};

}  // namespace engine
