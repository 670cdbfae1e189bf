// A codec of one's own: eight bits a channel, but the row's largest channel as it is. Keys of many models have a channel that is far larger than the rest;
// with one scale a row, the rest would be rounded to it.
#include <cstdio>
#include <cstring>

#include "problem.hpp"

/// With s = max |x| / 127 over all channels but the largest:  code = round(x / s). The largest is kept in bf16: exact for keys that come in bf16.
struct int8_beside_outlier {
  static constexpr bool is_exact = false;
  static constexpr cellar::scope head_scope = cellar::scope::one_head;
  static constexpr int token_group = 1;

  struct facts {  // of a row, stored in the plane of scales
    cellar::bf16 scale, outlier;
    std::uint16_t channel;
  };

  constexpr float largest(cellar::i64) const { return cellar::largest<cellar::bf16> / 2; }
  constexpr cellar::row_bytes bytes(cellar::i64 channels) const { return {channels, sizeof(facts)}; }

  template <cellar::team Team, int D>
  CELLAR_HD void encode(Team& t, cellar::matrix_view<float const, D> x, cellar::row_parts<std::byte> to) const {
    for (cellar::i64 r = t.rank(); r < x.rows; r += t.size()) {
      cellar::i64 outlier = 0;
      for (cellar::i64 c = 1; c < x.columns(); ++c)
        if (std::abs(x(r, c)) > std::abs(x(r, outlier))) outlier = c;
      float most = 0;
      for (cellar::i64 c = 0; c < x.columns(); ++c)
        if (c != outlier) most = cellar::maximum{}(most, std::abs(x(r, c)));
      facts const f{cellar::rounded_up<cellar::bf16>(most / 127), cellar::from_float<cellar::bf16>(x(r, outlier)), std::uint16_t(outlier)};
      std::memcpy(to.scales + r * to.scale_stride, &f, sizeof f);  // nothing need be aligned
      float const s = to_float(f.scale);
      for (cellar::i64 c = 0; c < x.columns(); ++c)
        to.codes[r * to.code_stride + c] = c == outlier || s == 0 ? std::byte{} : std::byte(std::uint8_t(cellar::nearest_integer(x(r, c) / s)));
    }
  }
  template <cellar::team Team, int D>
  CELLAR_HD void decode(Team& t, cellar::row_parts<std::byte const> from, cellar::matrix_view<float, D> y) const {
    for (cellar::i64 r = t.rank(); r < y.rows; r += t.size()) {
      facts f;
      std::memcpy(&f, from.scales + r * from.scale_stride, sizeof f);
      for (cellar::i64 c = 0; c < y.columns(); ++c)
        y(r, c) = c == f.channel ? to_float(f.outlier) : float(std::int8_t(from.codes[r * from.code_stride + c])) * to_float(f.scale);
    }
  }
};
static_assert(cellar::row_codec<int8_beside_outlier>);

template <class KeyCodec>
struct with_keys_in : cellar::scheme_defaults<64> {
  static constexpr cellar::budget published{.window = 64};
  using key_codec = KeyCodec;
};

int main() {
  problem p = random_problem(2);
  for (std::size_t row = 0; row < p.keys.size(); row += 64) p.keys[row + 7] = 100 + 4 * p.keys[row + 7];
  for (float& k : p.keys) k = to_float(cellar::from_float<cellar::bf16>(k));
  auto const expected = exact(p);
  double const plain = relative_error(decode<with_keys_in<cellar::codec::int8<>>>(p), expected);
  double const mine = relative_error(decode<with_keys_in<int8_beside_outlier>>(p), expected);
  std::printf("relative error: codec::int8 %.4f, int8_beside_outlier %.4f\n", plain, mine);
  return mine < 0.02 && mine < plain / 4 ? 0 : 1;
}
