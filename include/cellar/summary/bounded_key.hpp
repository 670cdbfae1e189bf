#pragma once
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// A code of a block's middle, and how far from the decoded one its keys lie at most.
///
/// Score   q . decode(middle) + |q| * distance: no key of the block has a larger logit
/// Bytes   Codec's row and 2 a block
/// Source  Cauchy and Schwarz; RaBitQ (arXiv:2405.12497) reranks by such bounds, of a probability
template <class Codec>
struct bounded_key {
  static constexpr bool is_upper_bound = true;
  using middle_type = quantized_key<Codec>;
  static constexpr int tile_blocks = middle_type::tile_blocks;
  static_assert(!trained<middle_type> && !positional<middle_type> && !rotary_aware<middle_type> && scope_of<Codec> == scope::one_head,
                "bounded_key: the codec must not learn, nor know positions, nor be of all heads");

  middle_type middle;

  CELLAR_HD constexpr float largest(i64 channels) const { return middle.largest(channels); }
  CELLAR_HD i64 tile_bytes(i64 head_dim) const { return distances_at(head_dim) + tile_blocks * i64(sizeof(bf16)); }
  CELLAR_HD i64 scratch_bytes(i64 head_dim) const { return middle.scratch_bytes(head_dim); }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return lengths_at(queries, head_dim) + queries * i64(sizeof(float)); }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    cellar::detail::build_boxes(*this, t, keys, blocks, tile, first_lane);
  }
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    middle.prepare(t, queries, to);
    auto* const lengths = reinterpret_cast<float*>(to.data + lengths_at(queries.rows, D));
    for (i64 h = t.rank(); h < queries.rows; h += t.size()) lengths[h] = length_of<D>(queries.row(h));
  }
  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    middle.score_tile(t, from, tile, scores);
    auto const* const lengths = reinterpret_cast<float const*>(from.data + lengths_at(from.count, D));
    for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) {
      float const distance = to_float(cellar::detail::load<bf16>(tile + distances_at(D) + lane * i64(sizeof(bf16))));
      for (i64 h = 0; h < from.count; ++h) scores(h, lane) += lengths[h] * distance;
    }
    t.sync();
  }

  /// What is covered after the first box may lie far from its middle.
  template <int D, team Team>
  CELLAR_HD void cover(Team const& t, float const* low, float const* high, float slack, std::byte* tile, int lane, bool is_first) const {
    float row[D], off[D];
    serial_team alone = cellar::detail::alone_in(t);
    if (is_first) {
      for (int c = 0; c < D; ++c) row[c] = low[c] / 2 + high[c] / 2;
      middle.build(alone, matrix_view<float const, D>{row, 1}, 1, tile, lane);
    }
    middle.template box_of<D>(alone, tile, lane, row, off);
    for (int c = 0; c < D; ++c) off[c] = maximum{}(row[c] - low[c], high[c] - row[c]);
    // |q . x - q . row| <= |q| |off|; both products round, and the sum with the distance's.
    float const distance = length_of<D>(off), most = distance + slack + 2 * cellar::detail::score_rounding(D) * (length_of<D>(row) + distance);
    std::byte* const at = tile + distances_at(D) + lane * i64(sizeof(bf16));
    if (is_first || !(most <= to_float(cellar::detail::load<bf16>(at)))) cellar::detail::store(at, rounded_up<bf16>(most));
  }

 private:
  CELLAR_HD i64 distances_at(i64 head_dim) const { return round_up(middle.tile_bytes(head_dim), 2); }
  CELLAR_HD i64 lengths_at(i64 queries, i64 head_dim) const { return round_up(middle.prepared_bytes(queries, head_dim), 16); }
  /// At least the length in exact numbers.
  template <int D>
  CELLAR_HD static float length_of(float const* x) {
    float squares = 0;
    for (int c = 0; c < D; ++c) squares += x[c] * x[c];
    return std::sqrt(squares) * (1 + float(D) * 0x1p-24f);
  }
};
// That it models covering_summary is asserted where codecs are named (tests): a summary includes no codec.

}  // namespace cellar::summary
