// Selection by a model's own indexer: index keys, index queries and weights that the engine supplies.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"

using namespace cellar;

namespace dsa_test {

namespace {

template <int Heads = 5, class Base = scheme::latent<scheme::dense<24, float>, 16>>
using small = scheme::dsa<Base, Heads, 16>;

/// The nearest number of FP8 E4M3, ties to the even code, by looking at all of them.
double nearest_e4m3(double x) {
  double best = 0, distance = std::abs(x);
  for (int code = 1; code < 127; ++code) {
    int const exponent = code >> 3, mantissa = code & 7;
    double const y = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    if (double const off = std::abs(std::abs(x) - y); off < distance || (off == distance && code % 2 == 0)) distance = off, best = y;
  }
  return x < 0 ? -best : best;
}

/// A stored index key: codes of a scale that is the largest channel over 448, in f32, rounded up.
std::vector<double> stored(float const* key, int dim) {
  float most = 0;
  for (int c = 0; c < dim; ++c) most = std::max(most, std::abs(key[c]));
  float scale = float(double(most) / 448);
  if (double(scale) < double(most) / 448) scale = std::nextafter(scale, 1e30f);
  std::vector<double> y;
  for (int c = 0; c < dim; ++c) y.push_back(scale > 0 ? double(scale) * nearest_e4m3(double(key[c] / scale)) : 0);
  return y;
}

/// Whether the chosen tokens of the last step are those of the highest scores, by their definition; `slack` of rounding between the last and the next.
template <class Scheme>
void check_chosen(reference<Scheme> const& ref, trial<Scheme>& t, std::size_t who, i64 batch_index, i64 tokens, i64 budget, int layer) {
  constexpr int D = Scheme::summary::index_dim, heads = Scheme::summary::index_heads;
  auto const& s = t.data[who];
  i64 const sealed = t.cache.sealed_blocks(t.ids[who]), sinks = t.cache.sinks(), all = ref.shape().kv_heads * heads;
  for (int head = 0; head < ref.shape().kv_heads; ++head) {
    std::vector<double> scores(std::size_t(sealed), 0.0);
    double size = 0;
    for (i64 token = 0; token < tokens; ++token) {
      auto const both = ref.index_query(who, t.lengths[who] - tokens + token, layer);
      for (i64 b = 0; b < sealed; ++b) {
        auto const key = stored(ref.template row<D>(s.index_keys, s, layer, sinks + b, head), D);
        for (int h = head * heads; h < (head + 1) * heads; ++h) {
          double product = 0;
          for (int c = 0; c < D; ++c) product += double(both[std::size_t(h * D + c)]) * key[std::size_t(c)];
          scores[std::size_t(b)] += std::max(product, 0.0) * double(both[std::size_t(all * D + h)]);
          size = std::max(size, std::abs(scores[std::size_t(b)]));
        }
      }
    }
    auto const chosen = t.cache.selected(batch_index, head);
    REQUIRE(chosen);
    REQUIRE(chosen->count == std::min(budget, sealed));
    std::vector<char> is_chosen(std::size_t(sealed), 0);
    double lowest = 1e300, highest = -1e300;
    for (auto const id : *chosen) is_chosen[std::size_t(number(id))] = 1;
    for (i64 b = 0; b < sealed; ++b) {
      double const x = scores[std::size_t(b)];
      (is_chosen[std::size_t(b)] ? lowest : highest) = is_chosen[std::size_t(b)] ? std::min(lowest, x) : std::max(highest, x);
    }
    if (chosen->count > 0 && chosen->count < sealed) REQUIRE(lowest >= highest - 1e-5 * size);
  }
}

}  // namespace

TEST_CASE("DeepSeek Sparse Attention chooses the tokens of the highest index scores, and attends to them") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, int kv_heads, int workers) {
    INFO(typeid(Scheme).name() << ", " << kv_heads << " KV heads, " << workers << " workers");
    host::thread_pool pool(workers);
    for (i64 const tokens : {1, 3}) {
      reference<Scheme> ref(2, kv_heads, 4, std::uint64_t(tokens));
      trial<Scheme> t(ref, {300, 45, 1}, 80, {.tokens = 40, .sinks = 3, .window = 6}, host::executor(pool), tokens, 1);
      auto const step = [&](std::vector<std::size_t> const& who) {
        t.step(who, std::vector<i64>(who.size(), tokens), rounding);
        for (std::size_t i = 0; i < who.size(); ++i) check_chosen(ref, t, who[i], i64(i), tokens, 40, 1);  // of the last layer
      };
      for (int i = 0; i < 4; ++i) step(i % 2 == 0 ? std::vector<std::size_t>{0, 1, 2} : std::vector<std::size_t>{1, 0});
      auto const forked = t.fork(0);
      t.truncate(0, 220);
      for (int i = 0; i < 4; ++i) step({0, forked});
      step({forked});
    }
  };
  check(std::type_identity<small<>>{}, 1, 1);
  check(std::type_identity<small<>>{}, 1, 3);
  check(std::type_identity<small<64>>{}, 2, 1);
  check(std::type_identity<small<8, scheme::dense<24, float>>>{}, 2, 4);               // values of their own
  check(std::type_identity<small<1, scheme::latent<scheme::dense<40>, 40>>>{}, 1, 1);  // bf16
  check(std::type_identity<in_file<small<9>>>{}, 1, 2);
}

