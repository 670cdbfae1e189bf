#include "engine/window_cache.hpp"

#include <algorithm>

#include "engine/attention.hpp"

namespace engine {

void window_cache::append(ring& to, std::int64_t window, float const* k, float const* v) const {
  std::int64_t const width = config_.kv_width(), at = to.tokens++ % window * width;
  std::copy_n(k, width, to.keys.data() + at);
  std::copy_n(v, width, to.values.data() + at);
}

int window_cache::begin(staged_prompt const& prompt) {
  auto& rings = sequences_.emplace_back();
  for (int layer = 0; layer < config_.layers; ++layer) {
    std::int64_t const window = config_.window(layer);
    if (window == 0) continue;
    ring& r = rings.emplace_back();
    r.keys.resize(std::size_t(window * config_.kv_width()));
    r.values.resize(r.keys.size());
    r.tokens = std::max<std::int64_t>(0, prompt.tokens - window);
    while (r.tokens < prompt.tokens) append(r, window, prompt.key(layer, r.tokens), prompt.value(layer, r.tokens));
  }
  return int(sequences_.size()) - 1;
}

void window_cache::attend(int layer, std::span<int const> sequences, float const* q, float const* k, float const* v, float* out,
                          cellar::host::thread_pool& on) {
  std::int64_t const window = config_.window(layer), q_width = std::int64_t(config_.heads) * config_.head_dim;
  for (std::size_t r = 0; r < sequences.size(); ++r) {
    ring& here = sequences_[std::size_t(sequences[r])][std::size_t(config_.place(layer))];
    auto const row = std::int64_t(r);
    append(here, window, k + row * config_.kv_width(), v + row * config_.kv_width());
    std::int64_t const visible = std::min(here.tokens, window);  // all that the ring holds, in whatever order
    causal_attention({config_.heads, config_.kv_heads, config_.head_dim}, q + row * q_width, 1, visible - 1, here.keys.data(), here.values.data(),
                     out + row * q_width, on);
  }
}

}  // namespace engine
