#pragma once
#include "cellar/summary/concept.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Summary, asked by the Count largest channels of each query alone, ties to the lowest channel, and by sqrt(|q|_1 / |q_Count|_1) times them: the softmax of
/// fewer products is as sharp as that of all.
///
/// Score   sqrt(|q|_1 / |q_Count|_1) times Summary's of that query
/// Bytes   Summary's. Every channel of it is read, though those of no query's count need not be
/// Source  SparQ, Ribar et al., arXiv:2312.04985: the approximate scores, whose temperature is sqrt(head_dim |q_r|_1 / |q|_1). Deviation: each query head has
///         channels of its own (published for groups: those of the group's summed magnitudes)
template <int Count, class Summary>
struct by_largest_channels : Summary {
  static constexpr bool is_upper_bound = false;
  static constexpr bool has_plain_tiles = requires { requires std::same_as<typename Summary::plain_tiles_of, Summary>; };
  using plain_tiles_of = std::conditional_t<has_plain_tiles, by_largest_channels, void>;
  static_assert(Count > 0, "by_largest_channels: a query has channels");
  static_assert(!trained<Summary> && !positional<Summary> && !rotary_aware<Summary> && scope_of<Summary> == scope::one_head,
                "by_largest_channels: the summary must not learn, nor know positions, nor be of all heads");

  CELLAR_HD i64 prepared_bytes(i64 queries, i64 head_dim) const { return summary_bytes(queries, head_dim) + queries * head_dim * i64(sizeof(float)); }
  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const kept = reinterpret_cast<float*>(to.data + summary_bytes(queries.rows, D));  // (query, channel)
    auto const size = [&](i64 h, int c) { return queries(h, c) < 0 ? -queries(h, c) : queries(h, c); };
    for (i64 i = t.rank(); i < queries.rows * D; i += t.size()) {
      i64 const h = i / D;
      int const c = int(i % D);
      int before = 0;
      for (int other = 0; other < D; ++other) before += size(h, other) > size(h, c) || (size(h, other) == size(h, c) && other < c);
      kept[i] = before < Count ? queries(h, c) : 0.0f;
    }
    t.sync();
    for (i64 h = t.rank(); h < queries.rows; h += t.size()) {
      float all = 0, some = 0;
      for (int c = 0; c < D; ++c) {
        all += size(h, c);
        some += kept[h * D + c] < 0 ? -kept[h * D + c] : kept[h * D + c];
      }
      float const factor = some > 0 ? std::sqrt(all / some) : 1.0f;
      for (int c = 0; c < D; ++c) kept[h * D + c] *= factor;
    }
    t.sync();
    Summary::prepare(t, matrix_view<float const, D>{kept, queries.rows}, to);
  }

 private:
  CELLAR_HD i64 summary_bytes(i64 queries, i64 head_dim) const { return round_up(Summary::prepared_bytes(queries, head_dim), 16); }
};
// That it models block_summary is asserted where the summary is named (scheme/sparq.hpp).

}  // namespace cellar::summary
