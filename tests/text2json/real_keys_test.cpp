// Selection and output of every scheme on keys, values and queries of real models, against double precision. tests/cache has the same on random ones.
#include <numeric>
#include <typeinfo>

#include "cache/selection.hpp"
#include "cellar/interop/lapack.hpp"
#include "codec/higgs_oracle.hpp"
#include "summary/flat.hpp"
#include "text2json/recorded_keys.hpp"

using namespace cellar;
using namespace recorded_keys;

namespace {

template <int Dimension, int Points, std::uint32_t Seed>
void check_higgs(recorded_layer const& layer) {
  codec::higgs<Dimension, Points, Seed> const coder;
  row_bytes const size = coder.bytes(d);
  std::vector<std::byte> codes(std::size_t(size.codes)), scales(std::size_t(size.scales));
  serial_team t(nullptr, 0, host::executor().kernels());  // as the cache codes
  for (std::int64_t row = 0; row < layer.prompt * layer.shape.kv_heads; row += 7) {
    std::vector<float> const x(layer.keys.begin() + row * d, layer.keys.begin() + (row + 1) * d);
    std::vector<float> y(d);
    row_parts<std::byte> const at{codes.data(), scales.data(), 0, 0};
    coder.encode(t, rows_of<d>(x), at);
    coder.decode(t, at, rows_of<d>(y));
    double const norm = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0)), scale = double(to_float(cellar::detail::load<bf16>(scales.data())));
    REQUIRE(scale == Approx(norm).epsilon(0.005));
    higgs_oracle<Dimension, Points, Seed>::check_codes(x, codes.data(), scale);
    auto const expected = higgs_oracle<Dimension, Points, Seed>::decode(codes.data(), scale, d);
    for (int c = 0; c < d; ++c) REQUIRE(double(y[std::size_t(c)]) == Approx(expected[std::size_t(c)]).margin(1e-5 * norm));
  }
}

/// Keys of a rank, turned back to before rotary embedding, lose what the eigenvalues beyond that rank hold and no more: those by Jacobi, in double.
template <class Scheme>
void check_low_rank(recorded_layer const& layer, int rank) {
  reference<Scheme> ref(layer);
  auto const s = ref.sequence(layer.prompt, layer.prompt);
  auto const n = int(ref.width());
  std::vector<double> plain, second(std::size_t(n * n), 0.0), vectors(std::size_t(n * n));
  double energy = 0, lost = 0;
  for (std::int64_t p = 0; p < layer.prompt; ++p) {
    std::vector<double> row(std::size_t(n), 0.0);
    for (int h = 0; h < layer.shape.kv_heads; ++h)
      for (int i = 0; i < d / 2; ++i) {
        bool const is_adjacent = layer.shape.rotary.pairing == rotary_pairing::adjacent;
        int const a = h * d + (is_adjacent ? 2 * i : i), b = is_adjacent ? a + 1 : a + d / 2;
        double const angle = -double(p) * layer.shape.rotary.inverse_frequencies[i], x = double(s.keys[std::size_t(p * n + a)]),
                     y = double(s.keys[std::size_t(p * n + b)]);
        row[std::size_t(a)] = x * std::cos(angle) - y * std::sin(angle);
        row[std::size_t(b)] = x * std::sin(angle) + y * std::cos(angle);
      }
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) second[std::size_t(i * n + j)] += row[std::size_t(i)] * row[std::size_t(j)];
    plain.insert(plain.end(), row.begin(), row.end());
  }
  for (int i = 0; i < n; ++i) energy += second[std::size_t(i * n + i)];
  REQUIRE(jacobi_eigensolver{}(second.data(), n, n, vectors.data()));
  std::vector<double> values;  // of the eigenvectors: what is left on the diagonal
  for (int i = 0; i < n; ++i) values.push_back(second[std::size_t(i * n + i)]);
  std::sort(values.begin(), values.end());
  double const least = std::accumulate(values.begin(), values.end() - rank, 0.0);
  for (int h = 0; h < layer.shape.kv_heads; ++h) {
    auto const coded = ref.template far<typename Scheme::key_codec>(s.keys, s.original_keys, s, 0, h, 0, layer.prompt);
    for (std::int64_t p = 0; p < layer.prompt; ++p)
      for (int c = 0; c < d; ++c)
        lost += std::pow(double(coded[std::size_t(p * d + c)]) - double(s.keys[std::size_t((p * layer.shape.kv_heads + h) * d + c)]), 2);
  }
  INFO("rank " << rank << " loses " << lost << ", at best " << least << " of " << energy);
  CHECK(lost == Approx(least).epsilon(0.01).margin(1e-8 * energy));
  CHECK(least < 0.5 * energy);
}

struct bounded_codes : scheme::exact_key<d, float> {
  using summary = cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::higgs<2, 256>>,
                                             cellar::summary::quantized_key<cellar::codec::identity<f16>, 1>, 1>;
  using reduce = cellar::select::max_of_logits;
};
struct bounded_boxes : scheme::exact_key<d, float> {
  using summary = cellar::summary::two_level<cellar::summary::min_max<f16>, cellar::summary::mean<float>, 16>;
  using reduce = cellar::select::mean_query;
};

template <class Scheme>
struct at_once : Scheme {
  using reuse = cellar::select::reuse_ids<>;
};
template <class Scheme>
struct watched : Scheme {
  static constexpr bool estimates_missed = true;
};

