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
  using learns = typename Codec::learns;
  static constexpr bool turns = Codec::center_type::turns, stores_mean = !turns;
  static constexpr int tile_blocks = turns ? 32 : Codec::token_group;  // one mean a tile
};

}  // namespace detail

/// A landmark a block, its key (one-token blocks) or mean key, coded by a codec and scored from the codes: nothing is decoded.
///
/// A centred codec's centre adds an exact share. rotated_mean: q . R_t mu, for the lanes j of a tile at t0 as (R_-j q) . (R_t0 mu): a
/// tile costs one turned mean, folded with each query. block_mean: one mean a tile, whose share all lanes have.
///
/// A codec over all heads makes one landmark of a block's keys of all heads.
///
/// Template TileBlocks: 1 lets single landmarks be scored, their rows consecutive (two_level); more are interleaved
/// Score   q . decode(landmark), up to rounding
/// Bytes   Codec's row a block; block_mean adds 2 * head_dim a tile
/// Source  arXiv:2604.08426 (one 2-bit landmark a token); centring is ours (docs/design.md)
template <class Codec, int TileBlocks = detail::landmark_center<Codec>::tile_blocks>
struct quantized_key {
  using center_facts = detail::landmark_center<Codec>;
  using base_codec = typename center_facts::base_codec;
  using learns = typename center_facts::learns;
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = TileBlocks;
  static constexpr bool turns = center_facts::turns;
  static constexpr bool stores_mean = center_facts::stores_mean;
  static constexpr scope head_scope = scope_of<Codec>;
  static_assert(base_codec::token_group == 1, "quantized_key: the inner codec must store single rows");
  static_assert(TileBlocks == center_facts::tile_blocks || (!turns && !stores_mean), "quantized_key: a centre fixes how many blocks a tile has");
  using boxes_of = std::conditional_t<turns || stores_mean || scope_of<Codec> == scope::all_heads, void, quantized_key>;

  Codec codec;
  int block_tokens = 1;
  i64 position = 0;  // of the first row, where the codec asks

