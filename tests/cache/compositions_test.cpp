// Schemes of the policies that no named scheme has: codecs, summaries, selections and variants of attention, end to end. A source of its own, since each
// scheme is code of its own.
#include "cache/reference.hpp"

using namespace cellar;

namespace compositions_test {

namespace {

constexpr int d = 64;
namespace codecs = cellar::codec;
namespace summaries = cellar::summary;
namespace selects = cellar::select;
namespace attentions = cellar::attention;

struct box_of_fp8 : scheme_defaults<d, float> {  // ArkVale's digests; keys and values in fp8
  using key_codec = codecs::fp8_e4m3<>;
  using value_codec = codecs::fp8_e4m3<float>;
  using summary = summaries::box_digest<>;
  using select = selects::top_k;
};
struct scaled_bytes : scheme::quest<d, float> {  // attended in place: scales of two types
  using key_codec = codecs::int8<>;
  using value_codec = codecs::int8<float>;
};
struct bytes_and_halves : scheme::dense<d, bf16> {  // in place: keys with a scale, values without
  using key_codec = codecs::fp8_e4m3<f16>;
  using value_codec = codecs::identity<f16>;
};
struct served_yakv : scheme::yakv<d, float> {  // the published serving path: fp8 without scales
  using key_codec = codecs::fp8_e4m3<codecs::unscaled>;
  using value_codec = codecs::fp8_e4m3<codecs::unscaled>;
  using reduce = selects::mean_query;
};
struct integers : scheme::yakv<d, float> {
  using key_codec = codecs::int8<>;
  using value_codec = codecs::int4<>;
  using summary = summaries::quantized_key<codecs::int4<>>;
  using select = selects::top_p<std::ratio<9, 10>>;
};
struct residual_landmarks : scheme::yakv<d, float> {
  using key_codec = codecs::nvfp4;
  using value_codec = codecs::int4<48, bf16>;
  using summary = summaries::residual<codecs::higgs<2, 256>, codecs::higgs<4, 256>, 32>;
};
struct residual_chunks : scheme::mean_landmark<d, float> {  // chunks of 8, groups of 5
  using summary = summaries::residual<codecs::int8<>, codecs::int4<>, 5>;
  using select = selects::threshold<std::ratio<2>>;
};
struct within_alpha : scheme::quest<d, float> {
  using select = selects::threshold<std::ratio<1, 2>>;
};
struct centred_integers : scheme::yakv_centred<d, float> {
  using key_codec = codecs::centred<codecs::int4<>, codecs::rotated_mean>;
  using value_codec = codecs::int8<>;
  using summary = summaries::quantized_key<codecs::centred<codecs::int8<>, codecs::rotated_mean>>;
  using select = selects::top_p<std::ratio<1, 2>>;
};
struct capped : scheme::quest<d, float> {
  using attention = attentions::soft_cap<std::ratio<3, 2>>;
};
struct gemma : scheme::dense<d, float> {  // both, as every second layer of Gemma 2
  using attention = attentions::soft_cap<std::ratio<50>, attentions::sliding_window<37>>;
};
struct windowed : scheme::mean_landmark<d, float> {
  using attention = attentions::sliding_window<70>;
};
struct capped_tokens : scheme::yakv<d, float> {
  using select = selects::top_p<std::ratio<3, 4>>;
  using attention = attentions::sliding_window<90, attentions::soft_cap<std::ratio<2>>>;
};

template <class F>
void for_each_composition(F const& f) {
  f(std::type_identity<box_of_fp8>{});
  f(std::type_identity<scaled_bytes>{});
  f(std::type_identity<bytes_and_halves>{});
  f(std::type_identity<served_yakv>{});
  f(std::type_identity<integers>{});
  f(std::type_identity<residual_landmarks>{});
  f(std::type_identity<residual_chunks>{});
  f(std::type_identity<within_alpha>{});
  f(std::type_identity<centred_integers>{});
  f(std::type_identity<capped>{});
  f(std::type_identity<gemma>{});
  f(std::type_identity<windowed>{});
  f(std::type_identity<capped_tokens>{});
}

}  // namespace

TEST_CASE("attention of other compositions equals the reference over what was selected, ragged batches, decoding on") {
  for_each_composition([]<class Scheme>(std::type_identity<Scheme>) {
    static_assert(offloading_scheme<Scheme>);
    reference<Scheme> ref(2, 2, 3, 1, 2);
    trial<Scheme> t(ref, {1, 150, 67, 230}, 30, {.tokens = 48, .sinks = 3, .window = 16});
    for (int i = 0; i < 30; ++i)
      t.step(i % 3 == 0 ? std::vector<std::size_t>{0, 1, 2, 3} : std::vector<std::size_t>{3, 1},
             i % 3 == 0 ? std::vector<std::int64_t>{1, 1, 1, 1} : std::vector<std::int64_t>{1, 1}, rounding);
  });
}

TEST_CASE("several query tokens of other compositions see their own past only, and their own window") {
  for_each_composition([]<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(1, 2, 2, 5);
    trial<Scheme> t(ref, {100, 3}, 40, {.tokens = 32, .sinks = 2, .window = 8}, {}, 7);
    for (int i = 0; i < 5; ++i) t.step({0, 1}, {7, std::int64_t(i % 3 + 1)}, rounding);
  });
}

