#include "cache/reference.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace attend_test {

TEST_CASE("attention equals the reference over what was selected: all schemes, ragged batches, decoding on") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(2, 2, 3, 1, 3);
    trial<Scheme> t(ref, {1, 150, 67, 300}, 40, {.tokens = 32, .sinks = 4, .window = 16});
    for (int i = 0; i < (is_sanitized ? 10 : 40); ++i)
      t.step(i % 3 == 0 ? std::vector<std::size_t>{0, 1, 2, 3} : std::vector<std::size_t>{3, 1},
             i % 3 == 0 ? std::vector<std::int64_t>{1, 1, 1, 1} : std::vector<std::int64_t>{1, 1}, rounding);
  });
}

TEST_CASE("a budget above the length selects everything, exactly") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    if constexpr (!std::is_same_v<typename Scheme::select, select::none>) {
      reference<Scheme> ref(1, 2, 2, 2);
      trial<Scheme> t(ref, {130, 77}, 3, {.tokens = 100000, .window = 5});
      for (int i = 0; i < 3; ++i) {
        t.step({0, 1}, {1, 1}, rounding);
        for (std::int64_t s = 0; s < 2; ++s)
          for (int head = 0; head < 2; ++head) {
            auto const ids = t.cache.selected(s, head);
            if (ids) CHECK(ids->count == t.cache.sealed_blocks(t.ids[std::size_t(s)]));
          }
      }
    }
  });
}

TEST_CASE("with exact codecs and everything selected, every scheme equals dense attention") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    if constexpr (Scheme::key_codec::is_exact && !std::is_same_v<typename Scheme::select, select::none>) {
      using dense = scheme::dense<32, float>;
      reference<Scheme> ref(1, 1, 4, 3);
      reference<dense> same(1, 1, 4, 3);
      trial<Scheme> a(ref, {200}, 4, {.share = 1});
      trial<dense> b(same, {200}, 4, {});
      for (int i = 0; i < 4; ++i) {
        auto const x = a.step({0}, {1}, rounding), y = b.step({0}, {1}, rounding);
        for (std::size_t c = 0; c < x.size(); ++c) REQUIRE(x[c] == Approx(y[c]).margin(1e-5));
      }
    }
  });
}

TEST_CASE("several query tokens in a step see their own past only") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(1, 2, 2, 5);
    trial<Scheme> t(ref, {100, 3}, 40, {.tokens = 32, .sinks = 2, .window = 8}, {}, 7);
    for (int i = 0; i < 5; ++i) t.step({0, 1}, {7, std::int64_t(i % 3 + 1)}, rounding);
  });
}

TEST_CASE("storage in bf16 and f16 rounds keys and values and nothing else") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(1, 2, 2, 6);
    trial<Scheme> t(ref, {120}, 20, {.tokens = 32, .sinks = 1, .window = 8});
    for (int i = 0; i < 20; ++i) t.step({0}, {1}, rounding);
  };
  check(std::type_identity<scheme::dense<64, bf16>>{});
  check(std::type_identity<scheme::dense<64, f16>>{});
  check(std::type_identity<scheme::quest<64, bf16>>{});
  check(std::type_identity<scheme::yakv_centred<64, f16>>{});
}

namespace {

template <int D>
struct token_major_dense : scheme::dense<D, float> {
  using layout = cellar::layout::token_major;
};
template <int D>
struct block_centred : scheme::yakv<D, float> {  // one mean for 32 tokens, blocks of 32
  static constexpr int block_tokens = 32;
  using key_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<32>>;
  using value_codec = cellar::codec::centred<cellar::codec::identity<f16>, cellar::codec::block_mean<16>>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256>>;
};
using cellar::scope;
template <int Dimension>
using over_all = cellar::codec::higgs<Dimension, 256, 0, bf16, scope::all_heads>;
template <int D>
struct over_all_heads : scheme::yakv<D, float> {  // everything over all heads
  using key_codec = over_all<2>;
  using value_codec = over_all<2>;
  using summary = cellar::summary::quantized_key<over_all<4>>;
};
template <int D>
struct before_rotary_over_all : scheme::yakv<D, float> {  // keys over all heads before rotary embedding, values of one
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::before_rotary<over_all<2>>;
};
template <int D>
struct before_rotary_of_one : scheme::quest<D, float> {  // token-major planes of one head beside shared ones
  using layout = cellar::layout::token_major;
  using key_codec = cellar::codec::before_rotary<cellar::codec::higgs<2, 256>>;
  using value_codec = over_all<2>;
};
template <int D>
struct low_rank_keys : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
  using layout = cellar::layout::head_major;
  using key_codec = cellar::codec::low_rank<cellar::codec::fixed_rank<24>, jacobi_eigensolver, float>;
};
template <int D>
struct by_mean_query : scheme::yakv<D, float> {
  using reduce = cellar::select::mean_query;
};
template <int D>
struct by_sum : scheme::quest<D, float> {
  using reduce = cellar::select::sum_of_logits;
};

}  // namespace

TEST_CASE("other compositions: token-major far memory, block centres, other reductions") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(2, 2, 3, 7, 2);
    trial<Scheme> t(ref, {170, 45}, 30, {.tokens = 64, .sinks = 1, .window = 8});
    for (int i = 0; i < (is_sanitized ? 6 : 30); ++i) t.step({0, 1}, {1, 1}, rounding);
  };
  check(std::type_identity<token_major_dense<32>>{});
  check(std::type_identity<block_centred<32>>{});
  check(std::type_identity<over_all_heads<32>>{});
  check(std::type_identity<before_rotary_over_all<32>>{});
  check(std::type_identity<before_rotary_of_one<32>>{});
  check(std::type_identity<low_rank_keys<32>>{});
  check(std::type_identity<by_mean_query<32>>{});
  check(std::type_identity<by_sum<32>>{});
}

