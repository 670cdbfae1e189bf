#pragma once
#include "cellar/codec/higgs.hpp"
#include "cellar/codec/identity.hpp"
#include "cellar/core/rotary.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Centre: the mean key before rotary embedding, turned to each position. For models whose keys carry a bias (Qwen2): the keys are a large
/// constant plus a small signal, and a code of few bits would spend its range on the constant.
///
/// State  the mean, [head_dim] f32, per (layer, sequence, KV head); fixed by train
class rotated_mean {
 public:
  static constexpr int token_group = 1;  ///< Nothing is stored with the rows.
  static constexpr bool turns = true;

  CELLAR_HD rotated_mean with(rotary const& r) const {
    rotated_mean c = *this;
    c.rotary_ = r;
    return c;
  }
  CELLAR_HD rotated_mean bind(std::byte const* state) const {
    rotated_mean c = *this;
    c.mean_ = reinterpret_cast<float const*>(state);
    return c;
  }
  CELLAR_HD rotated_mean at(i64 position) const {
    rotated_mean c = *this;
    c.position_ = position;
    return c;
  }

  CELLAR_HD i64 state_bytes(i64 channels) const { return channels * i64(sizeof(float)); }

  /// The mean of the keys turned back to position 0. Sums in double: the result does not depend on the team's size beyond its last bit.
  template <team Team, int D>
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    auto* const mean = reinterpret_cast<float*>(state);
    i64 const half = rotary_.inverse_frequencies.count;
    bool const adjacent = rotary_.pairing == rotary_pairing::adjacent;
    for (i64 i = t.rank(); i < half; i += t.size()) {
      i64 const first = adjacent ? 2 * i : i, second = adjacent ? 2 * i + 1 : i + half;
      double a = 0, b = 0;
      for (i64 r = 0; r < keys.rows; ++r) {
        float c = 1, s = 0;
        turn_of(rotary_, i, first_position + r, c, s);
        a += double(keys(r, first)) * double(c) + double(keys(r, second)) * double(s);
        b += double(keys(r, second)) * double(c) - double(keys(r, first)) * double(s);
      }
      mean[first] = keys.rows > 0 ? float(a / double(keys.rows)) : 0.0f;
      mean[second] = keys.rows > 0 ? float(b / double(keys.rows)) : 0.0f;
    }
  }

  /// The centre `offset` positions after the bound one.
  template <team Team>
  CELLAR_HD void center(Team const& t, i64 offset, float* to) const {
    rotate(rotary_, mean_, position_ + offset, to, cellar::detail::kernels_of(t));
  }
  CELLAR_HD rotary const& embedding() const { return rotary_; }

 private:
  rotary rotary_;
  float const* mean_ = nullptr;
  i64 position_ = 0;
};

/// Centre: the mean of each Tokens consecutive keys as attended, stored with them in bf16: 2 / Tokens bytes a channel and token.
///
/// Source  the residual landmarks of arXiv:2604.08426 v1, with an exact mean
template <int Tokens>
struct block_mean {
  static constexpr int token_group = Tokens;
  static constexpr bool turns = false;
};

template <class Codec, class Center>
struct centred;

/// What `Codec` stores finitely when a mean is taken of it and subtracted: a turned mean has up to sqrt(2) times the largest channel, and the
/// difference up to twice that.
template <class Codec>
CELLAR_HD constexpr float largest_centred(i64 channels) {
  if constexpr (requires { Codec{}.largest(channels); })
    return Codec{}.largest(channels) / 4 < largest_summand ? Codec{}.largest(channels) / 4 : largest_summand;
  else
    return largest_summand;
}

/// Any codec, for rows minus their centre: the mean key before rotary embedding, turned to each row's position. A codec that learns from queries (balanced)
/// does so from the differences.
///
/// State  the mean; then Codec's, where it learns
/// Error  that of Codec for the difference; the centre is exact in f32
template <class Codec>
struct centred<Codec, rotated_mean> {
  using base_codec = Codec;
  using center_type = rotated_mean;
  using learns = std::conditional_t<trained<Codec>, centred, rotated_mean>;
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;
  static_assert(Codec::token_group == 1, "centred: the inner codec must store single rows");
  static_assert(!has_train<Codec>, "centred: the inner codec must learn from queries too, or not at all");

  Codec base;
  rotated_mean center;

  CELLAR_HD constexpr row_bytes bytes(i64 channels) const { return base.bytes(channels); }
  CELLAR_HD constexpr float largest(i64 channels) const { return largest_centred<Codec>(channels); }
  CELLAR_HD i64 state_bytes(i64 channels) const {
    if constexpr (trained<Codec>)
      return mean_bytes(channels) + base.state_bytes(channels);
    else
      return center.state_bytes(channels);
  }
  CELLAR_HD centred with(rotary const& r) const { return {base, center.with(r)}; }
  CELLAR_HD centred bind(std::byte const* state) const {
    if constexpr (trained<Codec>)
      return {base.bind(state + mean_bytes(2 * center.embedding().inverse_frequencies.count)), center.bind(state)};
    else
      return {base, center.bind(state)};
  }
  CELLAR_HD centred at(i64 position) const { return {base, center.at(position)}; }
  i64 train_scratch_bytes(i64 channels) const requires trains_in_scratch<Codec> { return base.train_scratch_bytes(channels); }
  centred with_scratch(std::byte* scratch) const requires trains_in_scratch<Codec> { return {base.with_scratch(scratch), center}; }

