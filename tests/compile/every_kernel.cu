// Every kernel of a cache for the schemes that differ most, compiled for every architecture by cuda.cmake.
#include "cellar/cellar.cuh"

using namespace cellar;

struct ahead : scheme::quest<128> {
  using reuse = cellar::select::reuse_ids<1, 2>;
};

struct overlapped : scheme::yakv<128> {
  static constexpr bool is_reproducible = false;
};

template <class Scheme>
void use(cuda::executor const& on, heads_view<bf16> x) {
  cache<Scheme, cuda::executor> c(on, {.layers = 1, .query_heads = 8, .kv_heads = 2, .head_dim = Scheme::head_dim}, {.tokens = 1000});
  auto const id = c.begin_prompt(prompt_staging<bf16>{});
  c.append_chunk(on, id, 0, x, x);
  c.finish_prompt(on, id);
  batch_entry const entry{id, 1};
  c.plan(on, row_view<batch_entry const>{&entry, 1});
  c.append(on, 0, x, x);
  c.template attend<bf16>(on, 0, x, x);
  if constexpr (operation::keeps_selections<Scheme>) c.select(on, 0, x);
  c.complete();
  c.truncate(on, c.fork(on, id), 5);
}

void all(cuda::executor const& on) {
  use<scheme::yakv<128>>(on, {});
  use<ahead>(on, {});
  use<overlapped>(on, {});
}
