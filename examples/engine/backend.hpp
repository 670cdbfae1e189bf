#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/attention.hpp"

namespace engine {

/// Where a model's matrix products and a prompt's attention run. Rows go in and come out in host memory; weights may lie elsewhere. One call at a time.
class backend {
 public:
  virtual ~backend() = default;

  /// Takes a matrix [out_width, in], and returns its number: 0, 1, 2...
  virtual int add(std::shared_ptr<std::vector<float> const> weights) = 0;
  /// out[r][o] = sum over i of x[r][i] * w[o][i]; x [rows, in], out [rows, out_width].
  virtual void linear(int weights, float const* x, std::int64_t rows, std::int64_t in, std::int64_t out_width, float* out) = 0;
  /// Keys and values of prompt_attention are another prompt's from now on.
  virtual void begin_prompt() {}
  /// causal_attention of one layer. Keys and values of tokens that an earlier call for this layer had are the same as then.
  virtual void prompt_attention(int layer, attention_shape shape, float const* q, std::int64_t rows, std::int64_t first, float const* keys, float const* values,
                                float* out, std::int64_t window) = 0;
};

/// On the host's threads, which must outlive it.
std::unique_ptr<backend> host_backend(cellar::host::thread_pool& threads);

}  // namespace engine
