#pragma once
#include "cellar/attention/concept.hpp"
#include "cellar/codec/concept.hpp"
#include "cellar/layout/concept.hpp"
#include "cellar/select/concept.hpp"
#include "cellar/summary/concept.hpp"
#include "cellar/tier/concept.hpp"

/// One struct of member types = one method. Derive from scheme_defaults and replace what differs.
///
///   head_dim, block_tokens      sizes that change code
///   layout, key_codec, value_codec, tier      how and where blocks are stored
///   summary, reduce, select     what is kept near, and how blocks are chosen by it
///   attention                   what a logit goes through
///   near_scalar                 storage type of what stays near and exact: sinks, window, generated tokens
///   published                   the budget that the paper uses; a cache's caller may replace it
///   keeps_generated             generated tokens stay near for good, else they seal into blocks as they leave the window
namespace cellar::inline CELLAR_ABI {

template <class S>
concept has_sizes = (S::head_dim > 0) && (S::block_tokens > 0);

template <class S>
concept has_scheme_facts = requires {
  { S::published } -> std::convertible_to<budget>;
  { S::keeps_generated } -> std::convertible_to<bool>;
};

template <class S>
concept offloading_scheme = has_sizes<S> && has_scheme_facts<S> && physical_layout<typename S::layout> && row_codec<typename S::key_codec, S::head_dim> &&
    row_codec<typename S::value_codec, S::head_dim> && block_summary<typename S::summary, S::head_dim> && group_reduction<typename S::reduce> &&
    block_selector<typename S::select> && attention_variant<typename S::attention> && block_tier<typename S::tier> && storage_scalar<typename S::near_scalar>;

namespace detail {

/// A policy that fixes a head dimension must fix the scheme's.
template <class Policy, int HeadDim>
consteval bool agrees_on_head_dim() {
  if constexpr (requires { Policy::head_dim; })
    return Policy::head_dim == HeadDim;
  else
    return true;
}

/// Agreement between the policies of a scheme, each in a sentence. Instantiated before anything else of a scheme is.
template <class S>
struct checked_scheme {
  static constexpr int head_dim = S::head_dim;
  static_assert(head_dim % 8 == 0 && head_dim <= 256, "cellar: head_dim must be a multiple of 8 up to 256; latent attention (576/512) is not supported yet");
  static_assert(agrees_on_head_dim<typename S::layout, head_dim>(), "cellar: the layout fixes another head_dim than the scheme");
  static_assert(agrees_on_head_dim<typename S::key_codec, head_dim>(), "cellar: the key codec fixes another head_dim than the scheme");
  static_assert(agrees_on_head_dim<typename S::value_codec, head_dim>(), "cellar: the value codec fixes another head_dim than the scheme");
  static_assert(agrees_on_head_dim<typename S::summary, head_dim>(), "cellar: the summary fixes another head_dim than the scheme");
  static_assert(S::block_tokens % S::key_codec::token_group == 0,
                "cellar: the key codec's token_group must divide block_tokens: choose larger blocks or a codec of smaller groups");
  static_assert(S::block_tokens % S::value_codec::token_group == 0,
                "cellar: the value codec's token_group must divide block_tokens: choose larger blocks or a codec of smaller groups");
  static_assert(S::key_codec::head_scope == scope::one_head && S::value_codec::head_scope == scope::one_head,
                "cellar: codecs over all heads are not supported yet; use one of one head");
  static_assert(S::tier::is_directly_readable, "cellar: tiers that cannot be read in place are not supported yet; use tier::host_memory");
  static constexpr bool value = true;
};

}  // namespace detail
}  // namespace cellar