TEST_CASE("dense first layers attend to everything") {
  using Scheme = scheme::yakv<32, float>;
  reference<Scheme> ref(3, 1, 2, 8);
  trial<Scheme> t(ref, {150}, 2, {.tokens = 4, .window = 8, .dense_layers = 2});
  t.step({0}, {1}, rounding);  // every layer's output, by what `selected` says of it
  std::vector<float> q(2 * 32, 0.1f), out(q.size()), k(32, 0.f);
  host::executor const on;
  batch_entry const one{t.ids[0], 1};
  t.cache.plan(on, {&one, 1});
  for (int layer = 0; layer < 3; ++layer) {
    t.cache.append(on, layer, packed_heads<float const>(k.data(), 1, 1, 32), packed_heads<float const>(k.data(), 1, 1, 32));
    t.cache.attend(on, layer, packed_heads<float const>(q.data(), 1, 2, 32), packed_heads(out.data(), 1, 2, 32));
    CHECK(t.cache.selected(0, 0).has_value() == (layer == 2));
  }
  CHECK(t.cache.selected(0, 0)->count == 4);
}

TEST_CASE("results are bit-identical for any threads and any batch") {
  for_each_scheme<32>([]<class Scheme>(std::type_identity<Scheme>) {
    // Outputs by sequence, of steps taken together or one sequence after another.
    auto const outputs = [](host::executor const& on, bool together) {
      reference<Scheme> ref(2, 2, 3, 9);
      trial<Scheme> t(ref, {150, 70, 90}, 8, {.tokens = 32, .sinks = 2, .window = 8}, on);
      std::vector<std::vector<float>> of(3);
      std::size_t const row = 2 * 3 * 32;
      for (int i = 0; i < 4; ++i) {
        if (together) {
          auto const x = t.step({2, 0, 1}, {1, 1, 1}, 0, false);
          for (std::size_t layer = 0; layer < 2; ++layer)
            for (std::size_t s = 0; s < 3; ++s)
              of[(s + 2) % 3].insert(of[(s + 2) % 3].end(), x.begin() + long((layer * 3 + s) * row), x.begin() + long((layer * 3 + s + 1) * row));
        } else {
          for (std::size_t s = 0; s < 3; ++s) {
            auto const x = t.step({s}, {1}, 0, false);
            of[s].insert(of[s].end(), x.begin(), x.end());
          }
        }
      }
      return of;
    };
    auto const serial = outputs({}, false);
    REQUIRE(outputs({}, true) == serial);
    for (int const threads : {1, 2, 5}) {
      host::thread_pool pool(threads);
      REQUIRE(outputs(host::executor(pool), false) == serial);
      REQUIRE(outputs(host::executor(pool), true) == serial);
    }
  });
}

namespace {

struct scaled_rows : scheme::quest<32, bf16> {  // attended in place, of other types than near rows, with scales
  using key_codec = cellar::codec::int8<>;
  using value_codec = cellar::codec::fp8_e4m3<f16>;
};

}  // namespace

TEST_CASE("at every vector level attention equals the reference, and no bit depends on threads") {
  for (host::vector_level const level : host::vector_levels) {
    if (!host::is_supported(level)) continue;
    auto const check = [&]<class Scheme>(std::type_identity<Scheme>) {
      auto const outputs = [&](host::executor const& on) {
        reference<Scheme> ref(1, 2, 3, 21, 1);
        ref.kernels = host::kernels_of(level);
        trial<Scheme> t(ref, {150, 300}, 6, {.tokens = 32, .sinks = 4, .window = 16}, on.at_level(level));
        std::vector<float> all;
        for (int i = 0; i < 3; ++i) {
          auto const x = t.step({1, 0}, {1, 1}, rounding);
          all.insert(all.end(), x.begin(), x.end());
        }
        return all;
      };
      host::thread_pool pool(5);
      REQUIRE(outputs({}) == outputs(host::executor(pool)));
    };
    for_each_scheme<32>(check);
    check(std::type_identity<scaled_rows>{});
  }
}

namespace {

struct with_remainder : scheme::shadow_kv<32, jacobi_eigensolver, float, cellar::codec::fixed_rank<20>> {  // outliers too
  using remainder = cellar::attention::mean_value;
};

}  // namespace

TEST_CASE("fewer heads than threads: the parts of an attention and the tiles of a scoring are shared out, and no bit changes") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    auto const outputs = [](host::executor const& on) {
      reference<Scheme> ref(1, 2, 3, 22);
      trial<Scheme> t(ref, {3300, 90}, 8, {.tokens = 2100, .sinks = 3, .window = 20, .outliers = Scheme::outliers::keeps_outliers ? 2 : 0}, on, 2);
      std::vector<float> all;
      for (std::int64_t const tokens : {1, 2, 1}) {
        auto const x =
            t.step(tokens == 1 ? std::vector<std::size_t>{1, 0} : std::vector<std::size_t>{0},
                   tokens == 1 ? std::vector<std::int64_t>{1, 1} : std::vector<std::int64_t>{2}, rounding, on.workers() == 1 && !Scheme::remainder::estimates);
        all.insert(all.end(), x.begin(), x.end());
      }
      return all;
    };
    auto const serial = outputs({});
    for (int const threads : {3, 5}) {
      host::thread_pool pool(threads);
      REQUIRE(outputs(host::executor(pool)) == serial);
    }
  };
  for_each_scheme<32>(check);
  check(std::type_identity<with_remainder>{});
  check(std::type_identity<scaled_rows>{});
}

}  // namespace attend_test
