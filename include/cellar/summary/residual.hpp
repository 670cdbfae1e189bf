#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// A landmark a block, its key (one-token blocks) or mean key, as the sum of two codes: the mean of Landmarks consecutive ones, which are a tile,
/// coded by MeanCodec, and each landmark's difference from that decoded mean, coded by ResidualCodec. Scored from the codes.
///
/// The mean is that of the run which begins the tile (a prompt's end, a decoding step: fewer than Landmarks); later runs are coded against it.
///
/// Score   q . (decode(mean) + decode(residual)), up to rounding
/// Bytes   ResidualCodec's row a block, MeanCodec's row a tile
/// Source  the residual landmarks of arXiv:2604.08426 v1. Deviation: an unfinished group is not padded by repeating its last landmark
template <class MeanCodec, class ResidualCodec, int Landmarks>
struct residual {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = Landmarks;
  static_assert(Landmarks > 0, "residual: a group has landmarks");
  static_assert(MeanCodec::token_group == 1 && ResidualCodec::token_group == 1, "residual: the codecs must store single rows");

  MeanCodec mean_codec;
  ResidualCodec residual_codec;

  /// A nearest point is at most twice as long as what it stands for, and the shortest point: a decoded mean is at most 3 times as long as the mean, which
  /// is the root of the channels (16 of 256, 24 of 576) times its largest channel at most. So a residual is below 64 or 96 times the largest landmark.
  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = largest_summand;  // landmarks are means
    if constexpr (requires { mean_codec.largest(channels); }) most = mean_codec.largest(channels) < most ? mean_codec.largest(channels) : most;
    if constexpr (requires { residual_codec.largest(channels); })
      if (float const mine = residual_codec.largest(channels) / (channels > 256 ? 96 : 64); mine < most) most = mine;
    return most;
  }
  // A tile: residual codes [unit][lane], residual scales [lane], codes and scales of the mean.
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return mean_offset(head_dim) + mean_codec.bytes(head_dim).codes + mean_codec.bytes(head_dim).scales; }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return queries * record_bytes(head_dim); }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    row_bytes const one = residual_codec.bytes(D);
    std::byte* const mean = tile + mean_offset(D);
    row_parts<std::byte> const stored_mean{mean, mean + mean_codec.bytes(D).codes, 0, 0};
    serial_team alone = cellar::detail::alone_in(t);
    if (first_lane == 0) {
      if (t.rank() == 0) {
        float sum[D];
        for (int c = 0; c < D; ++c) sum[c] = 0;
        for (i64 r = 0; r < keys.rows; ++r)
          for (int c = 0; c < D; ++c) sum[c] += keys(r, c);
        for (int c = 0; c < D; ++c) sum[c] /= float(keys.rows);
        mean_codec.encode(alone, matrix_view<float const, D>{sum, 1}, stored_mean);
      }
      t.sync();
    }
    for (i64 b = t.rank(); b < blocks; b += t.size()) {
      float difference[D];  // at first the mean, decoded for each block: two rows do not fit in a device's registers
      mean_codec.decode(alone, stored_mean, matrix_view<float, D>{difference, 1});
      for (int c = 0; c < D; ++c) {
        float sum = 0;
        for (i64 r = 0; r < tokens; ++r) sum += keys(b * tokens + r, c);
        difference[c] = sum / float(tokens) - difference[c];
      }
      constexpr row_bytes stored = ResidualCodec{}.bytes(D);
      std::byte row[stored.codes + stored.scales + 1];
      residual_codec.encode(alone, matrix_view<float const, D>{difference, 1}, row_parts<std::byte>{row, row + one.codes, 0, 0});
      i64 const lane = first_lane + b, unit = ResidualCodec::code_unit;
      for (i64 i = 0; i < one.codes; ++i) tile[(i / unit * tile_blocks + lane) * unit + i % unit] = row[i];
      for (i64 i = 0; i < one.scales; ++i) tile[tile_blocks * one.codes + lane * one.scales + i] = row[one.codes + i];
    }
  }
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    for (i64 h = 0; h < queries.rows; ++h) mean_codec.template prepare_query<D>(t, queries.row(h), to.data + h * record_bytes(D));
    for (i64 h = 0; h < queries.rows; ++h)
      residual_codec.template prepare_query<D>(t, queries.row(h), to.data + h * record_bytes(D) + mean_codec.query_bytes(D));
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    std::byte const* const mean = tile + mean_offset(D);
    for (i64 h = 0; h < from.count; ++h) {
      std::byte const* const record = from.data + h * record_bytes(D);
      float* const row = scores.row(h);
      residual_codec.template score_codes<D>(t, record + mean_codec.query_bytes(D), tile, tile + tile_blocks * residual_codec.bytes(D).codes, tile_blocks, row);
      if (t.rank() >= tile_blocks) continue;
      float share = 0;
      serial_team alone = cellar::detail::alone_in(t);
      mean_codec.template score_codes<D>(alone, record, mean, mean + mean_codec.bytes(D).codes, 1, &share);
      for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) row[lane] += share;
    }
    t.sync();
  }

 private:
  CELLAR_HD i64 mean_offset(i64 head_dim) const { return tile_blocks * (residual_codec.bytes(head_dim).codes + residual_codec.bytes(head_dim).scales); }
  CELLAR_HD i64 record_bytes(i64 head_dim) const { return mean_codec.query_bytes(head_dim) + residual_codec.query_bytes(head_dim); }
};
// That it models block_summary is asserted where codecs are named (tests, schemes): a summary includes no codec.

}  // namespace cellar::summary