  template <team Team, int D>
    requires(!trained<Codec>)
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const { center.train(t, keys, first_position, state); }
  template <team Team, int D>
    requires trained<Codec>
  void train_with(Team& t, matrix_view<float const, D> keys, matrix_view<float const, D> queries, std::byte* state) const {
    center.train(t, keys, 0, state);
    t.sync();
    rotated_mean const mean = center.bind(state).at(0);
    base.learn(
        t, keys.rows,
        [&](i64 r, float* to) {
          mean.center(t, r, to);
          for (i64 c = 0; c < keys.columns(); ++c) to[c] = keys(r, c) - to[c];
        },
        queries, state + mean_bytes(keys.columns()));
  }
  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    for (i64 r = t.rank(); r < x.rows; r += t.size()) {
      float y[D == dynamic ? max_channels : D];
      center.center(t, r, y);
      for (int c = 0; c < channels; ++c) y[c] = x(r, c) - y[c];
      serial_team one = cellar::detail::alone_in(t);
      base.encode(one, matrix_view<float const, D>{y, 1, channels, channels},
                  {to.codes + r * to.code_stride, to.scales + r * to.scale_stride, to.code_stride, to.scale_stride});
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      float middle[D == dynamic ? max_channels : D];
      center.center(t, r, middle);
      serial_team one = cellar::detail::alone_in(t);
      base.decode(one, {from.codes + r * from.code_stride, from.scales + r * from.scale_stride, from.code_stride, from.scale_stride},
                  matrix_view<float, D>{y.row(r), 1, channels, channels});
      for (int c = 0; c < channels; ++c) y(r, c) += middle[c];
    }
  }

 private:
  CELLAR_HD i64 mean_bytes(i64 channels) const { return round_up(center.state_bytes(channels), 16); }
};

/// Any codec, for rows minus the mean of their Tokens consecutive rows. A row group is Tokens tokens: its scales are the inner
/// codec's, then the mean in bf16.
template <class Codec, int Tokens>
struct centred<Codec, block_mean<Tokens>> {
  using base_codec = Codec;
  using center_type = block_mean<Tokens>;
  using learns = block_mean<Tokens>;
  static constexpr bool is_exact = false;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = Tokens;
  static_assert(Codec::token_group == 1, "centred: the inner codec must store single rows");

  Codec base;

  CELLAR_HD constexpr float largest(i64 channels) const { return largest_centred<Codec>(channels); }
  CELLAR_HD constexpr row_bytes bytes(i64 channels) const {
    row_bytes const one = base.bytes(channels);
    return {Tokens * one.codes, Tokens * one.scales + channels * i64(sizeof(bf16))};
  }
  template <team Team, int D>
  CELLAR_HD void encode(Team& t, matrix_view<float const, D> x, row_parts<std::byte> to) const {
    int const channels = int(x.columns());
    row_bytes const one = base.bytes(channels);
    for (i64 g = t.rank(); g < x.rows / Tokens; g += t.size()) {
      std::byte* const codes = to.codes + g * to.code_stride;
      std::byte* const scales = to.scales + g * to.scale_stride;
      float mean[D == dynamic ? max_channels : D], y[D == dynamic ? max_channels : D];
      for (int c = 0; c < channels; ++c) {
        float s = 0;
        for (int r = 0; r < Tokens; ++r) s += x(g * Tokens + r, c);
        bf16 const stored = from_float<bf16>(s / Tokens);
        detail::store(scales + Tokens * one.scales + c * i64(sizeof(bf16)), stored);
        mean[c] = to_float(stored);
      }
      for (int r = 0; r < Tokens; ++r) {
        for (int c = 0; c < channels; ++c) y[c] = x(g * Tokens + r, c) - mean[c];
        serial_team alone = cellar::detail::alone_in(t);
        base.encode(alone, matrix_view<float const, D>{y, 1, channels, channels}, {codes + r * one.codes, scales + r * one.scales, one.codes, one.scales});
      }
    }
  }
  template <team Team, int D>
  CELLAR_HD void decode(Team& t, row_parts<std::byte const> from, matrix_view<float, D> y) const {
    int const channels = int(y.columns());
    row_bytes const one = base.bytes(channels);
    for (i64 r = t.rank(); r < y.rows; r += t.size()) {
      i64 const g = r / Tokens, within = r % Tokens;
      std::byte const* const scales = from.scales + g * from.scale_stride;
      serial_team alone = cellar::detail::alone_in(t);
      base.decode(alone, {from.codes + g * from.code_stride + within * one.codes, scales + within * one.scales, one.codes, one.scales},
                  matrix_view<float, D>{y.row(r), 1, channels, channels});
      for (int c = 0; c < channels; ++c) y(r, c) += to_float(detail::load<bf16>(scales + Tokens * one.scales + c * i64(sizeof(bf16))));
    }
  }
};
static_assert(row_codec<centred<higgs<2, 256>, rotated_mean>> && trained<centred<higgs<2, 256>, rotated_mean>> &&
              positional<centred<higgs<2, 256>, rotated_mean>> && rotary_aware<centred<higgs<2, 256>, rotated_mean>>);
static_assert(row_codec<centred<identity<f16>, block_mean<16>>> && centred_codec<centred<identity<f16>, block_mean<16>>>);

}  // namespace cellar::codec
