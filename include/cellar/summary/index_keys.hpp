#pragma once
#include "cellar/summary/quantized_key.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// A model's own indexer: one index key a token, coded, asked by Heads index queries with a weight each; the engine supplies all three.
///
/// Score   sum over the index heads h of w_h * ReLU(q_h . decode(key)), one a query token; weights may be negative
/// Bytes   Codec's row of Dim channels a token: with fp8_e4m3<float> 132
/// Source  lightning indexer of DeepSeek-V3.2 (DeepSeek Sparse Attention, arXiv:2512.02556). Deviations: index queries stay in f32 as given, and the scale of a
///         coded key is no power of two. What the model does to keys and queries before (norm, rotary embedding, Hadamard transform) is the engine's
template <int Heads, int Dim, class Codec>
struct index_keys {
  static_assert(Heads > 0 && Dim % 8 == 0 && Dim <= 256, "index_keys: there are heads, and channels of a multiple of 8 up to 256");
  static_assert(Codec::token_group == 1 && scope_of<Codec> == scope::one_head && !trained<Codec> && !positional<Codec>,
                "index_keys: the codec stores single rows of one head, and neither learns nor knows positions");
  using keys = quantized_key<Codec>;
  static constexpr int index_heads = Heads, index_dim = Dim;
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = keys::tile_blocks;

  CELLAR_HD constexpr float largest(i64 channels) const { return keys{}.largest(channels); }
  CELLAR_HD i64 tile_bytes(i64 channels) const { return keys{}.tile_bytes(channels); }
  /// Products of a tile with some queries, [group, tile_blocks].
  CELLAR_HD i64 scratch_bytes(i64) const { return group * tile_blocks * i64(sizeof(float)); }
  CELLAR_HD i64 prepared_bytes(i64 tokens, i64 channels) const { return tokens * (Heads * Codec{}.query_bytes(channels) + weight_bytes); }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> rows, i64 blocks, std::byte* tile, int first_lane) const {
    keys{}.build(t, rows, blocks, tile, first_lane);
  }

  template <team Team>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, Dim> queries, float const* weights, prepared_queries<std::byte, Dim> to) const {
    i64 const tokens = queries.rows / Heads, bytes = Codec{}.query_bytes(Dim);
    for (i64 token = 0; token < tokens; ++token) {
      std::byte* const mine = to.data + token * prepared_bytes(1, Dim);
      for (int h = 0; h < Heads; h += group) {
        i64 const row = token * Heads + h;
        if constexpr (group_code_scorer<Codec, Dim>)
          Codec{}.template prepare_group<Dim>(t, matrix_view<float const, Dim>{queries.row(row), group_at(h), queries.stride}, mine + h * bytes);
        else
          Codec{}.template prepare_query<Dim>(t, queries.row(row), mine + h * bytes);
      }
      auto* const weight = reinterpret_cast<float*>(mine + Heads * bytes);
      for (int h = int(t.rank()); h < Heads; h += int(t.size())) weight[h] = weights[token * Heads + h];
    }
  }

  template <team Team>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, Dim> from, std::byte const* tile, matrix_view<float> scores) const {
    i64 const bytes = Codec{}.query_bytes(Dim);
    std::byte const* const scales = tile + tile_blocks * Codec{}.bytes(Dim).codes;
    matrix_view<float> const products{reinterpret_cast<float*>(from.scratch), group, tile_blocks, tile_blocks};
    for (i64 token = 0; token < from.count; ++token) {
      std::byte const* const mine = from.data + token * prepared_bytes(1, Dim);
      auto const* const weight = reinterpret_cast<float const*>(mine + Heads * bytes);
      for (int h = 0; h < Heads; h += group) {
        if constexpr (group_code_scorer<Codec, Dim>)
          Codec{}.template score_group<Dim>(t, mine + h * bytes, int(group_at(h)), tile, scales, tile_blocks, products);
        else
          Codec{}.template score_codes<Dim>(t, mine + h * bytes, tile, scales, tile_blocks, products.data);
        for (int lane = int(t.rank()); lane < tile_blocks; lane += int(t.size())) {  // of the member that scored it
          float sum = h == 0 ? 0.0f : scores(token, lane);
          for (i64 g = 0; g < group_at(h); ++g) sum += weight[h + g] * maximum{}(products(g, lane), 0.0f);
          scores(token, lane) = sum;
        }
      }
    }
    t.sync();
  }

 private:
  static constexpr int group = [] {
    if constexpr (group_code_scorer<Codec, Dim>)
      return Codec::query_group < Heads ? Codec::query_group : Heads;
    else
      return 1;
  }();
  static constexpr i64 weight_bytes = round_up(Heads * i64(sizeof(float)), 16);

  CELLAR_HD static i64 group_at(int first) { return Heads - first < group ? Heads - first : group; }
};
// That it models indexed_summary is asserted with the codec of scheme/dsa.hpp: a summary includes no codec.

}  // namespace cellar::summary
