// Every kernel of a cache, for every scheme and for other widths and near scalars, compiled for every architecture by cuda.cmake.
#include "../eigensolver.hpp"
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
  token_rows<bf16> rows{x};
  if constexpr (!memory_map<Scheme>::values_in_keys) rows.values = x;
  if constexpr (memory_map<Scheme>::is_indexed) rows.index_keys = x;
  c.append_chunk(on, id, 0, rows);
  c.finish_prompt(on, id);
  batch_entry const entry{id, 1};
  c.plan(on, row_view<batch_entry const>{&entry, 1});
  c.append(on, 0, rows);
  if constexpr (memory_map<Scheme>::is_indexed)
    c.template attend<bf16>(on, 0, x, x, {x, {}});
  else
    c.template attend<bf16>(on, 0, x, x);
  if constexpr (operation::keeps_selections<Scheme>) c.select(on, 0, x);
  c.complete();
  c.truncate(on, c.fork(on, id), 5);
}

void all(cuda::executor const& on) {
  use<scheme::yakv<128>>(on, {});
  use<ahead>(on, {});
  use<overlapped>(on, {});
  use<scheme::yakv_centred<128>>(on, {});
  use<scheme::yakv_before_rotary<128>>(on, {});
  use<scheme::yakv_published<128>>(on, {});
  use<scheme::yakv_residual<128>>(on, {});
  use<scheme::mean_landmark<128>>(on, {});
  use<scheme::arkvale<128>>(on, {});
  use<scheme::shadow_kv<128, jacobi_eigensolver>>(on, {});
  use<scheme::sink_window<128>>(on, {});
  use<scheme::dense<128>>(on, {});
  use<scheme::quest<256>>(on, {});
  use<scheme::yakv<64, float>>(on, {});
  use<scheme::quest<80, f16>>(on, {});
  use<scheme::latent<scheme::dense<576>, 512>>(on, {});
  use<scheme::dsa<>>(on, {});
}
