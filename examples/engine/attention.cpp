#include "engine/attention.hpp"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace engine {

void causal_attention(attention_shape shape, float const* q, std::int64_t rows, std::int64_t first, float const* keys, float const* values, float* out,
                      cellar::host::thread_pool& on, std::int64_t window) {
  std::int64_t constexpr query_block = 64, key_block = 256;  // group * 64 * 256 scores stay in a core's second cache
  std::int64_t const width = shape.head_dim, group = shape.heads / shape.kv_heads;
  std::int64_t const q_stride = shape.heads * width, kv_stride = shape.kv_heads * width;
  std::int64_t const blocks = (rows + query_block - 1) / query_block;
  float const scale = float(1 / std::sqrt(double(width)));
  on.run(blocks * shape.kv_heads, [&](std::int64_t task, int) {
    std::int64_t const begin = (task / shape.kv_heads) * query_block, kv_head = task % shape.kv_heads;
    std::int64_t const n = std::min(query_block, rows - begin), lines = n * group;  // a line: one query of one head
    std::vector<float> query(lines * width), sum(lines * width), scores(lines * key_block);
    std::vector<float> top(lines, -std::numeric_limits<float>::infinity()), total(lines, 0.f);
    auto const at = [&](std::int64_t line) { return (begin + line / group) * q_stride + (kv_head * group + line % group) * width; };
    for (std::int64_t line = 0; line < lines; ++line)
      for (std::int64_t c = 0; c < width; ++c) query[line * width + c] = q[at(line) + c] * scale;
    std::int64_t const end = first + begin + n;                                                         // keys that the last query of the block sees
    std::int64_t const start = window > 0 ? std::max<std::int64_t>(0, first + begin - window + 1) : 0;  // the first key that any of them sees
    for (std::int64_t k = start; k < end; k += key_block) {
      std::int64_t const m = std::min(key_block, end - k);
      float const* const block_keys = keys + k * kv_stride + kv_head * width;
      float const* const block_values = values + k * kv_stride + kv_head * width;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, int(lines), int(m), int(width), 1.f, query.data(), int(width), block_keys, int(kv_stride), 0.f,
                  scores.data(), int(m));
      for (std::int64_t line = 0; line < lines; ++line) {
        float* const row = scores.data() + line * m;
        std::int64_t const position = first + begin + line / group, after = std::clamp<std::int64_t>(position + 1 - k, 0, m);
        std::int64_t const before = window > 0 ? std::clamp<std::int64_t>(position - window + 1 - k, 0, after) : 0;
        std::fill(row, row + before, 0.f);
        std::fill(row + after, row + m, 0.f);
        if (before == after) continue;
        float const highest = std::max(top[line], maximum(row + before, after - before));
        if (highest > top[line]) {
          float const shrink = std::exp(top[line] - highest);  // 0 the first time
          total[line] *= shrink;
          for (std::int64_t c = 0; c < width; ++c) sum[line * width + c] *= shrink;
          top[line] = highest;
        }
        total[line] += exponentials(row + before, after - before, highest);
      }
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, int(lines), int(width), int(m), 1.f, scores.data(), int(m), block_values, int(kv_stride), 1.f,
                  sum.data(), int(width));
    }
    for (std::int64_t line = 0; line < lines; ++line)
      for (std::int64_t c = 0; c < width; ++c) out[at(line) + c] = sum[line * width + c] / total[line];
  });
}

}  // namespace engine
