#pragma once
#include <concepts>
#include <cstddef>

#include "cellar/core/team.hpp"
#include "cellar/core/types.hpp"
#include "cellar/core/vector.hpp"

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

  template <detail::const_of<Byte> B>
  CELLAR_HD operator row_parts<B>() const {
    return {codes, scales, code_stride, scale_stride};
  }
};

/// Whose channels a row holds: one KV head's, or those of all heads side by side, which are then fetched whole.
enum class scope { one_head, all_heads };

/// The scope of a codec or summary; one head where it does not say.
template <class P>
inline constexpr scope scope_of = scope::one_head;
template <class P>
  requires requires { P::head_scope; }
inline constexpr scope scope_of<P> = P::head_scope;

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

/// Stands for a value codec where values are the first value_dim channels of their keys: nothing is stored for them, and the key codec decodes them.
template <class C>
concept stored_in_keys = codec_facts<C> && requires {
  requires C::is_in_keys;
};

// Refinements, for codecs and summaries alike. Driver code asks for them with `if constexpr` (operation/memory.hpp).

/// Widest row of a policy of all heads, in channels: bodies keep one on the stack.
inline constexpr int max_row_channels = 4096;

/// The head that a policy of all heads is bound to; nothing for one head.
template <scope Scope>
struct bound_head {
  CELLAR_HD static constexpr int head_count() { return 1; }
};
template <>
struct bound_head<scope::all_heads> {
  int head = 0, heads = 1;
  CELLAR_HD constexpr int head_count() const { return heads; }
};

/// Holds rows of all heads: encode, build and train get matrix_view<float const, dynamic> [tokens, heads * head_dim]. Bound to one of them, a codec
/// decodes that head's channels, and a summary is scored by its queries, both at the fixed head_dim. `channels` of bytes, tile_bytes, largest,
/// state_bytes and train are those of all heads; those of query_bytes, prepared_bytes and scratch_bytes one head's.
template <class P>
concept of_all_heads = (scope_of<P> == scope::all_heads) && requires(P const& p, int head, int heads) {
  { p.of_head(head, heads) } -> std::same_as<P>;
};

