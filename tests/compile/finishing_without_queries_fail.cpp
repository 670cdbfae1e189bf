// expect: (the scheme learns from a prompt's queries: give finish_prompt those of its last tokens)
#include "cellar/cellar.hpp"

int main() {
  cellar::host::executor const on;
  cellar::cache<cellar::scheme::snap_kv<64>> cache(on, {.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 64}, {.tokens = 100});
  cache.finish_prompt(on, cellar::sequence_id(0));
}
