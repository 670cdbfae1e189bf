#pragma once
#include "cellar/codec/concept.hpp"
#include "cellar/codec/hadamard.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Runs of eight channels after a random rotation P, each as its direction u in four bits a channel, a sign and one of eight magnitudes a, and one weight
/// w = r / (sum of a |u|), r its length: what is decoded, w times the signed magnitudes, has the run itself as its part along it.
///
/// Magnitudes are the Lloyd-Max quantizer of a coordinate of a random direction in eight dimensions: nothing is learnt. P is a Walsh-Hadamard transform of
/// random signs, over the largest power of two that divides the channels.
///
/// Template  SignSeed: of the signs; Scale: how w is stored
/// Bytes     C / 2 codes and C / 8 weights
/// Error     of a run's direction 1 / cos^2 - 1 of its angle to the coded one: about 0.006
/// Source    ParisKV, Qi et al., arXiv:2602.07721, as its code has it (github.com/amy-77/ParisKV): there the row is normalised and its norm is in w
template <std::uint32_t SignSeed = 1, storage_scalar Scale = bf16>
struct direction_codes {
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static constexpr int code_unit = 1;
  static constexpr int run = 8;

  /// w is at most 1.2 times a run's length, which is at most that of the row, 24 times its largest channel.
  CELLAR_HD constexpr float largest(i64) const { return (cellar::largest<Scale> < 0x1p120f ? cellar::largest<Scale> : 0x1p120f) / 32; }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return {channels / 2, channels / run * i64(sizeof(Scale))}; }

  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_channels : D];
      float const unit = rotate_scaled(t, SignSeed, x.row(r), channels, y) / std::sqrt(float(rotation_width(channels)));
      for (int b = 0; b < channels / run; ++b) {
        float squares = 0, along = 0;
        for (int i = 0; i < run; ++i) squares += y[b * run + i] * y[b * run + i];
        float const length = std::sqrt(squares);
        unsigned codes[run];
        for (int i = 0; i < run; ++i) {
          float const u = length > 0 ? y[b * run + i] / length : 0.0f, size = u < 0 ? -u : u;
          unsigned m = 0;
          while (m < 7 && size > threshold(int(m))) ++m;
          along += magnitude(int(m)) * size;
          codes[i] = m | unsigned(u >= 0) << 3;
        }
        for (int i = 0; i < run / 2; ++i) to.codes[r * to.code_stride + b * run / 2 + i] = std::byte(codes[2 * i] | codes[2 * i + 1] << 4);
        detail::store(to.scales + r * to.scale_stride + b * i64(sizeof(Scale)), from_float<Scale>(length > 0 ? length / along * unit : 0.0f));
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    float const unit = 1.0f / std::sqrt(float(rotation_width(channels)));
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float* const row = y.row(r);
      nibble_values(t, from.codes + r * from.code_stride, channels, values(), row);
      for (int c = 0; c < channels; ++c) row[c] *= to_float(detail::load<Scale>(from.scales + r * from.scale_stride + c / run * i64(sizeof(Scale))));
      hadamard_transform(t, row, channels);
      for (int c = 0; c < channels; ++c) row[c] *= unit * random_sign(SignSeed, c);
    }
  }

  /// A prepared query is the rotated one.
  CELLAR_HD i64 query_bytes(i64 channels) const { return round_up(channels * i64(sizeof(float)), 16); }
  template <int D, team Team>
  CELLAR_HD void prepare_query(Team& t, float const* q, std::byte* prepared) const {
    float rotated[D];  // every member rotates for itself: cheaper than a barrier
    float const unit = 1.0f / std::sqrt(float(rotation_width(D)));
    for (int c = 0; c < D; ++c) rotated[c] = q[c] * random_sign(SignSeed, c) * unit;
    hadamard_transform(t, rotated, D);
    for (int c = int(t.rank()); c < D; c += int(t.size())) reinterpret_cast<float*>(prepared)[c] = rotated[c];
  }
  template <int D, team Team>
  CELLAR_HD void score_codes(Team& t, std::byte const* prepared, std::byte const* codes, std::byte const* scales, int lanes, float* scores) const {
    auto const* const q = reinterpret_cast<float const*>(prepared);
    for (int lane = int(t.rank()); lane < lanes; lane += int(t.size())) {
      float s = 0;
      for (int b = 0; b < D / run; ++b) {
        float along = 0;
        for (int i = 0; i < run / 2; ++i) {
          auto const two = unsigned(codes[i64{b * run / 2 + i} * lanes + lane]);
          along += q[b * run + 2 * i] * values()[two & 15u] + q[b * run + 2 * i + 1] * values()[two >> 4];
        }
        s += along * to_float(detail::load<Scale>(scales + (lane * (D / run) + b) * i64(sizeof(Scale))));
      }
      scores[lane] = s;
    }
  }

 private:
  CELLAR_HD static float magnitude(int i) { return values()[8 + i]; }
  CELLAR_HD static float threshold(int i) {
    static constexpr constant_array<float, 8> middle{{0.0843f, 0.1698f, 0.2578f, 0.3499f, 0.4487f, 0.5585f, 0.6901f}};
    return middle[i];
  }
  /// What a code stands for: its low three bits the magnitude, the fourth set for what is not negative.
  CELLAR_HD static float const* values() {
    static constexpr constant_array<float, 16> all{{-0.0420f, -0.1266f, -0.2130f, -0.3025f, -0.3973f, -0.5001f, -0.6169f, -0.7633f, 0.0420f, 0.1266f, 0.2130f,
                                                    0.3025f, 0.3973f, 0.5001f, 0.6169f, 0.7633f}};
    return all.values;
  }
};
static_assert(code_scorer<direction_codes<>> && code_scorer<direction_codes<1, float>>);

}  // namespace cellar::codec
