#pragma once
#include <cstdint>

#include "engine/numeric.hpp"

namespace engine {

struct attention_shape {
  int heads = 0, kv_heads = 0, head_dim = 0;
};

/// Causal attention of a run of new tokens over all tokens so far, themselves included.
///
///     out[t][h] = sum over j of softmax_j(q[t][h] . keys[j][g] / sqrt(head_dim)) values[j][g],   g = h / (heads / kv_heads)
///     where j <= first + t, and j > first + t - window if there is a window
///
/// Blocks of queries (all heads of one kv head together) walk over blocks of keys with an online softmax: memory does not grow with the tokens.
///
/// Shapes     q, out [rows, heads, head_dim] | keys, values [first + rows, kv_heads, head_dim]
/// Requires   heads % kv_heads == 0
void causal_attention(attention_shape shape, float const* q, std::int64_t rows, std::int64_t first, float const* keys, float const* values, float* out,
                      cellar::host::thread_pool& on, std::int64_t window = 0);

}  // namespace engine
