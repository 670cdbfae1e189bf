// Methods of other papers: the ids that each must choose on random keys, by its definition in double; whose query a kept selection is of; and the two ends,
// everything chosen and one block.
#include "cache/selection.hpp"

using namespace cellar;

namespace methods_test {

namespace {

constexpr int d = 32;

/// What a method chooses in the step itself, where it chooses ahead or for several layers and steps.
template <class Scheme>
struct at_once : Scheme {
  using reuse = cellar::select::reuse_ids<>;
};

template <class Scheme>
struct sealed_once : Scheme {
  static constexpr bool keeps_generated = true;
};

/// What it chooses of a budget that is everything: whatever its weight, however far from the highest.
template <class Scheme>
struct everything : at_once<Scheme> {
  using select = cellar::select::top_k;
};

using moba = scheme::moba<d, float, 24>;
using omni_kv = scheme::omni_kv<d, float, 3>;
using tidal_decode = scheme::tidal_decode<d, float, 2>;
using h_share = scheme::h_share<d, float, 2, 3>;
using free_kv = scheme::free_kv<d, float>;
using twilight = scheme::twilight<d, float>;
using sparq = scheme::sparq<d, float, 8>;
using double_sparsity = scheme::double_sparsity<d, float>;
using loki = scheme::loki<d, jacobi_eigensolver, float>;
using infini_gen = scheme::infini_gen<d, jacobi_eigensolver, float>;
using rabitq_cache = scheme::rabitq_cache<d, float>;
using pq_cache = scheme::pq_cache<d, float>;
using cluster_kv = scheme::cluster_kv<d, float, 3>;  // and fewer clusters than 80 tokens each would make
using retro_infer = scheme::retro_infer<d, float, 64, 16, 100>;

/// f(type) for every method, with the sizes that it is tested with.
template <class F>
void for_each_method(F const& f) {
  [&]<class... Scheme>(std::type_identity<std::tuple<Scheme...>>) {
    (f(std::type_identity<Scheme>{}), ...);
  }(std::type_identity<std::tuple<moba, omni_kv, tidal_decode, h_share, free_kv, twilight, sparq, double_sparsity, loki, infini_gen, rabitq_cache, pq_cache,
                                  cluster_kv, retro_infer>>{});
}

}  // namespace

TEST_CASE("methods choose the blocks of their papers' highest scores, and as many as their papers say") {
  for_each_method([]<class Scheme>(std::type_identity<Scheme>) {
    for (float const bias : {0.0f, 2.0f}) {
      reference<at_once<Scheme>> ref(1, 2, 3, 21, bias);
      check_selection(ref, 330, {.tokens = 96, .sinks = 2, .window = 8}, 4, 1, 3 * rounding, 0.02);
      check_selection(ref, 330, {.tokens = 96, .sinks = 2, .window = 8}, 2, 3, 3 * rounding, 0.02);
    }
  });
}

TEST_CASE("methods whose budget is everything attend as dense does, and with one block to choose, or none, attend to what there is") {
  for_each_method([]<class Scheme>(std::type_identity<Scheme>) {
    reference<everything<Scheme>> ref(2, 2, 2, 22);
    trial<everything<Scheme>> t(ref, {150, 40}, 8, {.tokens = 200, .window = 4});
    std::vector<float> ours;
    for (int i = 0; i < 4; ++i) ours = t.step({0, 1}, {1, 1}, rounding);
    for (std::int64_t who = 0; who < 2; ++who) CHECK(t.cache.selected(who, 0)->count == t.cache.sealed_blocks(t.ids[std::size_t(who)]));
    reference<scheme::dense<d, float>> same(2, 2, 2, 22);
    trial<scheme::dense<d, float>> dense(same, {150, 40}, 8, {});
    std::vector<float> theirs;
    for (int i = 0; i < 4; ++i) theirs = dense.step({0, 1}, {1, 1}, rounding);
    for (std::size_t i = 0; i < ours.size(); ++i) REQUIRE(ours[i] == Approx(theirs[i]).margin(rounding));

    constexpr std::int64_t block = Scheme::block_tokens, kept = Scheme::keeps_generated;  // what seals must then be there with the prompt
    reference<at_once<Scheme>> few(1, 1, 1, 23);
    trial<at_once<Scheme>> one(few, {block + kept, 1}, 3, {.tokens = 4 * block, .window = 1});
    one.step({0, 1}, {1, 1}, Scheme::remainder::estimates ? 1e300 : rounding);
    CHECK(one.cache.selected(0, 0)->count == 1);
    CHECK(one.cache.selected(1, 0)->count == (block == 1 && !kept));
  });
}

namespace {

using chosen_ids = std::vector<std::vector<std::int64_t>>;  // [layer][id] of KV head 0

/// Steps of one token of a sequence, with the ids of every layer; `select` is called before, between or after.
template <class Scheme>
struct watched {
  reference<Scheme> ref;
  sequence_data data;
  host::executor on;
  cellar::cache<Scheme> cache;
  sequence_id id;

