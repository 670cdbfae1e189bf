#pragma once
#include "cellar/core/vector.hpp"
#include "cellar/select/concept.hpp"

/// The search and the writing that selectors by score share: exact, and the same for any team.
namespace cellar::inline CELLAR_ABI::select::detail {

/// Sums of 256 bins by 32-bit atomics; in 64 bits as two words, whose carries are exact in any order since each addition learns what it added to.
template <class Weight>
struct radix_scratch {
  static constexpr i64 words = sizeof(Weight) == 8 ? 2 : 1;
  static constexpr i64 bytes = (256 * words + 1) * sizeof(std::uint32_t) + sizeof(Weight) + 3 * 16;

  std::uint32_t* bins = nullptr;   // [256][words]
  std::uint32_t* digit = nullptr;  // [1]
  Weight* rest = nullptr;          // [1]

  template <team Team>
  CELLAR_HD static radix_scratch of(Team& t) {
    radix_scratch s;
    s.bins = shared_array<std::uint32_t>(t, 256 * words);
    s.digit = shared_array<std::uint32_t>(t, 1);
    s.rest = shared_array<Weight>(t, 1);
    return s;
  }
  template <team Team>
  CELLAR_HD void add(Team& t, std::uint32_t bin, Weight w) const {
    auto const low = std::uint32_t(w);
    std::uint32_t const old = t.atomic_add(&bins[bin * words], low);
    if constexpr (words == 2) {
      std::uint32_t const high = std::uint32_t(w >> 32) + (old + low < old ? 1u : 0u);
      if (high != 0) t.atomic_add(&bins[bin * words + 1], high);
    }
  }
  CELLAR_HD Weight sum(std::uint32_t bin) const {
    if constexpr (words == 2)
      return Weight(bins[bin * words + 1]) << 32 | bins[bin * words];
    else
      return bins[bin];
  }
};

/// A place in the order of the scores: every key above `key`, and those equal to it up to a weight of `rest`.
template <class Weight>
struct radix_place {
  std::uint32_t key = 0;
  Weight rest = 0;
};

/// Where the sum of weights, from the highest key downwards, reaches `wanted`. Eight bits a pass.
///
/// Requires    wanted at least 1 and at most the sum of all; equal scores have equal weights; weight(i) of block i
/// Complexity  four readings of the scores
template <class Weight, team Team, class WeightOf>
CELLAR_HD radix_place<Weight> radix_search(Team& t, row_view<float const> scores, Weight wanted, WeightOf const& weight, radix_scratch<Weight> const& s) {
  radix_place<Weight> at{0, wanted};
  std::uint32_t known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (unsigned i = t.rank(); i < 256 * s.words; i += t.size()) s.bins[i] = 0;
    t.sync();
    for (i64 i = t.rank(); i < scores.count; i += t.size()) {
      std::uint32_t const key = ordered_bits(scores[i]);
      if ((key & known) == at.key) s.add(t, key >> shift & 255u, weight(i));
    }
    t.sync();
    Weight above = 0;
    for (unsigned base = 0; base < 256; base += t.size()) {  // bins from the top, a team's width at a time
      unsigned const r = base + t.rank();
      Weight const mine = r < 256 ? s.sum(255 - r) : 0;
      Weight total = 0;
      Weight const before = above + t.scan(mine, total);
      if (before < at.rest && at.rest <= before + mine) {
        *s.digit = 255 - r;
        *s.rest = at.rest - before;
      }
      above += total;
    }
    t.sync();
    at.key |= *s.digit << shift;
    known |= 255u << shift;
    at.rest = *s.rest;
  }
  return at;
}

/// Writes, ascending, the ids of the blocks whose key is above `key`, and of the first `equals` whose key equals it. Each warp owns a run of blocks; it
/// counts, learns what lies before it, and writes.
///
/// Returns     how many, on every member
/// Complexity  two readings of the scores
template <team Team>
CELLAR_HD i64 write_best(Team& t, row_view<float const> scores, std::uint32_t key, std::uint32_t equals, row_view<logical_block> ids) {
  auto w = t.warp();
  constexpr unsigned width = decltype(w)::width;
  i64 const n = scores.count, run = ceil_div(ceil_div(n, width), w.count()) * width;
  i64 const begin = w.index() * run, end = begin + run < n ? begin + run : n;
  std::uint32_t greater = 0, equal = 0;
  for (i64 base = begin; base < end; base += width) {
    i64 const i = base + w.lane();
    std::uint32_t const mine = i < end ? ordered_bits(scores[i]) : 0;
    greater += std::uint32_t(popcount(w.ballot(i < end && mine > key)));
    equal += std::uint32_t(popcount(w.ballot(i < end && mine == key)));
  }
  std::uint32_t all_greater = 0, all_equal = 0;
  std::uint32_t greater_before = t.scan(w.lane() == 0 ? greater : 0u, all_greater);
  std::uint32_t equal_before = t.scan(w.lane() == 0 ? equal : 0u, all_equal);
  greater_before = w.shuffle(greater_before, 0);
  equal_before = w.shuffle(equal_before, 0);
  std::uint32_t const lower_lanes = (1u << w.lane()) - 1;
  for (i64 base = begin; base < end; base += width) {
    i64 const i = base + w.lane();
    std::uint32_t const mine = i < end ? ordered_bits(scores[i]) : 0;
    bool const is_greater = i < end && mine > key, is_equal = i < end && mine == key;
    std::uint32_t const greater_lanes = w.ballot(is_greater), equal_lanes = w.ballot(is_equal);
    std::uint32_t const g = greater_before + std::uint32_t(popcount(greater_lanes & lower_lanes));
    std::uint32_t const e = equal_before + std::uint32_t(popcount(equal_lanes & lower_lanes));
    if (is_greater || (is_equal && e < equals)) ids[g + (e < equals ? e : equals)] = logical_block(i);
    greater_before += std::uint32_t(popcount(greater_lanes));
    equal_before += std::uint32_t(popcount(equal_lanes));
  }
  t.sync();
  return i64(all_greater) + (equals < all_equal ? equals : all_equal);
}

/// Writes the ids of the `take` blocks of highest score: ties go to the lowest id, NaN ranks lowest.
///
/// Requires    take <= scores.count
/// Complexity  six readings of the scores
template <team Team>
CELLAR_HD i64 write_highest(Team& t, row_view<float const> scores, i64 take, row_view<logical_block> ids, radix_scratch<std::uint32_t> const& s) {
  if (auto const* const k = cellar::detail::kernels_of(t)) {
    if (take > 0) k->write_highest(scores.data, scores.count, take, ids.data);
    return take;
  }
  auto const last = radix_search(
      t, scores, std::uint32_t(take), [](i64) { return 1u; }, s);
  return write_best(t, scores, last.key, last.rest, ids);
}

/// The highest key of the scores, on every member; 0 where all are NaN.
template <team Team>
CELLAR_HD std::uint32_t highest_key(Team& t, row_view<float const> scores) {
  std::uint32_t top = 0;
  for (i64 i = t.rank(); i < scores.count; i += t.size()) top = maximum{}(top, ordered_bits(scores[i]));
  return t.reduce(top, maximum{});
}

}  // namespace cellar::select::detail