TEST_CASE("threshold and top_p select less than the budget where less is enough, and never more") {
  auto const counts = []<class Scheme>(std::type_identity<Scheme>, std::int64_t tokens) {
    reference<Scheme> ref(1, 2, 2, 6);
    trial<Scheme> t(ref, {300}, 8, {.tokens = tokens, .window = 8});
    std::vector<std::int64_t> n;
    for (int i = 0; i < 8; ++i) {
      t.step({0}, {1}, rounding);
      for (int head = 0; head < 2; ++head) {
        auto const ids = *t.cache.selected(0, head);
        CHECK(ids.count >= 1);
        CHECK(ids.count <= std::max<std::int64_t>(1, tokens / Scheme::block_tokens));
        n.push_back(ids.count);
      }
    }
    return n;
  };
  auto const check = [&]<class Scheme>(std::type_identity<Scheme> scheme) {
    auto const wide = counts(scheme, 100000), narrow = counts(scheme, 2 * Scheme::block_tokens);
    std::int64_t const all = (300 - 8) / Scheme::block_tokens;
    CHECK(*std::max_element(wide.begin(), wide.end()) < all);
    for (std::size_t i = 0; i < wide.size(); ++i) CHECK(narrow[i] == std::min<std::int64_t>(wide[i], 2));
  };
  check(std::type_identity<integers>{});
  check(std::type_identity<residual_chunks>{});
  check(std::type_identity<within_alpha>{});
  check(std::type_identity<centred_integers>{});
}

TEST_CASE("a prompt staged in 16 bits gives what the same numbers give in f32") {
  auto const check = []<class Scheme, class T>(std::type_identity<Scheme>, std::type_identity<T>) {
    constexpr int n = 150, heads = 2;
    random_numbers r(31);
    std::vector<double> const frequencies(d / 2, 0.1);
    model_shape const shape{.layers = 2, .query_heads = 4, .kv_heads = heads, .head_dim = d, .rotary = {.inverse_frequencies = {frequencies.data(), d / 2}}};
    auto keys = r.normals(shape.layers * n * heads * d), values = r.normals(shape.layers * n * heads * d);
    std::vector<T> few_keys, few_values;
    for (float& x : keys) x = to_float(few_keys.emplace_back(from_float<T>(x)));
    for (float& x : values) x = to_float(few_values.emplace_back(from_float<T>(x)));
    auto const q = r.normals(shape.query_heads * d), next = r.normals(heads * d);
    auto const outputs = [&](auto const& staging) {
      host::executor const on;
      cache<Scheme> c(on, shape, {.sequences = 1, .tokens = n + 1},
                      {.tokens = 32, .sinks = 2, .window = 8, .outliers = Scheme::outliers::keeps_outliers ? 2 : 0});
      auto const id = c.begin_prompt(staging);
      c.finish_prompt(on, id);
      batch_entry const one{id, 1};
      c.plan(on, {&one, 1});
      std::vector<float> all;
      for (int layer = 0; layer < shape.layers; ++layer) {
        std::vector<float> out(q.size());
        c.append(on, layer, packed_heads<float const>(next.data(), 1, heads, d), packed_heads<float const>(next.data(), 1, heads, d));
        c.attend(on, layer, packed_heads<float const>(q.data(), 1, shape.query_heads, d), packed_heads(out.data(), 1, shape.query_heads, d));
        all.insert(all.end(), out.begin(), out.end());
      }
      return all;
    };
    REQUIRE(outputs(prompt_staging<T>{few_keys.data(), few_values.data(), n, n}) == outputs(prompt_staging<float>{keys.data(), values.data(), n, n}));
  };
  auto const in_both = [&](auto scheme) {
    check(scheme, std::type_identity<f16>{});
    check(scheme, std::type_identity<bf16>{});
  };
  in_both(std::type_identity<scheme::yakv_centred<d, float>>{});
  in_both(std::type_identity<scheme::yakv_before_rotary<d, float>>{});  // planes of all heads
  in_both(std::type_identity<scheme::shadow_kv<d, jacobi_eigensolver, float, cellar::codec::fixed_rank<20>>>{});
}

}  // namespace compositions_test