  explicit watched(int layers) : ref(layers, 1, 2, 24), data(ref.sequence(200, 240)), cache(on, ref.shape(), {.sequences = 1, .tokens = 240}, budget_of()) {
    std::vector<float> keys, values;
    id = cache.begin_prompt(ref.staging(data, keys, values));
    cache.finish_prompt(on, id);
  }
  static budget budget_of() { return {.tokens = 64, .window = 8, .dense_layers = Scheme::published.dense_layers}; }

  /// ahead_of(layer, step): the step whose query is given to select before the layer appends; negative: select is not called.
  template <class AheadOf>
  chosen_ids step(int number, AheadOf const& ahead_of) {
    batch_entry const one{id, 1};
    cache.plan(on, {&one, 1});
    chosen_ids all;
    std::int64_t const p = cache.length(id) - 1;
    for (int layer = 0; layer < ref.shape().layers; ++layer) {
      if constexpr (operation::keeps_selections<Scheme>)
        if (int const of = ahead_of(layer); of >= 0) {
          auto const q = ref.query(0, of, layer);
          cache.select(on, layer, packed_heads<float const>(q.data(), 1, 2, d));
        }
      auto const q = ref.query(0, number, layer);
      std::vector<float> out(q.size());
      cache.append(on, layer, packed_heads<float const>(ref.row(data.keys, data, layer, p), 1, 1, d),
                   packed_heads<float const>(ref.row(data.values, data, layer, p), 1, 1, d));
      cache.attend(on, layer, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
      all.emplace_back();
      if (auto const ids = cache.selected(0, 0))
        for (auto const b : *ids) all.back().push_back(cellar::number(b));
    }
    return all;
  }
  void select_after(int number) {
    for (int layer = 0; layer < ref.shape().layers; ++layer) {
      auto const q = ref.query(0, number, layer);
      cache.select(on, layer, packed_heads<float const>(q.data(), 1, 2, d));
    }
  }
};

constexpr auto never = [](int) { return -1; };

}  // namespace

TEST_CASE("methods that share a selection have the layers between, and the steps, attend to the ids of the layer that chose") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, int layers, i64 steps) {
    watched<Scheme> shared(8);
    watched<at_once<Scheme>> alone(8);
    chosen_ids last(8);
    int const dense = Scheme::published.dense_layers;
    for (int i = 0; i < 6; ++i) {
      auto const a = shared.step(i, never), b = alone.step(i, never);
      for (int layer = 0; layer < dense; ++layer) CHECK(a[std::size_t(layer)].empty());
      for (int layer = dense; layer < 8; ++layer) {
        auto const chooser = std::size_t(dense + (layer - dense) / layers * layers);
        if (i % steps == 0) last[std::size_t(layer)] = b[chooser];
        CHECK(a[std::size_t(layer)] == last[std::size_t(layer)]);
      }
      CHECK(b[3] != b[4]);
    }
  };
  check(std::type_identity<omni_kv>{}, 3, 1);
  check(std::type_identity<tidal_decode>{}, 2, 1);
  check(std::type_identity<h_share>{}, 2, 3);
}

TEST_CASE("free_kv attends to what the query before it chose, and infini_gen to what a guessed query chose before the layer appends") {
  watched<free_kv> ahead(2);
  watched<at_once<free_kv>> alone(2);
  chosen_ids before;
  for (int i = 0; i < 8; ++i) {
    auto const a = ahead.step(i, never), b = alone.step(i, never);
    CHECK(a == (i == 0 ? b : before));
    before = b;
    ahead.select_after(i);
  }
  watched<sealed_once<infini_gen>> guessed(2);  // before the layer appends, what it seals is not there
  watched<at_once<sealed_once<infini_gen>>> exact(2);
  for (int i = 0; i < 6; ++i) CHECK(guessed.step(i, [&](int) { return 100 + i; }) == exact.step(100 + i, never));
}

