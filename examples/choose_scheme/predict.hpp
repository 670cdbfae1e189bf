#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cellar/cellar.hpp"
#include "cellar/interop/lapack.hpp"

/// What a scheme would take on a machine, from the sizes of its own types: nothing is allocated and nothing runs.
namespace choose_scheme {

struct machine {
  double link = 25e9;      ///< Bytes a second from far memory.
  double memory = 2000e9;  ///< Bytes a second of near memory.
};

struct workload {
  cellar::model_shape shape;
  std::int64_t context = 0;  ///< Tokens of every sequence's prompt.
  int sequences = 1;
};

/// Bytes and seconds, of all layers and sequences.
struct prediction {
  std::string name;
  double share = 0;         ///< Of the prompt's tokens, fetched a step and KV head; 1 where all are.
  std::int64_t near = 0;    ///< Summaries, learnt state, sinks, window, outliers, and the pool.
  std::int64_t pool = 0;    ///< Near, for what a step selects.
  std::int64_t far = 0;     ///< Planes of sealed blocks.
  std::int64_t moved = 0;   ///< A step, if nothing that it selects is near yet; planes over all heads once for each head that selects them.
  std::int64_t read = 0;    ///< A step, of near memory: summaries, near rows, selected planes.
  double hit_rate = 0;      ///< Of what a step selects, near already.
  double seconds = 0;       ///< A step's attention: near memory and link one after the other, at their full speed.
  double seconds_best = 0;  ///< With both at once.
};

/// A step of `Scheme` right after the prompt, under its published budget but for `share`, where it fetches by a budget at all.
///
/// What is assumed: hit_rate; both bandwidths are reached; the engine's own work is not counted. A first layer that is dense fetches all of its planes. A
/// scheme that decides itself how much of its budget it takes (top_p, until_missed, sampling, a threshold) takes all of it; of two levels both are read whole.
template <class Scheme>
prediction predict(std::string name, workload const& w, machine const& m, double share, double hit_rate) {
  using cellar::i64;
  namespace operation = cellar::operation;
  using map_type = cellar::memory_map<Scheme>;
  cellar::budget b = Scheme::published;
  bool const selects = !operation::selects_everything<Scheme> && !operation::selects_nothing<Scheme>;
  if (selects) {
    b.share = share;
    b.tokens = 0;
  }
  b.sinks = std::min(b.sinks, w.context);
  b.dense_layers = std::min(b.dense_layers, w.shape.layers);
  i64 const layers = w.shape.layers, heads = w.shape.kv_heads;
  i64 const sealed = operation::sealable_blocks<Scheme>(b, w.context, 0);
  cellar::limits const l{.tokens = w.context + 1};
  b.outliers = std::min(b.outliers, l.tokens / Scheme::block_tokens);
  i64 const spare = operation::spare_outliers<Scheme>(l, b);
  map_type const map{w.shape, b.sinks, operation::tail_rows<Scheme>(l, b), b.outliers + spare, false, spare};
  b.outliers = std::min(b.outliers, sealed);
  bool const discards = operation::selects_nothing<Scheme> && b.dense_layers == 0;
  auto const planes = map.geometry();
  i64 const row = 2 * i64{Scheme::head_dim} * i64(sizeof(typename Scheme::near_scalar)), head_block = planes.slice_bytes() + planes.shared_bytes();
  i64 const scored = sealed - b.outliers;
  i64 selected = operation::selects_everything<Scheme> ? sealed : 0;
  if (selects)
    selected = std::min(scored, typename Scheme::select{}.with_budget(std::min(operation::budget_blocks<Scheme>(b, w.context), scored)).max_selected(sealed));

  i64 const tiles = discards ? 0 : map.tile_copies() * cellar::ceil_div(sealed, map_type::tile_blocks) * map.tile();
  i64 const always_near = (w.context - sealed * Scheme::block_tokens) * heads * row +
                          heads * (b.outliers * (i64{Scheme::block_tokens} * row + i64(sizeof(cellar::logical_block))) + map.outlier_attention());
  i64 const pool = selects ? selected * heads * head_block : 0;
  i64 const dense = discards ? 0 : sealed * planes.block_bytes();
  i64 const chosen = operation::selects_everything<Scheme> ? dense : selected * heads * head_block;

  prediction p{.name = std::move(name), .share = selects ? share : operation::selects_everything<Scheme> ? 1.0 : 0.0, .hit_rate = selects ? hit_rate : 0};
  i64 const n = w.sequences, selecting = layers - b.dense_layers;
  double const scoring = double(operation::selecting_layers<Scheme>(w.shape, b)) / double(Scheme::reuse::steps);  // layers of a step that read their tiles
  p.pool = n * layers * pool;
  p.near = n * layers * (tiles + map.state_sequence() + always_near + pool);
  p.far = n * layers * dense;
  p.moved = n * (selecting * chosen + b.dense_layers * dense);
  p.read = n * (i64(scoring * double(tiles)) + selecting * chosen + b.dense_layers * dense + layers * always_near);
  double const link = (double(n * selecting * chosen) * (1 - p.hit_rate) + double(n * b.dense_layers * dense)) / m.link, memory = double(p.read) / m.memory;
  p.seconds = link + memory;
  p.seconds_best = std::max(link, memory);
  return p;
}

/// Keys and values all near, where they fit: what offloading is compared with.
inline prediction all_near(workload const& w, machine const& m) {
  std::int64_t const bytes = w.sequences * std::int64_t{w.shape.layers} * w.context * w.shape.kv_heads * w.shape.head_dim * 2 * 2;
  double const seconds = double(bytes) / m.memory;
  return {.name = "all near, bf16", .share = 1, .near = bytes, .read = bytes, .hit_rate = 1, .seconds = seconds, .seconds_best = seconds};
}

/// Every scheme of the library at each share. Schemes that fetch by no budget come once.
template <int HeadDim>
std::vector<prediction> predict_all(workload const& w, machine const& m, std::vector<double> const& shares, double hit_rate) {
  namespace scheme = cellar::scheme;
  std::vector<prediction> all;
  auto const add = [&]<class Scheme>(std::type_identity<Scheme>, char const* name) {
    for (double const share : shares) {
      all.push_back(predict<Scheme>(name, w, m, share, hit_rate));
      if (all.back().share != share) break;
    }
  };
  using lapack = cellar::interop::lapack_eigensolver;
  add(std::type_identity<scheme::dense<HeadDim>>{}, "dense");
  add(std::type_identity<scheme::yakv<HeadDim>>{}, "yakv");
  add(std::type_identity<scheme::yakv_centred<HeadDim>>{}, "yakv_centred");
  add(std::type_identity<scheme::yakv_before_rotary<HeadDim>>{}, "yakv_before_rotary");
  add(std::type_identity<scheme::yakv_published<HeadDim>>{}, "yakv_published");
  add(std::type_identity<scheme::yakv_residual<HeadDim>>{}, "yakv_residual");
  add(std::type_identity<scheme::mean_landmark<HeadDim>>{}, "mean_landmark");
  add(std::type_identity<scheme::shadow_kv<HeadDim, lapack>>{}, "shadow_kv");
  add(std::type_identity<scheme::quest<HeadDim>>{}, "quest");
  add(std::type_identity<scheme::arkvale<HeadDim>>{}, "arkvale");
  add(std::type_identity<scheme::sink_window<HeadDim>>{}, "sink_window");
  add(std::type_identity<scheme::yakv_balanced<HeadDim, lapack>>{}, "yakv_balanced");
  add(std::type_identity<scheme::yakv_guarded<HeadDim>>{}, "yakv_guarded");
  add(std::type_identity<scheme::moba<HeadDim>>{}, "moba");
  add(std::type_identity<scheme::omni_kv<HeadDim>>{}, "omni_kv");
  add(std::type_identity<scheme::tidal_decode<HeadDim>>{}, "tidal_decode");
  add(std::type_identity<scheme::h_share<HeadDim>>{}, "h_share");
  add(std::type_identity<scheme::free_kv<HeadDim>>{}, "free_kv");
  add(std::type_identity<scheme::twilight<HeadDim>>{}, "twilight");
  add(std::type_identity<scheme::sparq<HeadDim>>{}, "sparq");
  add(std::type_identity<scheme::double_sparsity<HeadDim>>{}, "double_sparsity");
  add(std::type_identity<scheme::loki<HeadDim, lapack>>{}, "loki");
  add(std::type_identity<scheme::infini_gen<HeadDim, lapack>>{}, "infini_gen");
  add(std::type_identity<scheme::rabitq_cache<HeadDim>>{}, "rabitq_cache");
  add(std::type_identity<scheme::pq_cache<HeadDim>>{}, "pq_cache");
  add(std::type_identity<scheme::lrqk<HeadDim>>{}, "lrqk");
  add(std::type_identity<scheme::inf_llm<HeadDim>>{}, "inf_llm");
  add(std::type_identity<scheme::snap_kv<HeadDim>>{}, "snap_kv");
  add(std::type_identity<scheme::h2o<HeadDim>>{}, "h2o");
  add(std::type_identity<scheme::magic_pig<HeadDim>>{}, "magic_pig");
  add(std::type_identity<scheme::cluster_kv<HeadDim>>{}, "cluster_kv");
  add(std::type_identity<scheme::retro_infer<HeadDim>>{}, "retro_infer");
  add(std::type_identity<scheme::paris_kv<HeadDim>>{}, "paris_kv");
  return all;
}

}  // namespace choose_scheme