template <class P>
concept has_train = requires(P const& p, serial_team& t, matrix_view<float const> keys, i64 first_position, std::byte* state) {
  { p.train(t, keys, first_position, state) } -> std::same_as<void>;  // keys [tokens, channels], as attended
};
/// Learns from a prompt's queries too: finish_prompt is to be given these. A summary of one head.
template <class P>
concept query_trained = requires(P const& p, serial_team& t, matrix_view<float const> keys, matrix_view<float const> queries, std::byte* state) {
  { p.train_with(t, keys, queries, state) } -> std::same_as<void>;  // queries [rows, channels] of a KV head's group, as attended, not scaled
};
/// Learns from a prompt: one state per (layer, sequence, KV head), or per (layer, sequence) for a policy of all heads.
template <class P>
concept trained = (has_train<P> || query_trained<P>)&&requires(P const& p, std::byte* state, i64 channels) {
  { p.state_bytes(channels) } -> std::same_as<i64>;
  { p.bind(static_cast<std::byte const*>(state)) } -> std::same_as<P>;  // the same policy, reading that state
};
/// Needs scratch while it learns; train is called on a policy that has it. Contents are free between calls.
template <class P>
concept trains_in_scratch = trained<P> && requires(P const& p, std::byte* scratch, i64 channels) {
  { p.train_scratch_bytes(channels) } -> std::same_as<i64>;
  { p.with_scratch(scratch) } -> std::same_as<P>;  // 16-byte aligned
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
/// center(team, offset, to) and embedding(); else it is the mean of token_group rows, stored with them.
template <class C>
concept centred_codec = requires(C const& c) {
  { c.base } -> std::convertible_to<typename C::base_codec>;
  { C::center_type::turns } -> std::convertible_to<bool>;
};

/// Stores a row as consecutive scalars, times one scale a row or none: attention reads it in place. A codec says so for itself by naming itself, so that what
/// derives from it does not inherit the promise.
///
/// plain_scalar is float, f16, bf16, std::int8_t or e4m3; plain_scale a storage scalar, or void.
template <class C>
concept plain_codec = codec_facts<C> && requires {
  requires std::same_as<typename C::plain_rows_of, C>;
  typename C::plain_scalar;
  typename C::plain_scale;
};

/// Codes rows after an orthogonal transform that is the same for all of them: attention can stay there, and turn queries and outputs instead of rows.
///
/// It names itself, as a plain_codec does.
///
/// Laws  decode is rotate_back of decode_rotated, up to rounding; rotate keeps products of rows; rotate_back undoes it
template <class C, int HeadDim = 128>
concept rotating_codec = row_codec<C, HeadDim> && std::same_as<typename C::rotates_as, C> &&
    requires(C const& c, serial_team& t, row_parts<std::byte const> from, matrix_view<float, HeadDim> y) {
  { c.decode_rotated(t, from, y) } -> std::same_as<void>;
  { c.rotate(t, y) } -> std::same_as<void>;  // in place, of rows that all members reach, with barriers of its own: before it, and after it only the caller's
  { c.rotate_back(t, y) } -> std::same_as<void>;
};

/// Reads and decodes any eight channels of a row by themselves, so that the members of a team share out a row; in two steps, so that what is read may wait in
/// registers, as few words.
///
/// Laws  read_piece then decode_piece: to = channels first, ..., first + 7 of what decode gives; of decode_rotated, where the codec rotates. `first` is a
///       multiple of 8
///
/// It names itself: as a plain_codec or a rotating_codec does, or by pieces_of.
template <class C>
concept piecewise_codec = codec_facts<C> &&(
                              requires { requires std::same_as<typename C::plain_rows_of, C>; } ||
                              requires { requires std::same_as<typename C::rotates_as, C>; } ||
                              requires { requires std::same_as<typename C::pieces_of, C>; }) &&
                          requires(C const& c, std::byte const* codes, std::byte const* scales, int channels, int first, std::uint32_t* words, float* to) {
  { C::piece_words } -> std::convertible_to<int>;
  { c.read_piece(codes, scales, channels, first, words) } -> std::same_as<void>;
  { c.decode_piece(words, channels, first, to) } -> std::same_as<void>;
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

/// Each byte of a row's codes stands for four channels, as a point of a table, times the row's one scale: scores are products with points, which matrix
/// instructions form (operation/score_points.hpp).
///
/// It names itself, as a plain_codec does.
///
/// Laws  decode_rotated's channels 4 b + i are point(byte b)[i] times the scale over sqrt(channels)
template <class C>
concept point_codec = std::same_as<typename C::rotates_as, C> && requires(C const& c, int byte, float (&point)[4], loaded_bytes<8> scales) {
  requires C::byte_channels == 4;
  { C::point_of(byte, point) } -> std::same_as<void>;
  { C::scale_in(scales, byte) } -> std::same_as<float>;  // of stored scales, the i-th
};

/// Scores several queries at once from one reading of the codes: up to query_group of them share one prepared record of count * query_bytes.
///
/// Laws  as code_scorer, for scores(query, lane)
template <class C, int HeadDim = 128>
concept group_code_scorer = code_scorer<C, HeadDim> && requires(C const& c, serial_team& t, matrix_view<float const, HeadDim> queries, std::byte* prepared,
                                                                std::byte const* from, int count, int lanes, matrix_view<float> scores) {
  { C::query_group } -> std::convertible_to<int>;
  { c.template prepare_group<HeadDim>(t, queries, prepared) } -> std::same_as<void>;
  { c.template score_group<HeadDim>(t, from, count, from, from, lanes, scores) } -> std::same_as<void>;  // prepared, count, codes, scales
};

/// A row's codes are one unit, the number of its class: summaries that keep such codes cannot tell the rows of a class apart.
///
/// Laws  class_of is below classes() for any bytes; rows of one class decode to one row
template <class C>
concept classifying_codec = codec_facts<C> && requires(C const& c, std::byte const* codes) {
  { C::classes() } -> std::same_as<int>;       // consteval or constexpr
  { c.class_of(codes) } -> std::same_as<int>;  // of one row
};

namespace detail {

/// The part of a code_scorer whose prepared query is the query itself, in f32.
struct plain_query {
  CELLAR_HD i64 query_bytes(i64 channels) const { return round_up(channels * i64(sizeof(float)), 16); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    for (int c = int(t.rank()); c < D; c += int(t.size())) reinterpret_cast<float*>(prepared)[c] = q[c];
  }
};

/// Pieces of rows of plain scalars, times one scale or none.
template <class Scalar, class Scale>
struct plain_pieces {
  static constexpr int code_words = 2 * int(sizeof(Scalar));
  static constexpr int piece_words = code_words + (std::is_void_v<Scale> ? 0 : 1);

  CELLAR_HD void read_piece(std::byte const* codes, [[maybe_unused]] std::byte const* scales, int, int first, std::uint32_t* words) const {
    auto const x = load_bytes<8 * sizeof(Scalar)>(codes + first * int(sizeof(Scalar)));
    for (int i = 0; i < code_words; ++i) words[i] = x.words[i];
    if constexpr (!std::is_void_v<Scale>) words[code_words] = load_bytes<sizeof(Scale)>(scales).words[0];
  }
  CELLAR_HD void decode_piece(std::uint32_t const* words, int, int, float* to) const {
    loaded_bytes<8 * sizeof(Scalar)> x;
    for (int i = 0; i < code_words; ++i) x.words[i] = words[i];
    float scale = 1;
    if constexpr (!std::is_void_v<Scale>) scale = scalar_of<Scale>(loaded_bytes<4>{{words[code_words]}}, 0);
    for (int i = 0; i < 8; ++i) to[i] = scalar_of<Scalar>(x, i) * scale;
  }
};

/// The code_scorer and the piecewise_codec of a plain_codec: dot products of interleaved rows, times their scales.
template <class Scalar, class Scale>
struct plain_scorer : plain_query, plain_pieces<Scalar, Scale> {
  using plain_scalar = Scalar;
  using plain_scale = Scale;
  static constexpr int query_group = 8;

  template <int D, team Team>
  CELLAR_HD void prepare_group(Team& t, matrix_view<float const, D> queries, std::byte* prepared) const {
    for (i64 g = 0; g < queries.rows; ++g) plain_query::prepare_query<D>(t, queries.row(g), prepared + g * query_bytes(D));
  }
  template <int D, team Team>
  CELLAR_HD void score_group(Team& t, std::byte const* prepared, int count, std::byte const* codes, std::byte const* scales, int lanes,
                             matrix_view<float> scores) const {
    auto const* const queries = reinterpret_cast<float const*>(prepared);
    i64 const stride = query_bytes(D) / i64(sizeof(float));
    if (lanes == 1) {  // a row
      dot_rows<Scalar, D>(t, matrix_view<float const, D>{queries, count, stride}, row_pointers{&codes, 1}, scores.data, scores.stride);
      if constexpr (!std::is_void_v<Scale>) t.sync();
    } else {
      score_lanes<Scalar>(t, queries, stride, count, D, codes, lanes, scores);
    }
    if constexpr (!std::is_void_v<Scale>)
      for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
        float const s = load_float<Scale>(scales + lane * i64(sizeof(Scale)));
        for (i64 g = 0; g < count; ++g) scores(g, lane) *= s;
      }
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    score_group<D>(t, prepared, 1, codes, scales, lanes, matrix_view<float>{scores, 1, lanes, lanes});
  }
};

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