TEST_CASE("h_share and its like differ from what they share") {  // the sharing tests could not fail if all choices were one
  watched<at_once<h_share>> alone(8);
  auto const a = alone.step(0, never), b = alone.step(1, never);
  CHECK(a[2] != a[3]);
  CHECK(a[2] != b[2]);
}

TEST_CASE("sparq weighs its few channels so that the softmax is as sharp, and the mean value stands for the rest") {
  reference<sparq> ref(1, 1, 2, 25);
  trial<sparq> t(ref, {200}, 4, {.tokens = 40, .window = 8});
  auto const out = t.step({0}, {1}, 0, false);
  auto const& s = t.data[0];
  std::int64_t const length = 201, sealed = t.cache.sealed_blocks(t.ids[0]);
  definitions::by<sparq, sparq::summary> const estimate(ref, s, 0, 0, sealed);
  auto const keys = ref.head_rows(s.keys, s, 0, 0, 0, length), values = ref.head_rows(s.values, s, 0, 0, 0, length), q = ref.query(0, 200, 0);
  for (int g = 0; g < 2; ++g) {
    std::vector<double> logits(std::size_t(length), 0.0), mean(d, 0.0), expected(d, 0.0);
    for (std::int64_t p = 0; p < length; ++p)
      for (int c = 0; c < d; ++c)
        logits[std::size_t(p)] += double(q[std::size_t(g * d + c)]) * double(keys[std::size_t(p * d + c)]) * double(ref.shape().scale());
    std::int64_t const in_prompt = 200 - 8;
    for (std::int64_t p = 0; p < in_prompt; ++p)
      for (int c = 0; c < d; ++c) mean[std::size_t(c)] += double(values[std::size_t(p * d + c)]) / double(in_prompt);
    double sum = 0;
    for (std::int64_t p = 0; p < length; ++p) {
      auto const ids = *t.cache.selected(0, 0);
      bool const is_far = p < sealed, is_chosen = std::any_of(
                                          ids.begin(), ids.end(), [&](auto id) { return number(id) == p; });
      double const w = std::exp(is_far && !is_chosen ? estimate(q.data() + g * d, p).logit * double(ref.shape().scale()) : logits[std::size_t(p)]);
      sum += w;
      for (int c = 0; c < d; ++c) expected[std::size_t(c)] += w * (is_far && !is_chosen ? mean[std::size_t(c)] : double(values[std::size_t(p * d + c)]));
    }
    for (int c = 0; c < d; ++c) REQUIRE(double(out[std::size_t(g * d + c)]) == Approx(expected[std::size_t(c)] / sum).margin(rounding));
  }
}

namespace {

/// What a scheme is composed of: the tests above take its policies from itself.
template <class Scheme, class Summary, class Reduce, class Select, class Reuse>
constexpr bool is_composed_of = std::is_same_v<typename Scheme::summary, Summary>&& std::is_same_v<typename Scheme::reduce, Reduce>&&
    std::is_same_v<typename Scheme::select, Select>&& std::is_same_v<typename Scheme::reuse, Reuse>;

}  // namespace

