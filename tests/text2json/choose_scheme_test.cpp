// What choose_scheme predicts is what a cache takes.
#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "choose_scheme/predict.hpp"
#include "eigensolver.hpp"
#include "random.hpp"
#include "sanitizers.hpp"

using namespace cellar;

namespace {

constexpr int d = 64, layers = 2, heads = 2;

template <class Scheme>
void check(char const* name, i64 context, double share, bool takes_its_budget = true) {
  INFO(name << ", " << context << " tokens, share " << share);
  std::vector<double> frequencies;
  for (int i = 0; i < d / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / d));
  model_shape const shape{
      .layers = layers, .query_heads = 2 * heads, .kv_heads = heads, .head_dim = d, .rotary = {rotary_pairing::half_split, {frequencies.data(), d / 2}}};
  choose_scheme::workload const w{shape, context, 3};
  auto const p = choose_scheme::predict<Scheme>(name, w, {}, share, 0);
  budget b = Scheme::published;
  if (!operation::selects_everything<Scheme> && !operation::selects_nothing<Scheme>) {
    b.tokens = 0;
    b.share = share;
  }
  host::executor const on;
  cache<Scheme> c(on, shape, {.sequences = 1, .tokens = context + 1}, b);
  random_numbers r(1);
  auto k = r.normals(layers * context * heads * d), v = r.normals(layers * context * heads * d);
  auto const id = c.begin_prompt(prompt_staging<float>{k.data(), v.data(), context, context});
  if constexpr (observes_queries<Scheme>) {
    auto const asked = r.normals(layers * 40 * 2 * heads * d);
    c.finish_prompt(on, id, prompt_queries<float>{asked.data(), 40});
  } else {
    c.finish_prompt(on, id);
  }
  auto const usage = c.usage(id);
  CHECK(p.near - p.pool == 3 * layers * (usage.summary + usage.always_near));
  CHECK(p.far == 3 * layers * usage.far);

  statistics seen;
  c.observe(&seen);
  batch_entry const entry{id, 1};
  c.plan(on, {&entry, 1});
  auto q = r.normals(2 * heads * d), row = r.normals(heads * d);
  std::vector<float> out(q.size());
  for (int layer = 0; layer < layers; ++layer) {
    c.append(on, layer, packed_heads(row.data(), 1, heads, d), packed_heads(row.data(), 1, heads, d));
    c.attend(on, layer, packed_heads(q.data(), 1, 2 * heads, d), packed_heads(out.data(), 1, 2 * heads, d));
  }
  REQUIRE(c.sealed_blocks(id) * Scheme::block_tokens <= context);
  if (c.usage(id).far != usage.far) return;  // the step has sealed one block more than the prompt had
  if (takes_its_budget)
    CHECK(p.moved == 3 * i64(seen.moved_bytes));
  else
    CHECK(p.moved >= 3 * i64(seen.moved_bytes));
}

}  // namespace

TEST_CASE("bytes that choose_scheme predicts are those of a cache, near, far and moved by a step") {
  for (i64 const context : {500, 1021})
    for (double const share : {0.05, 0.3}) {
      if (is_sanitized && (context == 500) != (share == 0.3)) continue;
      check<scheme::dense<d>>("dense", context, share);
      check<scheme::yakv<d>>("yakv", context, share);
      check<scheme::yakv_centred<d>>("yakv_centred", context, share);
      check<scheme::yakv_residual<d>>("yakv_residual", context, share);
      check<scheme::yakv_published<d>>("yakv_published", context, share);
      check<scheme::mean_landmark<d>>("mean_landmark", context, share);
      check<scheme::quest<d>>("quest", context, share);
      check<scheme::arkvale<d>>("arkvale", context, share);
      check<scheme::sink_window<d>>("sink_window", context, share);
      check<scheme::yakv_balanced<d, jacobi_eigensolver>>("yakv_balanced", context, share);
      check<scheme::yakv_guarded<d>>("yakv_guarded", context, share, false);
      check<scheme::moba<d>>("moba", context, share);
      check<scheme::omni_kv<d>>("omni_kv", context, share);
      check<scheme::tidal_decode<d>>("tidal_decode", context, share);
      check<scheme::h_share<d>>("h_share", context, share);
      check<scheme::free_kv<d>>("free_kv", context, share);
      check<scheme::twilight<d>>("twilight", context, share, false);
      check<scheme::sparq<d>>("sparq", context, share);
      check<scheme::double_sparsity<d>>("double_sparsity", context, share);
      check<scheme::loki<d, jacobi_eigensolver>>("loki", context, share);
      check<scheme::infini_gen<d, jacobi_eigensolver>>("infini_gen", context, share, false);
      check<scheme::rabitq_cache<d>>("rabitq_cache", context, share, false);
      check<scheme::pq_cache<d>>("pq_cache", context, share);
      check<scheme::lrqk<d>>("lrqk", context, share);
      check<scheme::inf_llm<d>>("inf_llm", context, share);
      check<scheme::snap_kv<d>>("snap_kv", context, share);
      check<scheme::h2o<d>>("h2o", context, share);
      check<scheme::magic_pig<d>>("magic_pig", context, share, false);
      check<scheme::cluster_kv<d>>("cluster_kv", context, share);
      check<scheme::retro_infer<d>>("retro_infer", context, share);
      check<scheme::paris_kv<d>>("paris_kv", context, share);
    }
}

TEST_CASE("choose_scheme counts a link and a memory one after the other, and hits not at all on the link") {
  choose_scheme::workload const w{{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = d}, 10000, 1};
  auto const none = choose_scheme::predict<scheme::yakv<d>>("yakv", w, {1e6, 2e6}, 0.1, 0),
             half = choose_scheme::predict<scheme::yakv<d>>("yakv", w, {1e6, 2e6}, 0.1, 0.5);
  CHECK(none.seconds == Approx(double(none.moved) / 1e6 + double(none.read) / 2e6));
  CHECK(half.seconds == Approx(double(none.moved) / 2e6 + double(none.read) / 2e6));
  CHECK(none.seconds_best == Approx(std::max(double(none.moved) / 1e6, double(none.read) / 2e6)));
  CHECK(choose_scheme::all_near(w, {1e6, 2e6}).near == 10000 * d * 2 * 2);
}
