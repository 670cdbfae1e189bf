#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// NVFP4: four-bit floats E2M1 in blocks of 16 channels (the last one may be shorter), an E4M3 scale a block, under an f32 scale a row.
///
/// With g = max |x| / 2688 of the row (2688 = 6 * 448) and s = E4M3(max |x| / (6 g)) of a block:  code = E2M1(x / (s g)),  decoded
/// x = code * s * g.  Two codes a byte, the even channel in the low half. A zero row has g = 0.
///
/// Bytes   C / 2 codes; C / 16 block scales (rounded up) and 4 bytes a row
/// Error   at most max(s g, g / 170) a channel: half of the widest gap, or what a block far below the row's largest loses by its scale;
///         2^-138 where f32 underflows
/// Source  NVIDIA's format; the KV-cache form: arXiv:2604.08426. Deviation: g is a row's and not a tensor's, since that takes a pass over
///         all tokens before the first can be stored, and later tokens could exceed it
struct nvfp4 : cellar::detail::plain_query {
  static constexpr int block_channels = 16;
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;

  /// Half of what f32 holds: g is rounded, and 2688 g must be finite.
  CELLAR_HD constexpr float largest(i64) const { return cellar::largest<float> / 2; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / 2, blocks(channels) + i64(sizeof(float))}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      std::byte *const codes = to.codes + r * to.code_stride, *const scales = to.scales + r * to.scale_stride;
      float const* const row = x.row(r);
      float const g = most(row, 0, channels) / (6 * largest_e4m3);
      cellar::detail::store(scales + blocks(channels), g);
      for (int b = 0; b < blocks(channels); ++b) {
        int const begin = b * block_channels, end = begin + block_channels < channels ? begin + block_channels : channels;
        e4m3 const stored = to_e4m3(g > 0 ? most(row, begin, end) / 6 / g : 0.0f);
        scales[b] = std::byte(stored.bits);
        float const s = to_float(stored);
        auto const code = [&](int c) { return s > 0 ? to_e2m1(row[c] / g / s) : 0u; };
        for (int c = begin; c < end; c += 2) codes[c / 2] = std::byte(code(c) | code(c + 1) << 4);
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      std::byte const *const codes = from.codes + r * from.code_stride, *const scales = from.scales + r * from.scale_stride;
      auto const g = cellar::detail::load<float>(scales + blocks(channels));
      nibble_values(t, codes, channels, e2m1(), y.row(r));
      for (int b = 0; b < blocks(channels); ++b) {
        float const s = to_float(e4m3{std::uint8_t(scales[b])});
        for (int c = b * block_channels; c < channels && c < (b + 1) * block_channels; ++c) y(r, c) = y(r, c) * s * g;
      }
    }
  }

  using pieces_of = nvfp4;
  static constexpr int piece_words = 2;
  CELLAR_HD void read_piece(std::byte const* codes, std::byte const* scales, int channels, int first, std::uint32_t* words) const {
    words[0] = load_bytes<4>(codes + first / 2).words[0];
    float const g = scalar_of<float>(load_bytes<4>(scales + blocks(channels)), 0);
    words[1] = bit_cast<std::uint32_t>(to_float(e4m3{std::uint8_t(scales[first / block_channels])}) * g);
  }
  CELLAR_HD void decode_piece(std::uint32_t const* words, int, int, float* to) const {
    for (int i = 0; i < 8; ++i) to[i] = from_e2m1(words[0] >> (4 * i)) * bit_cast<float>(words[1]);
  }

  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    auto const* const q = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      std::byte const* const mine = scales + lane * bytes(D).scales;
      float score = 0;
      for (int b = 0; b < blocks(D); ++b) {
        float sum = 0;
        for (int c = b * block_channels; c < D && c < (b + 1) * block_channels; ++c)
          sum += q[c] * from_e2m1(unsigned(codes[i64(c / 2) * lanes + lane]) >> (4 * (c % 2)));
        score += sum * to_float(e4m3{std::uint8_t(mine[b])});
      }
      scores[lane] = score * cellar::detail::load<float>(mine + blocks(D));
    }
  }

  /// Four bits of E2M1: a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6.
  CELLAR_HD static float from_e2m1(unsigned code) { return e2m1()[code & 15u]; }
  /// Rounds to nearest, ties to even, and saturates.
  CELLAR_HD static unsigned to_e2m1(float x) {
    float const a = x < 0 ? -x : x;
    unsigned const magnitude =
        unsigned(a > 0.25f) + unsigned(a >= 0.75f) + unsigned(a > 1.25f) + unsigned(a >= 1.75f) + unsigned(a > 2.5f) + unsigned(a >= 3.5f) + unsigned(a > 5.0f);
    return magnitude | (x < 0 ? 8u : 0u);
  }

 private:
  CELLAR_HD static float const* e2m1() {
    static constexpr constant_array<float, 16> values{{0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6}};
    return values.values;
  }

  CELLAR_HD static constexpr i64 blocks(i64 channels) { return ceil_div(channels, block_channels); }
  CELLAR_HD static float most(float const* x, int begin, int end) {
    float m = 0;
    for (int c = begin; c < end; ++c) m = maximum{}(m, x[c] < 0 ? -x[c] : x[c]);
    return m;
  }
};
static_assert(code_scorer<nvfp4>);

}  // namespace cellar::codec
