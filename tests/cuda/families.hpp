#pragma once
#include "cuda/against_host.hpp"
#include "eigensolver.hpp"

/// Schemes by family, each compared with the host on whatever device: a source instantiates one family, since each scheme is code of its own.
namespace families {

using namespace cellar;
using against_host::check;
namespace codecs = cellar::codec;
namespace summaries = cellar::summary;
namespace selects = cellar::select;

/// A scheme by a whole schedule, and by short ones with every other group size and with other tails.
template <class S, class T, class Device>
void check_groups(Device const& on, std::uint64_t seed) {
  check<S, T>(on, seed);
  if constexpr (is_sanitized) return;  // the same code
  for (int const group : {1, 2, 4, 7, 8})
    check<S, T>(on, seed, {.layers = 1, .group = group, .kv_heads = 1, .prompts = {128 + group, 67 - group}, .steps = 1, .is_short = true});
}

template <class Device>
void yakv(Device const& on) {
  check_groups<scheme::yakv<64, float>, float>(on, 1);
  check<scheme::yakv<128>, bf16>(on, 2, {.layers = 1, .group = 7, .kv_heads = 2});
}

template <class Device>
void yakv_variants(Device const& on) {
  check_groups<scheme::yakv_centred<64, f16>, f16>(on, 3);
  check_groups<scheme::yakv_before_rotary<64>, bf16>(on, 4);
}
template <class Device>
void yakv_published(Device const& on) {
  check_groups<scheme::yakv_published<64>, bf16>(on, 5);
  check_groups<scheme::yakv_residual<64>, bf16>(on, 6);
}

template <class Device>
void exact(Device const& on) {
  check_groups<scheme::dense<64, float>, float>(on, 7);
  check<scheme::dense<128>, bf16>(on, 8, {.layers = 1, .group = 71, .kv_heads = 1});
  check_groups<scheme::sink_window<64>, bf16>(on, 9);
}
template <class Device>
void blocks(Device const& on) {
  check_groups<scheme::quest<64, float>, float>(on, 10);
  check_groups<scheme::mean_landmark<96, f16>, f16>(on, 11);
  check_groups<scheme::arkvale<80>, bf16>(on, 12);
  check<scheme::quest<256>, f16>(on, 13, {.layers = 1, .group = 2, .kv_heads = 1});
}

struct with_remainder : scheme::shadow_kv<64, jacobi_eigensolver, float, codecs::fixed_rank<20>> {  // outliers too
  using remainder = cellar::attention::mean_value;
};
struct block_centred : scheme::yakv<64, float> {  // codes of 16 and 8 tokens at a time
  static constexpr int block_tokens = 32;
  static constexpr bool keeps_generated = false;
  using key_codec = codecs::centred<codecs::higgs<2, 256>, codecs::block_mean<16>>;
  using value_codec = codecs::centred<codecs::int8<>, codecs::block_mean<8>>;
};
template <class Device>
void learnt(Device const& on) {
  check_groups<with_remainder, float>(on, 14);
  check_groups<block_centred, float>(on, 15);
}

struct bytes : scheme::quest<64, f16> {
  using layout = cellar::layout::token_major;
  using key_codec = codecs::int8<>;
  using value_codec = codecs::fp8_e4m3<float>;
  using select = selects::threshold<std::ratio<2>>;
  using attention = cellar::attention::soft_cap<>;
};
struct nibbles : scheme::yakv<64, float> {
  static constexpr bool keeps_generated = false;
  using key_codec = codecs::nvfp4;
  using value_codec = codecs::int4<>;
  using summary = summaries::quantized_key<codecs::int4<>>;
  using select = selects::top_p<std::ratio<9, 10>>;
};
struct small_grid : scheme::yakv<64, float> {
  using key_codec = codecs::higgs<2, 16, 1>;
  using value_codec = codecs::higgs<4, 256, 1>;
  using summary = summaries::quantized_key<codecs::higgs<2, 16>>;
  using reduce = selects::sum_of_logits;
  using attention = cellar::attention::sliding_window<200>;
};
template <class Device>
void compositions(Device const& on) {
  check<bytes, f16>(on, 16);
  check<nibbles, float>(on, 17);
  check<small_grid, float>(on, 18);
}

template <int Layers, i64 Steps>
struct shared : scheme::quest<64, float> {
  static constexpr bool keeps_generated = false;
  using reuse = selects::reuse_ids<Layers, Steps>;
};
template <class Device>
void reuse(Device const& on) {
  check<shared<2, 3>, float>(on, 19, {.layers = 4});
  if (!against_host::all_short) check<shared<1, 2>, float>(on, 20, {.selects = against_host::ahead::after_attend});
  check<shared<1, 2>, float>(on, 21, {.selects = against_host::ahead::before_append, .selected_tokens = 400});  // none that is not there yet
}

/// What is near is attended to while the rest is fetched.
template <class S>
struct overlapped : S {
  static constexpr bool keeps_generated = false, is_reproducible = false;
};
template <class Device>
void overlap(Device const& on) {
  check<overlapped<scheme::yakv<64>>, bf16>(on, 22, {.layers = 1, .group = 7});
  check<overlapped<scheme::quest<64, float>>, float>(on, 23);
  if constexpr (is_sanitized) return;
  check<overlapped<scheme::dense<64, float>>, float>(on, 24);  // nothing to fetch
  check<overlapped<shared<1, 2>>, float>(on, 25, {.selects = against_host::ahead::after_attend});
}

/// Says what it missed.
template <class S>
struct watched : S {
  static constexpr bool estimates_missed = true;
};
struct guarded_outliers : watched<scheme::shadow_kv<64, jacobi_eigensolver, float, codecs::fixed_rank<20>>> {
  using reduce = selects::max_of_attention;
  using select = selects::until_missed<std::ratio<1, 3>, std::ratio<1, 8>>;
};
template <class Device>
void missed(Device const& on) {
  check_groups<watched<scheme::yakv<64, float>>, float>(on, 70);
  check_groups<scheme::yakv_guarded<64, float, std::ratio<1, 2>>, float>(on, 71);
  check<scheme::yakv_guarded<128>, bf16>(on, 72, {.layers = 1, .group = 7, .kv_heads = 1, .is_short = true});
  check<guarded_outliers, float>(on, 73);
  check<watched<scheme::sparq<64, float, 16>>, float>(on, 74);  // beside a remainder
}

/// The methods of other papers, as far as other families do not have their parts. Exact keys are scored as plain tiles, the others by their own bodies.
template <class Device>
void methods(Device const& on) {
  check<scheme::moba<64, float, 32>, float>(on, 40);
  check<scheme::omni_kv<64, float, 2>, float>(on, 41, {.layers = 4}, {.tokens = 64, .dense_layers = 2});  // the paper sweeps the budget
  check<scheme::h_share<64, f16, 2, 3>, f16>(on, 42, {.layers = 4});
  check<scheme::free_kv<64, float>, float>(on, 43, {.selects = against_host::ahead::after_attend});
  check<scheme::twilight<64>, bf16>(on, 44);
  check<scheme::sparq<64, float, 16>, float>(on, 45);
}
template <class Device>
void methods_of_maps(Device const& on) {
  check_groups<scheme::double_sparsity<64, float>, float>(on, 46);
  check<scheme::double_sparsity<80>, bf16>(on, 47, {.layers = 1, .group = 3, .kv_heads = 2, .is_short = true});
  check<scheme::loki<64, jacobi_eigensolver, float>, float>(on, 48);
  check<scheme::infini_gen<64, jacobi_eigensolver, float>, float>(on, 49, {.selects = against_host::ahead::before_append});
  check_groups<scheme::rabitq_cache<64, float>, float>(on, 50);
  check<scheme::pq_cache<64, float>, float>(on, 51);
}

struct evicts_blocks : scheme::h2o<64, float> {
  static constexpr int block_tokens = 4;
  using attention = cellar::attention::soft_cap<>;
};
/// Schemes that learn from a prompt's queries, or from what is attended to.
template <class Device>
void observing(Device const& on) {
  check_groups<scheme::snap_kv<64, float>, float>(on, 52);
  check_groups<scheme::h2o<64, float>, float>(on, 53);
  check<scheme::h2o<80>, bf16>(on, 54, {.layers = 1, .group = 3, .kv_heads = 2, .is_short = true});
  check<evicts_blocks, float>(on, 55);
}
/// Summaries that learn from a prompt's queries.
template <class Device>
void query_trained(Device const& on) {
  check<scheme::inf_llm<64, float, 32>, float>(on, 56);
  check<scheme::inf_llm<64, f16, 16>, f16>(on, 57, {.layers = 1, .group = 2, .kv_heads = 2, .is_short = true});
  check<scheme::lrqk<64, float, 16>, float>(on, 58);
  check<scheme::lrqk<64, float, 16>, float>(on, 58, {.layers = 1, .group = 8, .kv_heads = 1, .prompts = {140, 3}, .steps = 1, .is_short = true});
  check<scheme::yakv_balanced<64, jacobi_eigensolver, float>, float>(on, 59);
}

/// Samples weighed by their chances: as many as a budget holds and more, near and rotated rows, bent logits.
struct sampled_codes : scheme::magic_pig<64, float, 4, 40> {
  static constexpr bool keeps_generated = false;
  using key_codec = codecs::higgs<2, 256>;
  using value_codec = codecs::int8<>;
  using attention = cellar::attention::soft_cap<>;
  using remainder = cellar::attention::sampled<std::ratio<1, 1000>>;
};
template <class Device>
void sampling(Device const& on) {
  check_groups<scheme::magic_pig<64, float, 6, 75>, float>(on, 60);
  check<scheme::magic_pig<128>, bf16>(on, 61, {.layers = 1, .group = 7, .kv_heads = 1});
  check<scheme::magic_pig<80, f16, 8, 75>, f16>(on, 62, {.layers = 1, .group = 3, .kv_heads = 2, .is_short = true});
  check<sampled_codes, float>(on, 63);
  check<sampled_codes, float>(on, 64, {.selected_tokens = 300}, {.tokens = 300});
}

template <int Layers, i64 Steps>
struct shared_index : scheme::dsa<scheme::latent<scheme::dense<40, float>, 32>, 4, 16> {
  using reuse = selects::reuse_ids<Layers, Steps>;
};
/// Values in keys, and values of another width than keys.
template <class S, int ValueDim>
struct of_values : S {
  static constexpr int value_dim = ValueDim;
};
struct latent_bytes : scheme::latent<bytes, 48> {};
struct latent_groups : scheme::latent<block_centred, 32> {};
struct latent_remainder : scheme::latent<with_remainder, 40> {};
template <class Device>
void latent(Device const& on) {
  check_groups<scheme::latent<scheme::quest<40, float>, 32>, float>(on, 60);
  check_groups<scheme::latent<scheme::yakv<64, float>, 48>, float>(on, 61);  // turned back in more channels than are asked for
  check<latent_bytes, f16>(on, 62);
  check<latent_groups, float>(on, 63);
  check<latent_remainder, float>(on, 64);
}
/// The same under other policies, and values of another width than keys.
template <class Device>
void latent_compositions(Device const& on) {
  check<scheme::latent<scheme::h2o<40, float>, 24>, float>(on, 78, {.is_short = true});
  check<scheme::latent<scheme::yakv_before_rotary<40, float>, 24>, float>(on, 65);
  check<of_values<scheme::yakv<64, float>, 24>, float>(on, 66);
  check<of_values<scheme::quest<24>, 40>, bf16>(on, 67);
  if constexpr (!is_sanitized) check<overlapped<scheme::latent<scheme::yakv<64, float>, 32>>, float>(on, 68, {.group = 16, .kv_heads = 1});
}
/// A model's own indexer.
template <class Device>
void dsa(Device const& on) {
  check<scheme::dsa<scheme::latent<scheme::dense<40, float>, 32>, 5, 16>, float>(on, 72);
  check<scheme::dsa<scheme::latent<scheme::dense<40>, 32>, 64, 32>, bf16>(on, 73, {.layers = 1, .group = 16, .kv_heads = 1, .is_short = true});
  check<scheme::dsa<scheme::yakv<64, float>, 8, 24>, float>(on, 74, {.layers = 1, .is_short = true});
  check<shared_index<2, 1>, float>(on, 75, {.layers = 4, .is_short = true});
  check<shared_index<1, 2>, float>(on, 77, {.layers = 1, .selects = against_host::ahead::after_attend, .is_short = true});
}

/// DeepSeek's sizes.
template <class Device>
void latent_wide(Device const& on) {
  against_host::sizes const small{.layers = 1, .group = 16, .kv_heads = 1, .steps = 1, .is_short = true};
  check<scheme::latent<scheme::dense<576>, 512>, bf16>(on, 69, small);
  check<scheme::latent<scheme::yakv<576>, 512>, bf16>(on, 70, small);
  check<scheme::dsa<>, bf16>(on, 76, small);
  check<scheme::latent<scheme::quest<576>, 512>, bf16>(on, 71, {.layers = 1, .group = 128, .kv_heads = 1, .prompts = {133, 70}, .steps = 1, .is_short = true});
}

/// Clusters of tokens, alone and with a mean value each.
struct joined : scheme::retro_infer<64, float, 40, 6, 100> {  // generated tokens join the prompt's clusters
  static constexpr bool keeps_generated = false;
};
template <class Device>
void clusters(Device const& on) {
  check<scheme::cluster_kv<64>, bf16>(on, 60);
  check_groups<scheme::retro_infer<64, float, 64, 16, 100>, float>(on, 61);
  check<scheme::retro_infer<80, f16, 300, 2, 60>, f16>(on, 62, {.layers = 1, .group = 3, .kv_heads = 2, .is_short = true});
  check<joined, float>(on, 63);
  check<scheme::latent<joined, 40>, float>(on, 65, {.layers = 1, .is_short = true});
}

/// Two levels, by bound and by count. Each device scores the same blocks as the host where it bounds: ids differ by rounding only.
template <int Group, class Coarse, class Fine, class Reduce>
struct bounded : scheme_defaults<64, float> {
  static constexpr int block_tokens = 1;
  static constexpr budget published{.tokens = 64};
  using summary = summaries::two_level<Coarse, Fine, Group>;
  using reduce = Reduce;
  using select = selects::top_k;
};
using boxes_of_codes = bounded<32, summaries::min_max<f16>, summaries::quantized_key<codecs::higgs<2, 256>>, selects::mean_query>;
using codes_of_tokens = bounded<1, summaries::bounded_key<codecs::higgs<2, 256>>, summaries::quantized_key<codecs::identity<float>, 1>, selects::sum_of_logits>;
using codes_about_mean = bounded<1, summaries::mapped<summaries::around_mean, summaries::bounded_key<codecs::int4<>>>,
                                 summaries::quantized_key<codecs::identity<float>, 1>, selects::mean_query>;
struct bounded_boxes : bounded<16, summaries::min_max<float>, summaries::min_max<float>, selects::max_of_logits> {  // outliers too
  static constexpr int block_tokens = 4;
  using outliers = selects::least_cosine;
};
template <class Device>
void levels(Device const& on) {
  check_groups<boxes_of_codes, float>(on, 52);
  check<codes_of_tokens, float>(on, 53);
  check<bounded_boxes, float>(on, 54);
  check<codes_about_mean, float>(on, 57);
  check_groups<scheme::paris_kv<64, float>, float>(on, 55);
  check<scheme::paris_kv<80>, bf16>(on, 56, {.layers = 1, .group = 3, .kv_heads = 2, .is_short = true});
}

/// Head dimensions that the others leave out, for what differs most by them.
template <class Device>
void head_dims(Device const& on) {
  against_host::sizes const small{.layers = 1, .group = 3, .kv_heads = 2, .is_short = true};
  check<scheme::dense<80>, bf16>(on, 26, small);
  check<scheme::dense<96, float>, float>(on, 27, small);
  check<scheme::dense<256, f16>, f16>(on, 28, small);
  check<scheme::yakv<80>, bf16>(on, 29, small);
  check<scheme::yakv<96, float>, float>(on, 30, small);
  check<scheme::yakv<256, f16>, f16>(on, 31, small);
  check<scheme::quest<80>, bf16>(on, 32, small);
  check<scheme::quest<96, float>, float>(on, 33, small);
  check<scheme::quest<128>, bf16>(on, 34, small);
}

/// Schemes with state, shared planes or several codes, in other widths than those of their families.
template <class Device>
void wide(Device const& on) {
  against_host::sizes const small{.layers = 1, .group = 2, .kv_heads = 2, .is_short = true};
  check<scheme::yakv_centred<128>, bf16>(on, 36, small);
  check<scheme::yakv_centred<80, f16>, f16>(on, 37, small);
}
/// The same for keys before rotary embedding, residual codes, planes of all heads.
template <class Device>
void wide_planes(Device const& on) {
  against_host::sizes const small{.layers = 1, .group = 2, .kv_heads = 2, .is_short = true};
  check<scheme::yakv_before_rotary<128>, bf16>(on, 38, small);
  check<scheme::yakv_residual<128>, bf16>(on, 39, small);
  check<scheme::yakv_published<256>, bf16>(on, 40, small);
  check<scheme::shadow_kv<128, jacobi_eigensolver, bf16, codecs::fixed_rank<40>>, bf16>(on, 41, small);
}

}  // namespace families
