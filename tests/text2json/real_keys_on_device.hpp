#pragma once
#include "cuda/against_host.hpp"
#include "eigensolver.hpp"
#include "text2json/recorded_keys.hpp"

/// A cache on a device does what a cache on the host does, on keys, values and queries of real models.
namespace real_keys_on_device {

using namespace cellar;
using recorded_keys::d;

template <class Scheme, class Device>
void check_scheme(Device const& on, recorded_layer const& layer, budget const& b) {
  int const heads = layer.shape.kv_heads, query_heads = layer.shape.query_heads;
  std::size_t const width = std::size_t(heads * d), query_width = std::size_t(query_heads * d);
  auto const rows = [&](std::vector<float> const& of, i64 first, i64 count, std::size_t each, int n) {
    auto const from = of.begin() + first * i64(each);
    return against_host::both_rows<float, Device>(on, {from, from + count * i64(each)}, n, d);
  };
  limits const l{.sequences = 3, .tokens = layer.prompt + layer.steps, .step_sequences = 3};  // as against_host::compare has it
  host::executor const host;
  cache<Scheme> reference(host, layer.shape, l, b);
  cache<Scheme, Device> tested(on, layer.shape, l, b);
  auto prompt_keys = rows(layer.keys, 0, layer.prompt, width, heads), prompt_values = rows(layer.values, 0, layer.prompt, width, heads);
  auto const id = reference.begin_prompt(prompt_staging<float>{prompt_keys.host.data(), prompt_values.host.data(), layer.prompt, layer.prompt});
  reference.finish_prompt(host, id);
  REQUIRE(tested.begin_prompt(prompt_staging<float>{prompt_keys.device.data(), prompt_values.device.data(), layer.prompt, layer.prompt}) == id);
  tested.finish_prompt(on, id);

  against_host::comparison seen;
  for (i64 step = 0; step < layer.steps; ++step) {
    std::vector<batch_entry> const batch{{id, 1}};
    reference.plan(host, {batch.data(), 1});
    tested.plan(on, {batch.data(), 1});
    auto k = rows(layer.keys, layer.prompt + step, 1, width, heads), v = rows(layer.values, layer.prompt + step, 1, width, heads),
         q = rows(layer.queries, step, 1, query_width, query_heads);
    against_host::both_rows<float, Device> out(on, std::vector<float>(query_width, undefined), query_heads, d);
    reference.append(host, 0, k.on_host(), v.on_host());
    tested.append(on, 0, k.on_device(), v.on_device());
    reference.template attend<float>(host, 0, q.on_host(), out.on_host());
    tested.template attend<float>(on, 0, q.on_device(), out.on_device());
    std::vector<float> result(out.host.size());
    on.download(result.data(), out.device.data(), i64(result.size() * sizeof(float)));
    against_host::compare(reference, tested, on, batch, out.host, result, query_heads, {.group = layer.shape.group(), .kv_heads = heads}, seen);
  }
  INFO(typeid(Scheme).name() << ": an output is off by " << seen.worst << " of its length; " << seen.differing << " of " << seen.selections
                             << " selections differ, by " << seen.other_ids << " of " << seen.ids << " ids");
  CHECK(seen.worst < 2e-5 + 2 * recorded_keys::logit_rounding(layer));  // as on random keys, whose logits are small; either of both may be off
  CHECK(seen.other_ids <= 1 + seen.ids / 200);
  CHECK(seen.differing <= 1 + seen.selections / 10);
}

template <class Device>
void check(Device const& on, char const* variable, int prompt_tokens) {
  bool is_first = true;
  recorded_keys::for_layers(variable, prompt_tokens, is_sanitized ? 1 : 3, [&](recorded_layer const& layer) {
    if (is_sanitized && !is_first) return;
    is_first = false;
    budget const b{.tokens = 96, .sinks = 2, .window = 32}, with_outliers{.tokens = 96, .sinks = 2, .window = 32, .outliers = 5};
    check_scheme<scheme::dense<d, float>>(on, layer, {});
    check_scheme<scheme::sink_window<d, float>>(on, layer, {.sinks = 4, .window = 60});
    check_scheme<scheme::quest<d, float>>(on, layer, b);
    check_scheme<scheme::yakv_centred<d, float>>(on, layer, b);
    check_scheme<scheme::shadow_kv<d, jacobi_eigensolver, float, codec::rank_share<160, 1024>>>(on, layer, with_outliers);
    if constexpr (!is_sanitized) {
      check_scheme<scheme::mean_landmark<d, float>>(on, layer, b);
      check_scheme<scheme::arkvale<d, float>>(on, layer, b);
      check_scheme<scheme::yakv<d, float>>(on, layer, b);
      check_scheme<scheme::yakv_published<d, float>>(on, layer, b);
      check_scheme<scheme::yakv_before_rotary<d, float>>(on, layer, b);
      check_scheme<scheme::yakv_residual<d, float>>(on, layer, b);
    }
  });
}

/// The same for methods of other papers.
template <class Device>
void check_methods(Device const& on, char const* variable, int prompt_tokens) {
  recorded_keys::for_layers(variable, prompt_tokens, 3, [&](recorded_layer const& layer) {
    budget const b{.tokens = 96, .sinks = 2, .window = 32};
    check_scheme<scheme::double_sparsity<d, float>>(on, layer, b);
    check_scheme<scheme::rabitq_cache<d, float>>(on, layer, b);
    check_scheme<scheme::pq_cache<d, float>>(on, layer, b);
    check_scheme<scheme::twilight<d, float>>(on, layer, b);
    check_scheme<scheme::cluster_kv<d, float>>(on, layer, b);
    check_scheme<scheme::retro_infer<d, float, 64, 16, 100>>(on, layer, b);
    check_scheme<scheme::paris_kv<d, float>>(on, layer, b);
    check_scheme<scheme::magic_pig<d, float, 6, 75>>(on, layer, b);
  });
}

}  // namespace real_keys_on_device
