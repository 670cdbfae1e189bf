// What choose_scheme predicts is what a cache takes.
#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "choose_scheme/predict.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

constexpr int d = 64, layers = 2, heads = 2;

template <class Scheme>
void check(char const* name, i64 context, double share) {
  INFO(name << ", " << context << " tokens, share " << share);
  std::vector<double> frequencies;
  for (int i = 0; i < d / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / d));
  model_shape const shape{
      .layers = layers, .query_heads = 2 * heads, .kv_heads = heads, .head_dim = d, .rotary = {rotary_pairing::half_split, {frequencies.data(), d / 2}}};
  choose_scheme::workload const w{shape, context, 3};
  auto const p = choose_scheme::predict<Scheme>(name, w, {}, share, 0);
  budget b = Scheme::published;
  if (b.tokens > 0 || b.share > 0) {
    b.tokens = 0;
    b.share = share;
  }
  host::executor const on;
  cache<Scheme> c(on, shape, {.sequences = 1, .tokens = context + 8}, b);
  random_numbers r(1);
  auto k = r.normals(layers * context * heads * d), v = r.normals(layers * context * heads * d);
  auto const id = c.begin_prompt(prompt_staging<float>{k.data(), v.data(), context, context});
  c.finish_prompt(on, id);
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
  if (c.usage(id).far == usage.far) CHECK(p.moved == 3 * i64(seen.moved_bytes));  // else the step has sealed one block more than the prompt had
}

}  // namespace

TEST_CASE("bytes that choose_scheme predicts are those of a cache, near, far and moved by a step") {
  for (i64 const context : {500, 1021})
    for (double const share : {0.05, 0.3}) {
      check<scheme::dense<d>>("dense", context, share);
      check<scheme::yakv<d>>("yakv", context, share);
      check<scheme::yakv_centred<d>>("yakv_centred", context, share);
      check<scheme::yakv_residual<d>>("yakv_residual", context, share);
      check<scheme::yakv_published<d>>("yakv_published", context, share);
      check<scheme::mean_landmark<d>>("mean_landmark", context, share);
      check<scheme::quest<d>>("quest", context, share);
      check<scheme::arkvale<d>>("arkvale", context, share);
      check<scheme::sink_window<d>>("sink_window", context, share);
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
