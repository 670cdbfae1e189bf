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

/// f(i, score) for every score, by members in turn; those of a block read four at a time, and more ahead.
template <team Team, class F>
CELLAR_HD void for_scores(Team const& t, row_view<float const> scores, F const& f) {
  i64 i = t.rank();
  if constexpr (!std::is_same_v<Team, serial_team>) {
    constexpr int width = 4, ahead = 4;
    i64 const step = i64{t.size()} * width, whole = reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0 ? scores.count / (step * ahead) * step * ahead : 0;
    for (i64 base = i64{t.rank()} * width; base < whole; base += step * ahead) {
      loaded_bytes<16> some[ahead];
      for (int k = 0; k < ahead; ++k) some[k] = load_aligned<16>(scores.data + base + k * step);
      for (int k = 0; k < ahead; ++k)
        for (int j = 0; j < width; ++j) f(base + k * step + j, scalar_of<float>(some[k], j));
    }
    i += whole;
  }
  for (; i < scores.count; i += t.size()) f(i, scores[i]);
}

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
    for_scores(t, scores, [&](i64 i, float x) {
      std::uint32_t const key = ordered_bits(x);
      if ((key & known) == at.key) s.add(t, key >> shift & 255u, weight(i));
    });
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

/// radix_search for the `take` highest scores, for teams of many members: cells of equal width between the lowest and the highest score spread what a digit of
/// the keys would not, and only the scores of one cell are searched. Where they are too many, all are.
///
/// Complexity  three readings of the scores; seven where a cell has more than its room
struct cells {
  static constexpr int count = 2048, room = 2048;
  static constexpr i64 bytes = (count + 1) * i64(sizeof(std::uint32_t)) + room * i64(sizeof(float)) + 3 * 16;
};
template <team Team>
CELLAR_HD radix_place<std::uint32_t> search_in_cells(Team& t, row_view<float const> scores, std::uint32_t take, radix_scratch<std::uint32_t> const& s) {
  auto* const bins = shared_array<std::uint32_t>(t, cells::count);
  auto* const found = shared_array<std::uint32_t>(t, 1);
  float* const list = shared_array<float>(t, cells::room);
  auto const one = [](i64) { return 1u; };
  float low = infinity, high = -infinity;
  for_scores(t, scores, [&](i64, float x) {
    low = is_finite(x) && x < low ? x : low;
    high = is_finite(x) && x > high ? x : high;
  });
  low = -t.reduce(-low, maximum{});
  high = t.reduce(high, maximum{});
  float const scale = float(cells::count - 1) / (high - low);
  if (!(low < high) || !(scale > 0) || !is_finite(scale)) return radix_search(t, scores, take, one, s);
  auto const cell_of = [&](float x) {  // rises with x, as each step of it does
    float const at = (x - low) * scale;
    return at > 0 ? at < float(cells::count - 1) ? std::uint32_t(at) : std::uint32_t(cells::count - 1) : 0u;
  };
  for (int i = int(t.rank()); i < cells::count; i += int(t.size())) bins[i] = 0;
  if (t.rank() == 0) *found = 0;
  t.sync();
  for_scores(t, scores, [&](i64, float x) { t.atomic_add(&bins[cell_of(x)], 1u); });
  t.sync();
  std::uint32_t above = 0;
  for (unsigned base = 0; base < cells::count; base += t.size()) {  // from the top
    unsigned const r = base + t.rank();
    std::uint32_t const mine = r < cells::count ? bins[cells::count - 1 - r] : 0;
    std::uint32_t total = 0;
    std::uint32_t const before = above + t.scan(mine, total);
    if (before < take && take <= before + mine) {
      *s.digit = cells::count - 1 - r;
      *s.rest = take - before;
    }
    above += total;
  }
  t.sync();
  std::uint32_t const cell = *s.digit, rest = *s.rest;
  for_scores(t, scores, [&](i64, float x) {
    if (cell_of(x) != cell) return;
    std::uint32_t const at = t.atomic_add(found, 1u);
    if (at < cells::room) list[at] = x;
  });
  t.sync();
  if (*found > cells::room) return radix_search(t, scores, take, one, s);
  return radix_search(t, row_view<float const>{list, i64(*found)}, rest, one, s);
}

