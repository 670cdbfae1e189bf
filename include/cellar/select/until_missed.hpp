#pragma once
#include <ratio>

#include "cellar/select/top_p.hpp"

namespace cellar::inline CELLAR_ABI::select {

/// The fewest blocks of highest score that leave at most Missed of all attention, near and far, to the rest; at least Least of the budget, or of the
/// blocks where they are fewer, at most all of it. As top_k picks: the highest ones, ties by lowest id.
///
/// The budget is what a hard step may take: an easy one takes Least of it. Decided anew for each step, layer and KV head, before anything is fetched, so that
/// nothing is to be taken back.
///
/// A score is the logarithm of a share (max_of_attention); shares are summed as integers of which 2^32 is one, as top_p sums them. Over a group's heads the
/// sum of largest shares is at least what any one head misses. A NaN has no share.
///
/// Template    Missed in (0, 1), Least in [0, 1]: std::ratio, denominators at most 2^20
/// Requires    scores that are logarithms of shares of all attention: reduce = max_of_attention
/// Complexity  at most thirteen readings of the scores
template <class Missed = std::ratio<1, 20>, class Least = std::ratio<1, 4>>
struct until_missed {
  static_assert(Missed::num > 0 && Missed::num < Missed::den && Missed::den <= 1 << 20, "until_missed: Missed must be above 0 and below 1");
  static_assert(Least::num >= 0 && Least::num <= Least::den && Least::den <= 1 << 20, "until_missed: Least must be a share of the budget, from 0 to 1");
  static constexpr bool reads_scores = true;
  static constexpr bool reads_shares = true;
  static constexpr i64 shared_bytes = top_p<>::shared_bytes;

  i64 k = 0;

  CELLAR_HD until_missed with_budget(i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD i64 max_selected(i64 blocks) const { return k < blocks ? k : blocks; }
  /// Blocks that it takes at any rate.
  CELLAR_HD i64 min_selected(i64 blocks) const {
    i64 const least = k / Least::den * Least::num + (k % Least::den * Least::num + Least::den - 1) / Least::den;
    return least < blocks ? least : blocks;
  }

  template <team Team>
  CELLAR_HD i64 operator()(Team& t, row_view<float const> scores, row_view<logical_block> ids) const {
    auto const counts = detail::radix_scratch<std::uint32_t>::of(t);
    auto const sums = detail::radix_scratch<std::uint64_t>::of(t);
    i64 const most = max_selected(scores.count), least = min_selected(scores.count);
    if (most == 0) return 0;
    constexpr std::uint64_t one = std::uint64_t(1) << 32, allowed = one / Missed::den * Missed::num + one % Missed::den * Missed::num / Missed::den;
    auto const share = [](float score) { return detail::falling_weight(score > 0 ? 0.0f : -score); };  // none of a NaN
    std::uint64_t all = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) all += share(scores[i]);
    all = t.reduce(all, plus{});
    if (all <= allowed) return least > 0 ? detail::write_highest(t, scores, least, ids, counts) : 0;
    auto const last = detail::radix_search(
        t, scores, all - allowed, [&](i64 i) { return share(scores[i]); }, sums);
    std::uint32_t greater = 0;
    for (i64 i = t.rank(); i < scores.count; i += t.size()) greater += ordered_bits(scores[i]) > last.key;
    greater = t.reduce(greater, plus{});
    std::uint64_t const each = share(from_ordered_bits(last.key));
    i64 const needed = greater + i64((last.rest + each - 1) / each);
    if (needed > most || needed < least) return detail::write_highest(t, scores, needed > most ? most : least, ids, counts);
    return detail::write_best(t, scores, last.key, std::uint32_t(needed - greater), ids);
  }
};
static_assert(block_selector<until_missed<>> && selector_of_shares<until_missed<>>);

}  // namespace cellar::select