  // Forwarded to the codec where it learns, turns or knows positions.
  CELLAR_HD constexpr float largest(i64 channels) const {
    float most = largest_summand;  // landmarks are means
    if constexpr (requires { codec.largest(channels); }) most = codec.largest(channels) < most ? codec.largest(channels) : most;
    return most;
  }
  CELLAR_HD i64 state_bytes(i64 channels) const requires trained<Codec> { return codec.state_bytes(channels); }
  i64 train_scratch_bytes(i64 channels) const requires trains_in_scratch<Codec> { return codec.train_scratch_bytes(channels); }
  quantized_key with_scratch(std::byte* scratch) const requires trains_in_scratch<Codec> { return {codec.with_scratch(scratch), block_tokens}; }
  CELLAR_CALLS_HOST
  template <team Team, int D>
  requires query_trained<Codec> CELLAR_HD void train_with(Team& t, matrix_view<float const, D> keys, matrix_view<float const, D> queries,
                                                          std::byte* state) const {
    codec.train_with(t, keys, queries, state);
  }
  CELLAR_CALLS_HOST
  template <team Team, int D>
  requires has_train<Codec> CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    codec.train(t, keys, first_position, state);
  }
  CELLAR_HD quantized_key bind(std::byte const* state) const requires trained<Codec> { return {codec.bind(state), block_tokens}; }
  CELLAR_HD quantized_key with(rotary const& r) const requires rotary_aware<Codec> { return {codec.with(r), block_tokens}; }
  /// Position of the first token of a tile (score_tile) or of the rows (build).
  CELLAR_HD quantized_key at(i64 first) const requires positional<Codec> { return {codec.at(first), block_tokens, first}; }
  CELLAR_HD quantized_key of_head(int head, int heads) const requires of_all_heads<Codec> { return {codec.of_head(head, heads), block_tokens}; }
  CELLAR_HD quantized_key of_blocks(int tokens) const { return {codec, tokens}; }

  // A tile: codes [unit][lane], scales [lane], and for block_mean the mean [channel] in bf16.
  CELLAR_HD i64 tile_bytes(i64 head_dim) const {
    row_bytes const one = base().bytes(head_dim);
    return round_up(tile_blocks * (one.codes + one.scales) + (stores_mean ? head_dim * i64(sizeof(bf16)) : 0), 2);
  }
  CELLAR_HD i64 scratch_bytes(i64 head_dim) const { return turns ? (1 + folded_rows) * head_dim * i64(sizeof(float)) : 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const {
    return queries * (base().query_bytes(head_dim) + extra_bytes(head_dim)) + table_bytes(head_dim);
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    int const channels = int(keys.columns());
    constexpr int width = D == dynamic ? max_row_channels : D;
    row_bytes const one = base().bytes(channels);
    std::byte* const means = tile + tile_blocks * (one.codes + one.scales);
    if constexpr (stores_mean) {
      if (first_lane == 0)
        for (int c = int(t.rank()); c < channels; c += int(t.size())) {
          float s = 0;
          for (i64 r = 0; r < keys.rows; ++r) s += keys(r, c);
          cellar::detail::store(means + c * i64(sizeof(bf16)), from_float<bf16>(s / float(keys.rows)));
        }
      t.sync();
    }
    for (i64 b = t.rank(); b < blocks; b += t.size()) {
      float landmark[width], middle[width];
      for (int c = 0; c < channels; ++c) landmark[c] = 0;
      for (i64 r = 0; r < tokens; ++r) {
        if constexpr (turns) codec.center.center(t, b * tokens + r, middle);
        for (int c = 0; c < channels; ++c) {
          if constexpr (stores_mean) middle[c] = to_float(cellar::detail::load<bf16>(means + c * i64(sizeof(bf16))));
          landmark[c] += turns || stores_mean ? keys(b * tokens + r, c) - middle[c] : keys(b * tokens + r, c);
        }
      }
      for (int c = 0; c < channels; ++c) landmark[c] /= float(tokens);
      constexpr row_bytes stored = base_codec{}.bytes(width);
      std::byte row[stored.codes + stored.scales + 1];
      serial_team alone = cellar::detail::alone_in(t);
      auto coder = base();
      if constexpr (positional<base_codec>) coder = coder.at(position + b * tokens);
      coder.encode(alone, matrix_view<float const, D>{landmark, 1, channels, channels}, row_parts<std::byte>{row, row + one.codes, 0, 0});
      i64 const lane = first_lane + b, unit = base_codec::code_unit;
      for (i64 i = 0; i < one.codes; ++i) tile[(i / unit * tile_blocks + lane) * unit + i % unit] = row[i];
      for (i64 i = 0; i < one.scales; ++i) tile[tile_blocks * one.codes + lane * one.scales + i] = row[one.codes + i];
    }
  }

  CELLAR_HD static constexpr int classes() requires classifying_codec<Codec> { return Codec::classes(); }
  CELLAR_HD int class_of(std::byte const* tile, int lane) const requires classifying_codec<Codec> { return codec.class_of(tile + lane * Codec::code_unit); }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    i64 const bytes = base().query_bytes(D);
    if constexpr (group_code_scorer<base_codec, D>)
      for (i64 h = 0; h < queries.rows; h += base_codec::query_group)
        base().template prepare_group<D>(t, matrix_view<float const, D>{queries.row(h), group_at(queries.rows, h), queries.stride}, to.data + h * bytes);
    else
      for (i64 h = 0; h < queries.rows; ++h) base().template prepare_query<D>(t, queries.row(h), to.data + h * bytes);
    std::byte* const extras = to.data + queries.rows * bytes;
    if constexpr (turns || stores_mean)
      for (i64 h = 0; h < queries.rows; ++h)
        for (int c = int(t.rank()); c < D; c += int(t.size())) reinterpret_cast<float*>(extras + h * extra_bytes(D))[c] = queries(h, c);
    if constexpr (turns) {  // cosine, then sine, of each pair at each lane's distance from the tile's first: (pair, lane)
      auto* const table = reinterpret_cast<float*>(extras + queries.rows * extra_bytes(D));
      for (int i = int(t.rank()); i < D / 2 * tile_blocks; i += int(t.size()))
        turn_of(codec.center.embedding(), i / tile_blocks, i64{i % tile_blocks} * block_tokens, table[i], table[D / 2 * tile_blocks + i]);
    }
  }

  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    row_bytes const one = base().bytes(D * heads());
    i64 const bytes = base().query_bytes(D);
    std::byte const* const scales = tile + tile_blocks * one.codes;
    if constexpr (group_code_scorer<base_codec, D>)
      for (i64 h = 0; h < from.count; h += base_codec::query_group)
        base().template score_group<D>(t, from.data + h * bytes, int(group_at(from.count, h)), tile, scales, tile_blocks,
                                       matrix_view<float>{scores.row(h), group_at(from.count, h), scores.stride, tile_blocks});
    else
      for (i64 h = 0; h < from.count; ++h) base().template score_codes<D>(t, from.data + h * bytes, tile, scales, tile_blocks, scores.row(h));
    std::byte const* const extras = from.data + from.count * bytes;
    auto const query = [&](i64 h) { return reinterpret_cast<float const*>(extras + h * extra_bytes(D)); };
    if constexpr (stores_mean) {
      float mean[D];
      widen<bf16>(t, tile + tile_blocks * (one.codes + one.scales), D, mean);
      for (i64 h = 0; h < from.count; ++h) {
        float const share = dot<D>(query(h), mean);
        for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) scores(h, lane) += share;
      }
    }
    if constexpr (turns) add_turned_share<D>(t, query, from.count, reinterpret_cast<float const*>(extras + from.count * extra_bytes(D)), from.scratch, scores);
    t.sync();
  }

  /// The landmark as decoded.
  template <int D, team Team>
  CELLAR_HD void box_of(Team const& t, std::byte const* tile, int lane, float* low, float* high) const {
    constexpr row_bytes stored = base_codec{}.bytes(D);
    constexpr i64 unit = base_codec::code_unit;
    std::byte row[stored.codes + stored.scales + 1];
    for (i64 i = 0; i < stored.codes; ++i) row[i] = tile[(i / unit * tile_blocks + lane) * unit + i % unit];
    for (i64 i = 0; i < stored.scales; ++i) row[stored.codes + i] = tile[tile_blocks * stored.codes + lane * stored.scales + i];
    serial_team alone = cellar::detail::alone_in(t);
    base().decode(alone, row_parts<std::byte const>{row, row + stored.codes, 0, 0}, matrix_view<float, D>{low, 1});
    for (int c = 0; c < D; ++c) high[c] = low[c];
  }

 private:
  /// Adds q . R_j m to the scores of lane j, m the mean centre of the tile's first block. Of a pair (a, b) of m and (p, q) of a query it is
  /// cos_j * (p a + q b) + sin_j * (q a - p b): a row of folded numbers against the table of the lanes' turns.
  template <int D, team Team, class Query>
  CELLAR_HD void add_turned_share(Team& t, Query const& query, i64 count, float const* table, std::byte* scratch, matrix_view<float> scores) const {
    auto* const middle = reinterpret_cast<float*>(scratch);
    float* const folded = middle + D;  // (query of the group, pair: those for cosines, then those for sines)
    if (t.rank() == 0) {
      for (int c = 0; c < D; ++c) middle[c] = 0;
      for (int r = 0; r < block_tokens; ++r) {
        float one_center[D];
        codec.center.center(t, r, one_center);
        for (int c = 0; c < D; ++c) middle[c] += one_center[c] / float(block_tokens);
      }
    }
    bool const adjacent = codec.center.embedding().pairing == rotary_pairing::adjacent;
    for (i64 h = 0; h < count; h += folded_rows) {
      i64 const rows = count - h < folded_rows ? count - h : folded_rows;
      t.sync();
      for (int i = int(t.rank()); i < D / 2; i += int(t.size())) {
        int const first = adjacent ? 2 * i : i, second = adjacent ? 2 * i + 1 : i + D / 2;
        float const a = middle[first], b = middle[second];
        for (i64 r = 0; r < rows; ++r) {
          float const p = query(h + r)[first], q = query(h + r)[second];
          folded[r * D + i] = p * a + q * b;
          folded[r * D + D / 2 + i] = q * a - p * b;
        }
      }
      t.sync();
      float shares[folded_rows * tile_blocks];
      score_lanes<float>(t, folded, D, rows, D, reinterpret_cast<std::byte const*>(table), tile_blocks,
                         matrix_view<float>{shares, rows, tile_blocks, tile_blocks});
      for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size()))
        for (i64 r = 0; r < rows; ++r) scores(h + r, lane) += shares[r * tile_blocks + lane];
    }
  }

  CELLAR_HD base_codec base() const {
    if constexpr (turns || stores_mean)
      return codec.base;
    else
      return codec;
  }
  CELLAR_HD int heads() const {
    if constexpr (of_all_heads<Codec>)
      return codec.heads;
    else
      return 1;
  }
  static constexpr i64 folded_rows = 4;

  /// Of a query, behind the codec's records of all queries: the query itself, where a centre has a share in its scores.
  CELLAR_HD static i64 extra_bytes(i64 head_dim) { return turns || stores_mean ? round_up(head_dim * i64(sizeof(float)), 16) : 0; }
  /// Behind those of all queries: the turns of a tile's lanes.
  CELLAR_HD static i64 table_bytes(i64 head_dim) { return turns ? tile_blocks * head_dim * i64(sizeof(float)) : 0; }
  CELLAR_HD static i64 group_at(i64 count, i64 first) { return count - first < base_codec::query_group ? count - first : base_codec::query_group; }
};
// That it models block_summary is asserted with the codecs of named schemes (scheme/yakv.hpp, yakv_centred.hpp): a summary includes no codec.

}  // namespace cellar::summary
