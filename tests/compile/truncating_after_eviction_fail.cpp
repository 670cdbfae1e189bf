// expect: (the scheme has evicted tokens by the attention of what would be taken back)
#include "cellar/cellar.hpp"

int main() {
  cellar::host::executor const on;
  cellar::cache<cellar::scheme::h2o<64>> cache(on, {.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 64}, {.tokens = 100});
  cache.truncate(on, cellar::sequence_id(0), 1);
}