/// What a bound prunes changes no id and no output.
template <class Scheme>
void check_levels(recorded_layer const& layer, budget const& b) {
  reference<Scheme> ref(layer);
  reference<flat<Scheme>> same(layer);
  trial<Scheme> two(ref, {layer.prompt}, layer.steps, b);
  trial<flat<Scheme>> one(same, {layer.prompt}, layer.steps, b);
  for (std::int64_t i = 0; i < layer.steps; ++i) {
    REQUIRE(two.step({0}, {1}, 0, false) == one.step({0}, {1}, 0, false));
    for (int head = 0; head < layer.shape.kv_heads; ++head) {
      auto const x = *two.cache.selected(0, head), y = *one.cache.selected(0, head);
      REQUIRE(std::equal(x.begin(), x.end(), y.begin(), y.end()));
    }
  }
}

using shadow_kv = scheme::shadow_kv<d, interop::lapack_eigensolver, float, codec::rank_share<160, 1024>>;

void check(char const* variable) {
  bool is_first = true;
  for_layers(variable, is_sanitized ? 300 : 700, 4, [&](recorded_layer const& layer) {
    if (is_sanitized && !is_first) return;
    is_first = false;
    double const tolerance = output_rounding(layer);
    INFO("layer of " << layer.prompt << " tokens, tolerance " << tolerance);
    auto const chosen = [&]<class Scheme>(std::type_identity<Scheme>, budget const& b, double most_rounding = 0.05) {
      INFO(typeid(Scheme).name());
      reference<Scheme> ref(layer);
      check_selection(ref, layer.prompt, b, int(layer.steps), 1, tolerance, most_rounding);
    };
    auto const output = [&]<class Scheme>(std::type_identity<Scheme>, budget const& b) {
      reference<Scheme> ref(layer);
      trial<Scheme> t(ref, {layer.prompt}, layer.steps, b);
      for (std::int64_t i = 0; i < layer.steps; ++i) t.step({0}, {1}, tolerance);
    };
    budget const b{.tokens = 96, .sinks = 2, .window = 32}, with_outliers{.tokens = 96, .sinks = 2, .window = 32, .outliers = 5};
    output(std::type_identity<scheme::dense<d, float>>{}, {});
    output(std::type_identity<scheme::sink_window<d, float>>{}, {.sinks = 4, .window = 60});
    chosen(std::type_identity<scheme::quest<d, float>>{}, b);
    chosen(std::type_identity<scheme::yakv_centred<d, float>>{}, b);
    chosen(std::type_identity<shadow_kv>{}, with_outliers);
    chosen(std::type_identity<scheme::yakv_published<d, float>>{}, b);
    check_higgs<2, 256, 0>(layer);
    check_higgs<4, 256, 0>(layer);
    check_higgs<4, 256, 1>(layer);
    check_low_rank<shadow_kv>(layer, 160 * int(layer.shape.kv_heads) * d / 1024);
    if constexpr (!is_sanitized) {
      chosen(std::type_identity<scheme::mean_landmark<d, float>>{}, b);
      chosen(std::type_identity<scheme::arkvale<d, float>>{}, b);
      chosen(std::type_identity<scheme::yakv<d, float>>{}, b);
      chosen(std::type_identity<scheme::yakv_before_rotary<d, float>>{}, b);
      chosen(std::type_identity<scheme::yakv_residual<d, float>>{}, b);
      chosen(std::type_identity<scheme::moba<d, float, 24>>{}, b);
      chosen(std::type_identity<scheme::exact_key<d, float>>{}, b);  // omni_kv, tidal_decode and h_share choose so
      chosen(std::type_identity<scheme::twilight<d, float>>{}, b);
      chosen(std::type_identity<scheme::sparq<d, float>>{}, b);
      chosen(std::type_identity<scheme::double_sparsity<d, float>>{}, b);
      chosen(std::type_identity<scheme::loki<d, interop::lapack_eigensolver, float>>{}, b, 0.1);
      chosen(std::type_identity<scheme::rabitq_cache<d, float>>{}, b);
      chosen(std::type_identity<at_once<scheme::infini_gen<d, interop::lapack_eigensolver, float>>>{}, b, 0.1);
      chosen(std::type_identity<scheme::pq_cache<d, float>>{}, b);
      chosen(std::type_identity<scheme::cluster_kv<d, float, 8>>{}, b, 0.1);
      chosen(std::type_identity<scheme::retro_infer<d, float, 64>>{}, b);
      chosen(std::type_identity<scheme::yakv_guarded<d, float>>{}, b);
      chosen(std::type_identity<watched<scheme::exact_key<d, float>>>{}, b);
      chosen(std::type_identity<watched<scheme::quest<d, float>>>{}, b);
      chosen(std::type_identity<watched<scheme::mean_landmark<d, float>>>{}, b);
      chosen(std::type_identity<watched<scheme::yakv_centred<d, float>>>{}, b);
      output(std::type_identity<scheme::paris_kv<d, float>>{}, b);
      check_levels<bounded_codes>(layer, b);
      check_levels<bounded_boxes>(layer, b);
    }
  });
}

}  // namespace

TEST_CASE("every scheme chooses and attends by its definition on smollm's keys") { check("CELLAR_TEST_MODEL_SMOLLM"); }

TEST_CASE("every scheme chooses and attends by its definition on qwen's keys") { check("CELLAR_TEST_MODEL_QWEN"); }
