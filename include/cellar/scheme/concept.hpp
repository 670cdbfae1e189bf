#pragma once
#include "cellar/attention/concept.hpp"
#include "cellar/attention/remainder.hpp"
#include "cellar/codec/concept.hpp"
#include "cellar/layout/concept.hpp"
#include "cellar/select/concept.hpp"
#include "cellar/select/outliers.hpp"
#include "cellar/select/reuse.hpp"
#include "cellar/summary/concept.hpp"
#include "cellar/tier/concept.hpp"

/// One struct of member types = one method. Derive from scheme_defaults and replace what differs.
///
///   head_dim, block_tokens      sizes that change code
///   value_dim                   channels of a value: head_dim, or fewer
///   layout, key_codec, value_codec, tier      how and where blocks are stored; value_codec = codec::in_keys: values are the keys' first value_dim channels
///   summary, reduce, select     what is kept near, and how blocks are chosen by it
///   outliers                    which of a prompt's blocks stay near, because their summary misleads, or because they were attended to most
///   reuse                       for how many layers and steps one selection serves
///   attention, remainder        what a logit goes through; what stands for the blocks that were not chosen
///   near_scalar                 storage type of what stays near and exact: sinks, window, generated tokens
///   published                   the budget that the paper uses; a cache's caller may replace it
///   keeps_generated             generated tokens stay near for good, else they seal into blocks as they leave the window
///   is_reproducible             the order of a sum depends on nothing but the step; without it a device attends to what is near while it fetches the rest,
///                               and results move within rounding with what earlier steps have left near
///   estimates_missed            each attend says how much of its attention each query missed, by the scores of what was not chosen (cache::missed)
namespace cellar::inline CELLAR_ABI {

template <class S>
concept has_sizes = (S::head_dim > 0) && (S::value_dim > 0) && (S::block_tokens > 0);

template <class S>
concept has_scheme_facts = requires {
  { S::published } -> std::convertible_to<budget>;
  { S::keeps_generated } -> std::convertible_to<bool>;
  { S::is_reproducible } -> std::convertible_to<bool>;
  { S::estimates_missed } -> std::convertible_to<bool>;
};

template <class S>
concept has_storage = physical_layout<typename S::layout> && row_codec<typename S::key_codec, S::head_dim> &&
    (stored_in_keys<typename S::value_codec> ||
     row_codec<typename S::value_codec, S::value_dim>)&&block_tier<typename S::tier>&& storage_scalar<typename S::near_scalar>;

template <class S>
concept has_selection = any_summary<typename S::summary, S::head_dim> && outlier_rule<typename S::outliers, S::head_dim> &&
    group_reduction<typename S::reduce> && block_selector<typename S::select> && selection_reuse<typename S::reuse>;

template <class S>
concept offloading_scheme = has_sizes<S> && has_scheme_facts<S> && has_storage<S> && has_selection<S> && attention_variant<typename S::attention> &&
    attention_remainder<typename S::remainder>;

namespace detail {

/// A policy that fixes a head dimension must fix the scheme's.
template <class Policy, int HeadDim>
consteval bool agrees_on_head_dim() {
  if constexpr (requires { Policy::head_dim; })
    return Policy::head_dim == HeadDim;
  else
    return true;
}

/// Whether a variant is known to have a window.
template <class Variant>
consteval bool hides_far_keys() {
  if constexpr (requires { std::bool_constant<Variant{}.visible(i64{1} << 60, 0)>{}; })
    return !Variant{}.visible(i64{1} << 60, 0);
  else
    return false;
}

/// Agreement between the policies of a scheme, each in a sentence. Instantiated before anything else of a scheme is.
template <class S>
struct checked_scheme {
  static constexpr int head_dim = S::head_dim, value_dim = S::value_dim;
  static constexpr bool selects_nothing = requires { requires S::select::is_nothing; };
  static constexpr bool values_in_keys = stored_in_keys<typename S::value_codec>;
  static_assert(head_dim % 8 == 0 && head_dim <= (values_in_keys ? 576 : 256),
                "cellar: head_dim must be a multiple of 8 up to 256, or up to 576 where values are channels of the keys (value_codec = codec::in_keys)");
  static_assert(value_dim % 8 == 0 && value_dim <= (values_in_keys ? head_dim : 256),
                "cellar: value_dim must be a multiple of 8 up to 256, or up to head_dim where values are channels of the keys");
  static_assert(agrees_on_head_dim<typename S::layout, head_dim>(), "cellar: the layout fixes another head_dim than the scheme");
  static_assert(agrees_on_head_dim<typename S::key_codec, head_dim>(), "cellar: the key codec fixes another head_dim than the scheme");
  static_assert(agrees_on_head_dim<typename S::value_codec, value_dim>(), "cellar: the value codec fixes another head_dim than the scheme's value_dim");
  static_assert(!rotary_aware<typename S::value_codec> || value_dim == head_dim, "cellar: a value codec that turns rows needs a value_dim equal to head_dim");
  static_assert(agrees_on_head_dim<typename S::summary, head_dim>(), "cellar: the summary fixes another head_dim than the scheme");
  static_assert(S::block_tokens % S::key_codec::token_group == 0,
                "cellar: the key codec's token_group must divide block_tokens: choose larger blocks or a codec of smaller groups");
  static_assert(S::block_tokens % S::value_codec::token_group == 0,
                "cellar: the value codec's token_group must divide block_tokens: choose larger blocks or a codec of smaller groups");
  static_assert(scope_of<typename S::key_codec> == scope::one_head || of_all_heads<typename S::key_codec>,
                "cellar: a key codec over all heads needs of_head(head, heads), which binds it to one of them");
  static_assert(scope_of<typename S::value_codec> == scope::one_head || of_all_heads<typename S::value_codec>,
                "cellar: a value codec over all heads needs of_head(head, heads), which binds it to one of them");
  static_assert(scope_of<typename S::summary> == scope::one_head || of_all_heads<typename S::summary>,
                "cellar: a summary over all heads needs of_head(head, heads), which binds it to one of them");
  static_assert(scope_of<typename S::key_codec> == scope::one_head || has_encode<typename S::key_codec, dynamic>,
                "cellar: a key codec over all heads encodes rows of all of them: encode takes matrix_view<float const, D> for D = dynamic too");
  static_assert(scope_of<typename S::value_codec> == scope::one_head || has_encode<typename S::value_codec, dynamic>,
                "cellar: a value codec over all heads encodes rows of all of them: encode takes matrix_view<float const, D> for D = dynamic too");
  static_assert(scope_of<typename S::summary> == scope::one_head || has_build<typename S::summary, dynamic>,
                "cellar: a summary over all heads is built from rows of all of them: build takes matrix_view<float const, D> for D = dynamic too");
  static_assert(S::tier::is_directly_readable || S::layout::is_run_contiguous,
                "cellar: a tier that is not read in place moves runs: use a layout with is_run_contiguous, such as layout::tile_major");
  static constexpr bool weighs_rest = S::remainder::estimates || S::estimates_missed;
  static_assert(!weighs_rest || (S::select::reads_scores && !S::reduce::acts_on_queries && S::reuse::layers == 1 && S::reuse::steps == 1),
                "cellar: a remainder, and what is missed, is weighed by scores: it needs a selection that reads those of every query head, anew in every layer "
                "and step");
  static_assert(!weighs_rest || !hides_far_keys<typename S::attention>(),
                "cellar: a remainder, and what is missed, is of all far tokens: it needs an attention without a window");
  static_assert(!S::estimates_missed || !sampling_summary<typename S::summary, head_dim>,
                "cellar: scores that are draws say nothing of what was missed: estimates_missed needs a summary whose scores estimate logits");
  static_assert(!observing_summary<typename S::summary, head_dim> || S::keeps_generated,
                "cellar: the summary is built from the attention of a prompt's queries, so generated tokens have none: set keeps_generated");
  static_assert(!evicts_by<typename S::outliers> || (selects_nothing && !S::keeps_generated),
                "cellar: a rule that evicts while decoding needs a scheme that keeps nothing far: select::none, and keeps_generated = false");
  static_assert(!query_trained<typename S::summary> || trains_in_scratch<typename S::summary>,
                "cellar: what learns from queries does so on the host: the summary needs train_scratch_bytes and with_scratch");
  static_assert((!query_trained<typename S::key_codec> || learns_the_same<typename S::summary, typename S::key_codec>)&&!query_trained<typename S::value_codec>,
                "cellar: a codec that learns from a prompt's queries must learn the same as the scheme's summary, which is given them");
  static_assert(!attention_outlier_rule<typename S::outliers> || (!observing_summary<typename S::summary, head_dim> && !query_trained<typename S::summary>),
                "cellar: outliers by attention read queries of their own reach and number: the summary must not learn from queries, too");
  static constexpr bool is_sampled = sampling_remainder<typename S::remainder>;
  static_assert(!is_sampled || sampling_summary<typename S::summary, head_dim>,
                "cellar: a sampled remainder weighs by chances: it needs a summary whose scores are draws, such as summary::hash_tables");
  static_assert(!is_sampled || S::block_tokens == 1, "cellar: a sampled remainder weighs single tokens: it needs block_tokens = 1");
  static_assert(
      !is_sampled || (S::select::reads_scores && !S::reduce::acts_on_queries && S::reuse::layers == 1 && S::reuse::steps == 1),
      "cellar: a sampled remainder weighs by what every query head sampled itself: it needs a selection by scores of the heads, anew in every layer and step");
  static_assert(!is_sampled || S::is_reproducible,
                "cellar: what was sampled is told in the order of the selected blocks: a sampled remainder needs is_reproducible = true");
  static constexpr bool is_indexed = indexed_summary<typename S::summary>;
  static_assert(!is_indexed || S::block_tokens == 1, "cellar: an index key is of a token: a summary of index keys needs block_tokens = 1");
  static_assert(
      !is_indexed || (!S::outliers::keeps_outliers && !weighs_rest && !S::reduce::acts_on_queries),
      "cellar: outliers, remainders, what is missed and mean queries are of keys and queries: a scheme whose summary is of index keys has none of them");
  static constexpr bool reads_near = reduction_beside_near<typename S::reduce>;
  static_assert(!reads_near || (plain_past<typename S::attention> && !is_indexed && S::reuse::layers == 1 && S::reuse::steps == 1),
                "cellar: a reduction that weighs far blocks against what is near needs a plain causal attention, a summary of keys, and a selection anew in "
                "every layer and step");
  static_assert(!selector_of_shares<typename S::select> || reads_near,
                "cellar: the selection reads shares of all attention: it needs a reduction that makes them, select::max_of_attention");
  static_assert(!remainder_by_class<typename S::remainder> || classifies_blocks<typename S::summary>,
                "cellar: a remainder by class needs a summary that sorts blocks into classes, such as quantized_key of cluster_codes");
  static constexpr bool has_two_levels = two_level_summary<typename S::summary, head_dim>;
  static_assert(!has_two_levels || blockwise_reduction<typename S::reduce>,
                "cellar: two levels need a reduction of each block's own logits (mean_query, sum_of_logits, max_of_logits): a softmax is of all blocks");
  static_assert(!has_two_levels || selector_of_highest<typename S::select>,
                "cellar: two levels need a selection of the highest scores alone, as top_k and threshold are");
  static_assert(!has_two_levels || !weighs_rest, "cellar: a remainder, and what is missed, is weighed by scores of all blocks: use a summary of one level");
  static constexpr bool value = true;
};

}  // namespace detail

/// Whether finish_prompt needs a prompt's queries.
template <class S>
inline constexpr bool observes_queries =
    attention_outlier_rule<typename S::outliers> || observing_summary<typename S::summary, S::head_dim> || query_trained<typename S::summary>;

}  // namespace cellar