/// Writes, ascending, the ids of the blocks whose key is above `key`, and of the first `equals` whose key equals it. Each warp owns a run of blocks; it
/// counts, learns what lies before it, and writes. A lane takes four neighbours at a time.
///
/// Shapes      scores: of the blocks first, first + 1, ..., before which there are so many above and equal
/// Returns     how many there are of these, on every member
/// Complexity  two readings of the scores
template <team Team>
CELLAR_HD i64 write_best(Team& t, row_view<float const> scores, std::uint32_t key, std::uint32_t equals, row_view<logical_block> ids, i64 first = 0,
                         std::uint32_t above_first = 0, std::uint32_t equal_before_first = 0) {
  auto w = t.warp();
  constexpr unsigned width = decltype(w)::width;
  constexpr int each = width == 1 ? 1 : 4, span = int(width) * each;
  i64 const n = scores.count, run = ceil_div(ceil_div(n, span), w.count()) * span;
  i64 const begin = w.index() * run, end = begin + run < n ? begin + run : n;
  bool const is_aligned = each == 4 && reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0;
  auto const read = [&](i64 i, std::uint32_t(&keys)[each]) {  // 0 beyond the end: below and equal to no key that is searched for
    if (is_aligned && i + each <= end) {
      auto const some = load_aligned<4 * each>(scores.data + i);
      for (int j = 0; j < each; ++j) keys[j] = ordered_bits(scalar_of<float>(some, j));
    } else {
      for (int j = 0; j < each; ++j) keys[j] = i + j < end ? ordered_bits(scores[i + j]) : 0;
    }
  };
  std::uint32_t greater = 0, equal = 0;
  for (i64 i = begin + w.lane() * each; i < end; i += span) {
    std::uint32_t keys[each];
    read(i, keys);
    for (int j = 0; j < each; ++j) {
      greater += keys[j] > key;
      equal += i + j < end && keys[j] == key;
    }
  }
  std::uint32_t all_greater = 0, all_equal = 0;
  std::uint32_t greater_before = t.scan(greater, all_greater), equal_before = t.scan(equal, all_equal);
  // A member's own blocks are not neighbours: what lies before is the warp's share, and in it what ballots tell.
  greater_before = w.shuffle(greater_before, 0) + above_first;
  equal_before = w.shuffle(equal_before, 0) + equal_before_first;
  std::uint32_t const lower_lanes = (1u << w.lane()) - 1;
  for (i64 base = begin; base < end; base += span) {
    i64 const i = base + w.lane() * each;
    std::uint32_t keys[each];
    read(i, keys);
    std::uint32_t greater_lanes[each], equal_lanes[each], g = greater_before, e = equal_before;
    for (int j = 0; j < each; ++j) {
      greater_lanes[j] = w.ballot(keys[j] > key);
      equal_lanes[j] = w.ballot(i + j < end && keys[j] == key);
      g += std::uint32_t(popcount(greater_lanes[j] & lower_lanes));
      e += std::uint32_t(popcount(equal_lanes[j] & lower_lanes));
      greater_before += std::uint32_t(popcount(greater_lanes[j]));
      equal_before += std::uint32_t(popcount(equal_lanes[j]));
    }
    for (int j = 0; j < each; ++j) {
      bool const is_greater = keys[j] > key, is_equal = i + j < end && keys[j] == key;
      if (is_greater || (is_equal && e < equals)) ids[g + (e < equals ? e : equals)] = logical_block(first + i + j);
      g += is_greater;
      e += is_equal;
    }
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
  radix_place<std::uint32_t> last;
  if constexpr (std::is_same_v<Team, serial_team>)
    last = radix_search(
        t, scores, std::uint32_t(take), [](i64) { return 1u; }, s);
  else
    last = search_in_cells(t, scores, std::uint32_t(take), s);
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