TEST_CASE("methods are composed as their papers have it, with the published budgets") {
  using namespace cellar::select;
  namespace summary = cellar::summary;
  namespace codec = cellar::codec;
  using key = summary::mean<>;
  using all_heads = max_of_softmaxes;
  CHECK(is_composed_of<scheme::moba<128>, summary::mean<>, all_heads, top_k, reuse_ids<>>);
  CHECK(is_composed_of<scheme::omni_kv<128>, key, all_heads, top_k, reuse_ids<8>>);
  CHECK(is_composed_of<scheme::tidal_decode<128>, key, all_heads, top_k, reuse_ids<11>>);
  CHECK(is_composed_of<scheme::h_share<128>, key, all_heads, top_k, reuse_ids<2, 2>>);
  CHECK(is_composed_of<scheme::free_kv<128>, summary::min_max<>, mean_of_softmaxes, top_k, reuse_ids<1, 2>>);
  CHECK(is_composed_of<scheme::twilight<128>, summary::quantized_key<codec::int4<128>>, all_heads, top_p<std::ratio<95, 100>>, reuse_ids<>>);
  CHECK(is_composed_of<scheme::sparq<128>, summary::by_largest_channels<32, key>, all_heads, top_k, reuse_ids<>>);
  CHECK(is_composed_of<double_sparsity, summary::mapped<summary::label_channels<codec::rank_share<1, 16>>, summary::quantized_key<codec::int4<d>>>, all_heads,
                       top_k, reuse_ids<>>);
  CHECK(is_composed_of<loki, summary::mapped<summary::principal_axes<codec::rank_share<1, 4>, jacobi_eigensolver>, summary::mean<float>>, all_heads, top_k,
                       reuse_ids<>>);
  CHECK(is_composed_of<infini_gen, summary::mapped<summary::principal_axes<codec::rank_share<1, 5>, jacobi_eigensolver>, summary::mean<float>>, all_heads,
                       threshold<std::ratio<4>>, reuse_ids<1, 2>>);
  CHECK(is_composed_of<scheme::rabitq_cache<128>, summary::mapped<summary::around_mean, summary::quantized_key<codec::signs<1, bf16>>>, all_heads,
                       top_p<std::ratio<95, 100>>, reuse_ids<>>);
  CHECK(is_composed_of<scheme::pq_cache<128>, summary::quantized_key<codec::product_codes<2, 64>>, sum_of_logits, top_k, reuse_ids<>>);
  CHECK((scheme::pq_cache<128>::published.share == 0.1 && scheme::pq_cache<128>::published.sinks == 32 && scheme::pq_cache<128>::block_tokens == 1));
  CHECK(is_composed_of<scheme::cluster_kv<128>, summary::quantized_key<codec::cluster_codes<512, 80, 0, false, 20>>, all_heads, top_k, reuse_ids<>>);
  CHECK(
      is_composed_of<scheme::retro_infer<128>, summary::quantized_key<codec::cluster_codes<8192, 16, 8192, true, 10>>, mean_of_softmaxes, top_k, reuse_ids<>>);
  CHECK((std::is_same_v<retro_infer::remainder, attention::mean_value_by_class> && std::is_same_v<cluster_kv::remainder, attention::no_remainder>));
  CHECK((cluster_kv::published.tokens == 1008 && cluster_kv::published.sinks == 16 && cluster_kv::published.dense_layers == 2));
  CHECK((retro_infer::published.share == 0.018 && retro_infer::published.sinks == 4 && retro_infer::published.window == 64));
  CHECK((cluster_kv::block_tokens == 1 && retro_infer::block_tokens == 1 && cluster_kv::keeps_generated && retro_infer::keeps_generated));

  using magic_pig = scheme::magic_pig<128>;
  CHECK(is_composed_of<magic_pig, summary::hash_tables<10, 150>, max_of_logits, at_least<std::ratio<2>>, reuse_ids<>>);
  CHECK((std::is_same_v<magic_pig::remainder, attention::sampled<>> && magic_pig::keeps_generated && magic_pig::block_tokens == 1));
  CHECK((magic_pig::published.sinks == 4 && magic_pig::published.window == 64 && magic_pig::published.dense_layers == 1));

  CHECK((scheme::moba<128>::block_tokens == 512 && scheme::moba<128>::published.tokens == 1024 && scheme::moba<128>::published.window == 512));
  CHECK((scheme::free_kv<128>::block_tokens == 32 && scheme::twilight<128>::block_tokens == 1 && scheme::sparq<128>::block_tokens == 1));
  CHECK((scheme::tidal_decode<128>::published.dense_layers == 2 && scheme::tidal_decode<128>::published.tokens == 256));
  CHECK((scheme::omni_kv<128>::published.dense_layers == 2 && scheme::h_share<128>::published.dense_layers == 2));
  CHECK((loki::published.share == 0.25 && double_sparsity::published.share == 0.0625 && infini_gen::published.share == 0.2));
  CHECK((loki::block_tokens == 1 && double_sparsity::block_tokens == 1 && infini_gen::block_tokens == 1 && rabitq_cache::block_tokens == 1));
}

}  // namespace methods_test
