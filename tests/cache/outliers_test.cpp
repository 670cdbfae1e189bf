#include <numeric>

#include "cache/reference.hpp"

using namespace cellar;

namespace outliers_test {

namespace {

template <int D>
struct with_outliers : scheme::mean_landmark<D, float> {  // codes that lose something, so that an exact row shows
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::higgs<2, 16>;
  using value_codec = cellar::codec::higgs<2, 16>;
  using outliers = cellar::select::least_cosine;
};
template <int D>
struct summed : with_outliers<D> {
  using reduce = cellar::select::sum_of_logits;
};
template <int D>
struct by_mean : with_outliers<D> {
  using reduce = cellar::select::mean_query;
};

}  // namespace

TEST_CASE("the prompt's worst blocks stay near and exact, and are never selected") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    constexpr int b = Scheme::block_tokens;
    for (i64 const outliers : {0, 1, 5, 1000}) {
      reference<Scheme> ref(2, 2, 3, 61);
      trial<Scheme> t(ref, {170}, 60, {.tokens = 48, .sinks = 3, .window = 9, .dense_layers = 1, .outliers = outliers}, {}, 1, 1);
      auto const& s = t.data[0];
      i64 const sealed = t.cache.sealed_blocks(t.ids[0]);
      for (int layer = 0; layer < 2; ++layer)
        for (int head = 0; head < 2; ++head) {
          std::vector<double> cosine;
          for (i64 block = 0; block < sealed; ++block) {
            auto const rows = ref.head_rows(s.keys, s, layer, head, 3 + block * b, 3 + (block + 1) * b);
            std::vector<double> mean(Scheme::head_dim, 0.0);
            for (std::size_t i = 0; i < rows.size(); ++i) mean[i % mean.size()] += double(rows[i]) / b;
            double const size = std::sqrt(std::inner_product(mean.begin(), mean.end(), mean.begin(), 0.0));
            double least = 1;
            for (int i = 0; i < b; ++i) {
              double product = 0, length = 0;
              for (std::size_t c = 0; c < mean.size(); ++c) {
                double const x = double(rows[std::size_t(i) * mean.size() + c]);
                product += x * mean[c];
                length += x * x;
              }
              least = std::min(least, product / size / std::sqrt(length));
            }
            cosine.push_back(least);
          }
          std::vector<i64> order(static_cast<std::size_t>(sealed));
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(), [&](i64 x, i64 y) { return cosine[std::size_t(x)] < cosine[std::size_t(y)]; });
          order.resize(std::size_t(std::min(outliers, sealed)));
          std::sort(order.begin(), order.end());
          auto const kept = t.cache.outliers(layer, t.ids[0], head);
          REQUIRE(kept.count == i64(order.size()));
          for (i64 i = 0; i < kept.count; ++i) REQUIRE(number(kept[i]) == order[std::size_t(i)]);
        }
      i64 const near_token = 2 * 2 * Scheme::head_dim * i64(sizeof(float));
      CHECK(t.cache.usage(t.ids[0]).always_near == (170 - sealed * b) * near_token + 2 * std::min(outliers, sealed) * (4 + b * near_token / 2));
      for (int i = 0; i < 30; ++i) t.step({0}, {1}, rounding);  // reference.hpp checks what is attended
      auto const fork = t.fork(0);
      t.truncate(0, 90);
      for (int i = 0; i < 20; ++i) t.step({0, fork}, {1, 1}, rounding);
      for (auto const id : t.cache.outliers(0, t.ids[0], 0)) CHECK(number(id) < 87 / b);
    }
  };
  check(std::type_identity<with_outliers<16>>{});
  check(std::type_identity<summed<16>>{});
  check(std::type_identity<by_mean<16>>{});
}

TEST_CASE("outliers are refused where the scheme has no rule for them") {
  model_shape const shape{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16};
  CHECK_THROWS_WITH((cache<scheme::quest<16>>(host::executor{}, shape, {.tokens = 10}, {.tokens = 16, .outliers = 1})), contains("no rule for outliers"));
  CHECK_THROWS_WITH((cache<with_outliers<16>>(host::executor{}, shape, {.tokens = 10}, {.tokens = 16, .outliers = -1})), contains("negative"));
}

}  // namespace outliers_test
