// Instantiates the cache of every scheme, with all its member functions' bodies for one storage type.
#include "cellar/cellar.hpp"

namespace {

template <class Scheme>
float decode() {
  constexpr int d = Scheme::head_dim;
  cellar::host::executor const on;
  float rows[2 * d] = {}, out[2 * d] = {};
  double const frequencies[d / 2] = {};
  cellar::cache<Scheme> cache(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = d, .rotary = {.inverse_frequencies = {frequencies, d / 2}}},
                              {.sequences = 1, .tokens = 16});
  auto const id = cache.begin_prompt(cellar::prompt_staging<float>{rows, rows, 1, 0});
  auto const kv = cellar::packed_heads<float const>(rows, 1, 1, d);
  cache.append_chunk(on, id, 0, kv, kv);
  cache.finish_prompt(on, id);
  cellar::batch_entry const one{id, 1};
  cache.plan(on, {&one, 1});
  cache.append(on, 0, kv, kv);
  cache.attend(on, 0, cellar::packed_heads<float const>(rows, 1, 2, d), cellar::packed_heads(out, 1, 2, d));
  cache.discard();
  cache.free(id);
  return out[0];
}

}  // namespace

int main() {
  namespace scheme = cellar::scheme;
  return int(decode<scheme::dense<64>>() + decode<scheme::sink_window<64>>() + decode<scheme::quest<64>>() + decode<scheme::mean_landmark<64>>() +
             decode<scheme::yakv<64>>() + decode<scheme::yakv_centred<64>>());
}
