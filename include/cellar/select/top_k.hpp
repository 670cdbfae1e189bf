#pragma once
#include "cellar/select/concept.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The k blocks of highest score, exactly: ties go to the lowest id, NaN ranks lowest.
///
/// A radix search finds the k-th key, eight bits a pass; a second walk writes the ids in ascending order.
///
/// Complexity  at most six readings of the scores
struct top_k {
  static constexpr bool reads_scores = true;
  static constexpr i64 shared_bytes = (256 + 2) * sizeof(std::uint32_t) + 32;

  i64 k = 0;

  CELLAR_HD top_k with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto* const histogram = shared_array<std::uint32_t>(t, 256);
    auto* const pick = shared_array<std::uint32_t>(t, 2);  // {digit of the k-th key, how many to take of its bin}
    i64 const n = scores.count, take = max_selected(n);
    if (take == 0) return 0;

    std::uint32_t threshold = 0, known = 0;  // the k-th key, as far as its bits are known
    auto wanted = std::uint32_t(take);       // how many keys equal to it, so far, are taken
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (unsigned i = t.rank(); i < 256; i += t.size()) histogram[i] = 0;
      t.sync();
      for (i64 i = t.rank(); i < n; i += t.size()) {
        std::uint32_t const key = ordered_bits(scores[i]);
        if ((key & known) == threshold) t.atomic_add(&histogram[key >> shift & 255u], 1u);
      }
      t.sync();
      std::uint32_t above = 0;
      for (unsigned base = 0; base < 256; base += t.size()) {  // bins from the top, a team's width at a time
        unsigned const r = base + t.rank();
        std::uint32_t const count = r < 256 ? histogram[255 - r] : 0;
        std::uint32_t total = 0;
        std::uint32_t const before = above + t.scan(count, total);
        if (before < wanted && wanted <= before + count) {
          pick[0] = 255 - r;
          pick[1] = wanted - before;
        }
        above += total;
      }
      t.sync();
      threshold |= pick[0] << shift;
      known |= 255u << shift;
      wanted = pick[1];
    }

    // Each warp owns a run of blocks; it counts, learns what lies before it, and writes.
    auto w = t.warp();
    constexpr unsigned width = decltype(w)::width;
    i64 const run = ceil_div(ceil_div(n, width), w.count()) * width;
    i64 const begin = w.index() * run, end = begin + run < n ? begin + run : n;
    std::uint32_t greater = 0, equal = 0;
    for (i64 base = begin; base < end; base += width) {
      i64 const i = base + w.lane();
      std::uint32_t const key = i < end ? ordered_bits(scores[i]) : 0;
      greater += std::uint32_t(popcount(w.ballot(i < end && key > threshold)));
      equal += std::uint32_t(popcount(w.ballot(i < end && key == threshold)));
    }
    std::uint32_t total = 0;
    std::uint32_t greater_before = t.scan(w.lane() == 0 ? greater : 0u, total);
    std::uint32_t equal_before = t.scan(w.lane() == 0 ? equal : 0u, total);
    greater_before = w.shuffle(greater_before, 0);
    equal_before = w.shuffle(equal_before, 0);
    std::uint32_t const lower_lanes = (1u << w.lane()) - 1;
    for (i64 base = begin; base < end; base += width) {
      i64 const i = base + w.lane();
      std::uint32_t const key = i < end ? ordered_bits(scores[i]) : 0;
      bool const is_greater = i < end && key > threshold, is_equal = i < end && key == threshold;
      std::uint32_t const greater_lanes = w.ballot(is_greater), equal_lanes = w.ballot(is_equal);
      std::uint32_t const g = greater_before + std::uint32_t(popcount(greater_lanes & lower_lanes));
      std::uint32_t const e = equal_before + std::uint32_t(popcount(equal_lanes & lower_lanes));
      if (is_greater || (is_equal && e < wanted)) ids[g + (e < wanted ? e : wanted)] = logical_block(i);
      greater_before += std::uint32_t(popcount(greater_lanes));
      equal_before += std::uint32_t(popcount(equal_lanes));
    }
    t.sync();
    return take;
  }
};
static_assert(block_selector<top_k>);

}  // namespace cellar::select