TEST_CASE("DeepSeek Sparse Attention in the sizes of DeepSeek-V3.2") {
  using Scheme = scheme::dsa<>;
  static_assert(Scheme::head_dim == 576 && Scheme::value_dim == 512 && Scheme::published.tokens == 2048);
  reference<Scheme> ref(2, 1, 16, 5);
  trial<Scheme> t(ref, {200}, 4, {.tokens = 32});
  for (int i = 0; i < 2; ++i) {
    t.step({0}, {1}, 2 * rounding);
    check_chosen(ref, t, 0, 0, 1, 32, 1);
  }
  memory_map<Scheme> const map{{.layers = 1, .query_heads = 128, .kv_heads = 1, .head_dim = 576}, 0, 100};
  CHECK(map.geometry().block_bytes() == 576 * 2);  // bytes of a token that are far
  CHECK(map.tile() == 32 * 132);                   // near: codes and a scale
  CHECK(map.near_sequence() == 100 * (576 + 128) * 2);
}

TEST_CASE("a budget of everything is dense attention, whatever the index says") {
  using Scheme = small<>;
  using dense = scheme::latent<scheme::dense<24, float>, 16>;
  reference<Scheme> ref(1, 1, 4, 3);
  reference<dense> same(1, 1, 4, 3);
  trial<Scheme> a(ref, {150}, 4, {.tokens = 1000});
  trial<dense> b(same, {150}, 4, {});
  for (int i = 0; i < 4; ++i) {
    // Other numbers are drawn after the keys: the same sequence for both.
    auto const x = a.step({0}, {1}, rounding);
    CHECK(a.cache.selected(0, 0)->count == a.cache.sealed_blocks(a.ids[0]));
    auto const y = b.step({0}, {1}, rounding);
    for (std::size_t c = 0; c < x.size(); ++c) REQUIRE(x[c] == Approx(y[c]).margin(1e-5));
  }
}

TEST_CASE("index scores of zero tie at the lowest tokens, negative weights turn the order round") {
  using Scheme = small<2>;
  host::executor const on;
  cache<Scheme> c(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 24}, {.sequences = 1, .tokens = 90}, {.tokens = 3});
  std::vector<float> keys(90 * 24, 0.5f), index(90 * 16), out(2 * 16);
  for (int p = 0; p < 90; ++p)
    for (int i = 0; i < 16; ++i) index[std::size_t(p * 16 + i)] = i == 0 ? float(p) : i == 1 ? -float(p) : 0.0f;
  prompt_staging<float> staging{keys.data(), nullptr, 60, 60};
  staging.index_keys = index.data();
  auto const id = c.begin_prompt(staging);
  c.finish_prompt(on, id);
  auto const q = packed_heads<float const>(keys.data(), 1, 2, 24);
  auto const chosen = [&](std::vector<float> asked, std::vector<float> weights) {
    batch_entry const one{id, 1};
    c.plan(on, {&one, 1});
    c.append(on, 0, token_rows<float>{packed_heads<float const>(keys.data(), 1, 1, 24), {}, packed_heads<float const>(index.data() + 30 * 16, 1, 1, 16)});
    asked.resize(32);
    std::swap(asked[2], asked[16]), std::swap(asked[3], asked[17]);  // two channels of each of two heads
    c.attend(on, 0, q, packed_heads(out.data(), 1, 2, 16), {packed_heads<float const>(asked.data(), 1, 2, 16), {weights.data(), 1, 2, 2}});
    std::vector<i64> ids;
    auto const found = c.selected(0, 0);
    for (auto const b : *found) ids.push_back(number(b));
    return ids;
  };
  CHECK(chosen({1, 0, 0, 0}, {1, 1}) == std::vector<i64>{57, 58, 59});
  CHECK(chosen({-1, 0, 0, 0}, {1, 1}) == std::vector<i64>{0, 1, 2});  // ReLU: all zero
  CHECK(chosen({1, 0, 0, 0}, {-1, 1}) == std::vector<i64>{0, 1, 2});  // the lower the better
  CHECK(chosen({0, -1, 0, 0}, {1, 1}) == std::vector<i64>{57, 58, 59});
  CHECK(chosen({1, 0, 0, -1}, {1, -1}) == std::vector<i64>{0, 1, 2});  // the two cancel
  CHECK(chosen({2, 0, 0, -1}, {1, -1}) == std::vector<i64>{57, 58, 59});
}

