#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Asymmetric four-bit integers: a row falls into groups of Group channels, the last one may be shorter.
///
/// With m = min x and s = (max x - m) / 15 of a group, rounded outwards to a Scale:  code = round((x - m) / s) in [0, 15],  decoded
/// x = m + s * code.  Two codes a byte, the even channel in the low half. A constant group has s = 0, or the least s that reaches from m.
///
/// Template  Group: channels; Scale: how s and m are stored
/// Bytes     C / 2 codes and {s, m} a group
/// Error     at most s / 2 a channel, and the f32 rounding of m + s * code; rounding outwards, a group's s is larger than (max - min) / 15
///           by at most a unit in the last place of m (bf16: 2^-7 |m| / 15) and one of s
/// Source    the values of KIVI, Liu et al., arXiv:2402.02750, whose scales are rounded to nearest
template <int Group = 32, storage_scalar Scale = f16>
struct int4 {
  static_assert(Group > 0, "int4: a group has channels");
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;

  /// m must be a finite Scale, and max - m a finite f32 that a little more than 15 s reaches.
  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<Scale> < 0x1p124f ? cellar::largest<Scale> : 0x1p124f; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / 2, groups(channels) * group_bytes}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      std::byte* const codes = to.codes + r * to.code_stride;
      for (int i = 0; i < channels / 2; ++i) codes[i] = std::byte{0};
      for (int g = 0; g < groups(channels); ++g) {
        int const begin = g * Group, end = begin + Group < channels ? begin + Group : channels;
        float low = x(r, begin), high = low;
        for (int c = begin + 1; c < end; ++c) {
          low = x(r, c) < low ? x(r, c) : low;
          high = x(r, c) > high ? x(r, c) : high;
        }
        Scale const m = rounded_down<Scale>(low), s = rounded_up<Scale>((high - to_float(m)) / 15);
        detail::store(to.scales + r * to.scale_stride + g * group_bytes, s);
        detail::store(to.scales + r * to.scale_stride + g * group_bytes + i64(sizeof(Scale)), m);
        for (int c = begin; c < end; ++c) {
          float const code = to_float(s) > 0 ? (x(r, c) - to_float(m)) / to_float(s) : 0.0f;
          unsigned const bits = (unsigned(nearest_integer(code < 15 ? code : 15)) & 15u) << (4 * (c % 2));
          codes[c / 2] = std::byte(unsigned(codes[c / 2]) | bits);  // beyond 15 only where s is a subnormal f32
        }
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      std::byte const *const codes = from.codes + r * from.code_stride, *const scales = from.scales + r * from.scale_stride;
      float* const row = y.row(r);
      int const channels = int(y.columns());
      nibble_values(t, codes, channels, numbers(), row);
      for (int g = 0; g < groups(channels); ++g) {
        float const m = minimum(scales, g), s = scale(scales, g);
        for (int c = g * Group; c < channels && c < (g + 1) * Group; ++c) row[c] = m + s * row[c];
      }
    }
  }

  using pieces_of = int4;
  static constexpr int piece_words = 5;  ///< Codes, then scale and minimum of the first and of the last channel's group.
  CELLAR_HD void read_piece(std::byte const* codes, std::byte const* scales, int, int first, std::uint32_t* words) const requires(Group >= 8) {
    words[0] = load_bytes<4>(codes + first / 2).words[0];
    for (int end = 0; end < 2; ++end) {
      std::byte const* const of = scales + (first + 7 * end) / Group * group_bytes;
      words[1 + 2 * end] = load_bytes<sizeof(Scale)>(of).words[0];
      words[2 + 2 * end] = load_bytes<sizeof(Scale)>(of + sizeof(Scale)).words[0];
    }
  }
  CELLAR_HD void decode_piece(std::uint32_t const* words, int, int first, float* to) const requires(Group >= 8) {
    for (int i = 0; i < 8; ++i) {
      int const end = (first + i) / Group == first / Group ? 0 : 1;
      float const s = scalar_of<Scale>(loaded_bytes<4>{{words[1 + 2 * end]}}, 0), m = scalar_of<Scale>(loaded_bytes<4>{{words[2 + 2 * end]}}, 0);
      to[i] = m + s * float(words[0] >> (4 * i) & 15u);
    }
  }

  /// A prepared query is the query and its sum over each group, by which minima count.
  CELLAR_HD i64 query_bytes(i64 channels) const { return round_up((channels + groups(channels)) * i64(sizeof(float)), 16); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    auto* const to = reinterpret_cast<float*>(prepared);
    for (int c = int(t.rank()); c < D; c += int(t.size())) to[c] = q[c];
    for (int g = int(t.rank()); g < groups(D); g += int(t.size())) {
      float sum = 0;
      for (int c = g * Group; c < D && c < (g + 1) * Group; ++c) sum += q[c];
      to[D + g] = sum;
    }
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    auto const* const q = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      std::byte const* const mine = scales + lane * groups(D) * group_bytes;
      float score = 0;
      for (int g = 0; g < groups(D); ++g) {
        float sum = 0;
        for (int c = g * Group; c < D && c < (g + 1) * Group; ++c) sum += q[c] * float(unsigned(codes[i64(c / 2) * lanes + lane]) >> (4 * (c % 2)) & 15u);
        score += scale(mine, g) * sum + minimum(mine, g) * q[D + g];
      }
      scores[lane] = score;
    }
  }

 private:
  static constexpr i64 group_bytes = 2 * sizeof(Scale);
  CELLAR_HD static float const* numbers() {
    static constexpr constant_array<float, 16> values{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
    return values.values;
  }

  CELLAR_HD static constexpr i64 groups(i64 channels) { return ceil_div(channels, Group); }
  CELLAR_HD static float scale(std::byte const* scales, i64 group) { return to_float(detail::load<Scale>(scales + group * group_bytes)); }
  CELLAR_HD static float minimum(std::byte const* scales, i64 group) {
    return to_float(detail::load<Scale>(scales + group * group_bytes + i64(sizeof(Scale))));
  }
};
static_assert(code_scorer<int4<>> && code_scorer<int4<128, bf16>> && code_scorer<int4<32, float>>);

}  // namespace cellar::codec
