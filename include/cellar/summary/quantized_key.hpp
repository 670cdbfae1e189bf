#pragma once
#include "cellar/core/rotary.hpp"
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

namespace detail {

/// What a codec subtracts before it codes, as a summary sees it. Nothing, but for centred codecs.
template <class Codec>
struct landmark_center {
  using base_codec = Codec;
  using learns = Codec;
  static constexpr bool turns = false, stores_mean = false;
  static constexpr int tile_blocks = 32;
};
template <centred_codec Codec>
struct landmark_center<Codec> {
  using base_codec = typename Codec::base_codec;
  using learns = typename Codec::center_type;
  static constexpr bool turns = Codec::center_type::turns, stores_mean = !turns;
  static constexpr int tile_blocks = turns ? 32 : Codec::token_group;  // one mean a tile
};

}  // namespace detail

/// A landmark a block, its key (one-token blocks) or mean key, coded by a codec and scored from the codes: nothing is decoded.
///
/// A centred codec's centre adds an exact share. rotated_mean: q . R_t mu, for the lanes j of a tile at t0 as (R_-j q) . (R_t0 mu), so
/// turned queries are prepared once and a tile costs one turned mean. block_mean: one mean a tile, whose share all lanes have.
///
/// Score   q . decode(landmark), up to rounding
/// Bytes   Codec's row a block; block_mean adds 2 * head_dim a tile
/// Source  arXiv:2604.08426 (one 2-bit landmark a token); centring is ours (docs/design.md)
template <class Codec>
struct quantized_key {
  using center_facts = detail::landmark_center<Codec>;
  using base_codec = typename center_facts::base_codec;
  using learns = typename center_facts::learns;
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = center_facts::tile_blocks;
  static constexpr bool turns = center_facts::turns;
  static constexpr bool stores_mean = center_facts::stores_mean;
  static_assert(base_codec::token_group == 1, "quantized_key: the inner codec must store single rows");

  Codec codec;
  int block_tokens = 1;