TEST_CASE("one selection by the index serves several layers, and is made ahead") {
  struct shared : small<> {
    using reuse = cellar::select::reuse_ids<2>;
  };
  reference<shared> ref(4, 1, 2, 9);
  trial<shared> t(ref, {120}, 10, {.tokens = 20});
  for (int i = 0; i < 4; ++i) {
    t.step({0}, {1}, rounding);
    check_chosen(ref, t, 0, 0, 1, 20, 2);  // the layer that selects for the last one
  }
  struct ahead : small<> {
    using reuse = cellar::select::reuse_ids<1, 2>;
  };
  host::executor const on;
  reference<ahead> other(1, 1, 2, 9);
  trial<ahead> a(other, {120}, 10, {.tokens = 20});
  batch_entry const one{a.ids[0], 1};
  a.cache.plan(on, {&one, 1});
  auto const both = other.index_query(0, 120, 0);
  a.cache.select(on, 0, index_queries<float>{packed_heads(both.data(), 1, 5, 16), {both.data() + 80, 1, 5, 5}});
  auto const chosen = a.cache.selected(0, 0);
  CHECK(chosen->count == 20);
}

TEST_CASE("rows of an index that are missing or not asked for are refused") {
  using Scheme = small<2>;
  host::executor const on;
  model_shape const shape{.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 24};
  cache<Scheme> c(on, shape, {.sequences = 1, .tokens = 90}, {.tokens = 3});
  std::vector<float> x(90 * 24, 0.5f), out(2 * 16);
  auto const rows = [&](int heads, int dim) { return packed_heads<float const>(x.data(), 1, heads, dim); };
  prompt_staging<float> staging{x.data(), nullptr, 20, 10};
  CHECK_THROWS_WITH(c.begin_prompt(staging), contains("staging.index_keys"));
  staging.index_keys = x.data();
  auto const id = c.begin_prompt(staging);
  CHECK_THROWS_WITH(c.append_chunk(on, id, 0, token_rows<float>{rows(1, 24)}), contains("index keys must be"));
  c.finish_prompt(on, id);
  batch_entry const one{id, 1};
  c.plan(on, {&one, 1});
  CHECK_THROWS_WITH(c.append(on, 0, token_rows<float>{rows(1, 24), {}, rows(1, 24)}), contains("index keys must be"));
  x[0] = undefined;
  CHECK_THROWS_WITH(c.append(on, 0, token_rows<float>{packed_heads<float const>(x.data() + 24, 1, 1, 24), {}, rows(1, 16)}), contains("index key is NaN"));
  x[0] = 0.5f;
  c.append(on, 0, token_rows<float>{rows(1, 24), {}, rows(1, 16)});
  auto const attend = [&](heads_view<float const> q, matrix_view<float const> w) { c.attend(on, 0, rows(2, 24), packed_heads(out.data(), 1, 2, 16), {q, w}); };
  matrix_view<float const> const weights{x.data(), 1, 2, 2};
  CHECK_THROWS_WITH(attend(rows(1, 16), weights), contains("index_heads"));
  CHECK_THROWS_WITH(attend(rows(2, 24), weights), contains("index_heads"));
  CHECK_THROWS_WITH(attend(rows(2, 16), {x.data(), 1, 3, 3}), contains("weights must be"));
  std::vector<float> const bad{1, undefined};
  CHECK_THROWS_WITH(attend(rows(2, 16), {bad.data(), 1, 2, 2}), contains("weight is NaN"));
  attend(rows(2, 16), weights);
  CHECK(out[0] == 0.5f);

  cache<scheme::latent<scheme::quest<24, float>, 16>> ordinary(on, shape, {.sequences = 1, .tokens = 90}, {.tokens = 16});
  CHECK_THROWS_WITH(ordinary.begin_prompt(staging), contains("staging.index_keys"));
  staging.index_keys = nullptr;
  auto const other = ordinary.begin_prompt(staging);
  CHECK_THROWS_WITH(ordinary.append_chunk(on, other, 0, token_rows<float>{rows(1, 24), {}, rows(1, 16)}), contains("leave index_keys empty"));
}

}  // namespace dsa_test
