#pragma once
#include <concepts>
#include <cstddef>

#include "cellar/core/team.hpp"
#include "cellar/core/types.hpp"

/// How rows are stored: the far planes of keys and values, and quantized landmarks.
///
/// A codec turns `token_group` consecutive tokens of one KV head into codes and scales, two planes that travel together.
///
/// Laws
///   encode writes exactly bytes(channels).codes and .scales of each row group; it depends on nothing but its input (and its state)
///   decode(encode(x)) is within the error that the codec documents; equal, where is_exact and x is representable
///   both are bodies over a team: every member calls them with the same arguments; rows are independent; no shared memory is taken
///   a codec that cannot hold every finite f32 has largest(channels): rows whose channels are at most that large stay finite
///   token_group divides the scheme's block
namespace cellar::inline CELLAR_ABI {

/// Stored size of one row group.
struct row_bytes {
  i64 codes = 0, scales = 0;
};

/// Where row groups are stored: group r has its codes at codes + r * code_stride. Strides are bytes; nothing need be aligned.
template <class Byte>
struct row_parts {
  Byte* codes = nullptr;
  Byte* scales = nullptr;
  i64 code_stride = 0, scale_stride = 0;

  CELLAR_HD operator row_parts<Byte const>() const requires(!std::is_const_v<Byte>) { return {codes, scales, code_stride, scale_stride}; }
};

enum class scope { one_head, all_heads };

template <class C>
concept codec_facts = std::semiregular<C> && std::is_trivially_copyable_v<C> && requires(C const& c, i64 channels) {
  { C::is_exact } -> std::convertible_to<bool>;
  { C::head_scope } -> std::convertible_to<scope>;
  { C::token_group } -> std::convertible_to<int>;
  { c.bytes(channels) } -> std::same_as<row_bytes>;  // constexpr
};
template <class C, int HeadDim>
concept has_encode = requires(C const& c, serial_team& t, matrix_view<float const, HeadDim> x, row_parts<std::byte> to) {
  { c.encode(t, x, to) } -> std::same_as<void>;  // x [tokens, head_dim], tokens a multiple of token_group
};
template <class C, int HeadDim>
concept has_decode = requires(C const& c, serial_team& t, row_parts<std::byte const> from, matrix_view<float, HeadDim> y) {
  { c.decode(t, from, y) } -> std::same_as<void>;
};
template <class C, int HeadDim = 128>
concept row_codec = codec_facts<C> && has_encode<C, HeadDim> && has_decode<C, HeadDim>;

// Refinements, for codecs and summaries alike. Driver code asks for them with `if constexpr` (operation/memory.hpp).

/// Learns from a prompt: one state per (layer, sequence, KV head).
template <class P>
concept trained = requires(P const& p, serial_team& t, matrix_view<float const> keys, i64 first_position, std::byte* state, i64 channels) {
  { p.state_bytes(channels) } -> std::same_as<i64>;
  { p.train(t, keys, first_position, state) } -> std::same_as<void>;    // keys [tokens, channels], as attended
  { p.bind(static_cast<std::byte const*>(state)) } -> std::same_as<P>;  // the same policy, reading that state
};
/// Two policies that learn the same from the same keys, and say so by one type `learns`: the second takes the first one's state.
template <class A, class B>
concept learns_the_same = trained<A> && trained<B> && requires {
  typename A::learns;
  typename B::learns;
} && std::same_as<typename A::learns, typename B::learns>;
/// Depends on where its rows stand: at(p) is the policy for rows at positions p, p + 1, ...
template <class P>
concept positional = requires(P const& p, i64 position) {
  { p.at(position) } -> std::same_as<P>;
};
/// Needs the model's rotary embedding.
template <class P>
concept rotary_aware = requires(P const& p, rotary const& r) {
  { p.with(r) } -> std::same_as<P>;
};

/// Stores differences from a centre by a codec of its own, `base`. Where the centre turns, it is one row turned to each position, with members
/// center(offset, to) and embedding(); else it is the mean of token_group rows, stored with them.
template <class C>
concept centred_codec = requires(C const& c) {
  { c.base } -> std::convertible_to<typename C::base_codec>;
  { C::center_type::turns } -> std::convertible_to<bool>;
};

/// A codec whose stored rows can be scored against a query without being decoded: what summary::quantized_key needs.
///
/// A tile interleaves `lanes` rows: codes as [unit][lane][code_unit bytes], scales as [lane].
///
/// Laws  scores[lane] = q . decode(row), up to rounding; a lane is written by the member lane % size, so that it may go on without a barrier
template <class C, int HeadDim = 128>
concept code_scorer = row_codec<C, HeadDim> &&
    requires(C const& c, serial_team& t, float const* q, std::byte* prepared, std::byte const* from, int lanes, float* scores, i64 channels) {
  { C::code_unit } -> std::convertible_to<int>;
  { c.query_bytes(channels) } -> std::same_as<i64>;  // prepared bytes of one query, a multiple of 16
  { c.template prepare_query<HeadDim>(t, q, prepared) } -> std::same_as<void>;
  { c.template score_codes<HeadDim>(t, from, from, from, lanes, scores) } -> std::same_as<void>;  // prepared, codes, scales
};

namespace detail {

/// Unaligned access to stored scalars.
template <class T>
CELLAR_HD T load(std::byte const* from) {
  T x;
  memcpy(&x, from, sizeof x);
  return x;
}
template <class T>
CELLAR_HD void store(std::byte* to, T x) {
  memcpy(to, &x, sizeof x);
}

}  // namespace detail
}  // namespace cellar