  // Forwarded to the codec where it learns, turns or knows positions.
  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = largest_summand;  // landmarks are means
    if constexpr (requires { codec.largest(channels); }) most = codec.largest(channels) < most ? codec.largest(channels) : most;
    return most;
  }
  CELLAR_HD i64 state_bytes(i64 channels) const requires trained<Codec> { return codec.state_bytes(channels); }
  template <team Team, int D>
  requires trained<Codec> CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    codec.train(t, keys, first_position, state);
  }
  CELLAR_HD quantized_key bind(std::byte const* state) const requires trained<Codec> { return {codec.bind(state), block_tokens}; }
  CELLAR_HD quantized_key with(rotary const& r) const requires rotary_aware<Codec> { return {codec.with(r), block_tokens}; }
  /// Position of the first token of a tile (score_tile) or of the rows (build).
  CELLAR_HD quantized_key at(i64 position) const requires positional<Codec> { return {codec.at(position), block_tokens}; }
  CELLAR_HD quantized_key of_blocks(int tokens) const { return {codec, tokens}; }

  // A tile: codes [unit][lane], scales [lane], and for block_mean the mean [channel] in bf16.
  CELLAR_HD i64 tile_bytes(i64 head_dim) const {
    row_bytes const one = base().bytes(head_dim);
    return round_up(tile_blocks * (one.codes + one.scales) + (stores_mean ? head_dim * i64(sizeof(bf16)) : 0), 2);
  }
  CELLAR_HD i64 scratch_bytes(i64 head_dim) const { return turns ? head_dim * i64(sizeof(float)) : 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * record_bytes(head_dim); }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    row_bytes const one = base().bytes(D);
    std::byte* const means = tile + tile_blocks * (one.codes + one.scales);
    if constexpr (stores_mean) {
      if (first_lane == 0)
        for (int c = int(t.rank()); c < D; c += int(t.size())) {
          float s = 0;
          for (i64 r = 0; r < keys.rows; ++r) s += keys(r, c);
          cellar::detail::store(means + c * i64(sizeof(bf16)), from_float<bf16>(s / float(keys.rows)));
        }
      t.sync();
    }
    for (i64 b = t.rank(); b < blocks; b += t.size()) {
      float landmark[D], middle[D];
      for (int c = 0; c < D; ++c) landmark[c] = 0;
      for (i64 r = 0; r < tokens; ++r) {
        if constexpr (turns) codec.center.center(b * tokens + r, middle);
        for (int c = 0; c < D; ++c) {
          if constexpr (stores_mean) middle[c] = to_float(cellar::detail::load<bf16>(means + c * i64(sizeof(bf16))));
          landmark[c] += turns || stores_mean ? keys(b * tokens + r, c) - middle[c] : keys(b * tokens + r, c);
        }
      }
      for (int c = 0; c < D; ++c) landmark[c] /= float(tokens);
      constexpr row_bytes stored = base_codec{}.bytes(D);
      std::byte row[stored.codes + stored.scales + 1];
      serial_team alone;
      base().encode(alone, matrix_view<float const, D>{landmark, 1}, row_parts<std::byte>{row, row + one.codes, 0, 0});
      i64 const lane = first_lane + b, unit = base_codec::code_unit;
      for (i64 i = 0; i < one.codes; ++i) tile[(i / unit * tile_blocks + lane) * unit + i % unit] = row[i];
      for (i64 i = 0; i < one.scales; ++i) tile[tile_blocks * one.codes + lane * one.scales + i] = row[one.codes + i];
    }
  }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    for (i64 h = 0; h < queries.rows; ++h) {
      std::byte* const record = to.data + h * record_bytes(D);
      base().template prepare_query<D>(t, queries.row(h), record);
      auto* const turned = reinterpret_cast<float*>(record + base().query_bytes(D));
      if constexpr (turns)  // (lane, channel): the query as lane j's position sees the tile's centre
        for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size()))
          rotate(codec.center.embedding(), queries.row(h), -double(lane) * block_tokens, turned + lane * D);
      if constexpr (stores_mean)
        for (int c = int(t.rank()); c < D; c += int(t.size())) turned[c] = queries(h, c);
    }
  }

  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    row_bytes const one = base().bytes(D);
    auto* const middle = reinterpret_cast<float*>(from.scratch);
    if constexpr (turns) {
      if (t.rank() == 0) {  // the mean of the first block's centres
        for (int c = 0; c < D; ++c) middle[c] = 0;
        for (int r = 0; r < block_tokens; ++r) {
          float one_center[D];
          codec.center.center(r, one_center);
          for (int c = 0; c < D; ++c) middle[c] += one_center[c] / float(block_tokens);
        }
      }
      t.sync();
    }
    for (i64 h = 0; h < from.count; ++h) {
      std::byte const* const record = from.data + h * record_bytes(D);
      float* const row = scores.row(h);
      base().template score_codes<D>(t, record, tile, tile + tile_blocks * one.codes, tile_blocks, row);
      auto const* const turned = reinterpret_cast<float const*>(record + base().query_bytes(D));
      if constexpr (turns)
        for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) row[lane] += dot<D>(turned + lane * D, middle);
      if constexpr (stores_mean) {
        float share = 0;
        for (int c = 0; c < D; ++c)
          share += turned[c] * to_float(cellar::detail::load<bf16>(tile + tile_blocks * (one.codes + one.scales) + c * i64(sizeof(bf16))));
        for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) row[lane] += share;
      }
    }
    t.sync();
  }

 private:
  CELLAR_HD base_codec base() const {
    if constexpr (turns || stores_mean)
      return codec.base;
    else
      return codec;
  }
  CELLAR_HD i64 record_bytes(i64 head_dim) const {
    i64 const extra = turns ? tile_blocks * head_dim : stores_mean ? head_dim : 0;
    return round_up(base().query_bytes(head_dim) + extra * i64(sizeof(float)), 16);
  }
};
// That it models block_summary is asserted with the codecs of named schemes (scheme/yakv.hpp, yakv_centred.hpp): a summary includes no codec.

}  // namespace cellar::summary
