#pragma once
#include "cellar/operation/memory.hpp"

/// What query rows sampled, from the selection that knows to the attention that weighs by it.
namespace cellar::inline CELLAR_ABI::operation {

/// Whether a scheme's chosen blocks are samples.
template <offloading_scheme S>
inline constexpr bool is_sampled = sampling_remainder<typename S::remainder>;

/// Which rows sampled which of a (sequence, KV head)'s chosen blocks: bit row % 32 of the words [row / 32][place in the list].
struct row_samples {
  std::uint32_t const* bits = nullptr;  ///< Null: nothing is weighed.
  i64 selected = 0;                     ///< Places.

  CELLAR_HD static constexpr i64 words(i64 rows, i64 selected) { return ceil_div(rows, 32) * selected; }
  CELLAR_HD bool has(i64 row, i64 place) const { return bits[row / 32 * selected + place] >> (row % 32) & 1u; }
};

/// Writes which rows sampled the chosen blocks, by their scores.
///
/// Shapes   scores [rows, blocks]; to: row_samples::words(rows, selected)
/// Effects  a body over a team
template <team Team, offloading_scheme S>
  requires(is_sampled<S>)
CELLAR_HD void mark_samples(Team& t, sequence_view<S> const&, matrix_view<float const> scores, row_view<logical_block const> chosen, i64 selected,
                            std::uint32_t* to) {
  for (i64 i = t.rank(); i < row_samples::words(scores.rows, selected); i += t.size()) {
    i64 const first = i / selected * 32, place = i % selected;
    std::uint32_t bits = 0;
    if (place < chosen.count)
      for (i64 r = first; r < first + 32 && r < scores.rows; ++r)
        bits |= std::uint32_t(S::summary::is_sampled(scores(r, number(chosen[place])))) << (r - first);
    to[i] = bits;
  }
  t.sync();
}

/// The logit of a far token that a row sampled, as it is weighed.
///
/// Shapes  logit: as the attention bends it; product: query . key times the softmax scale; length: of the key, by the summary
template <offloading_scheme S>
  requires(is_sampled<S>)
CELLAR_HD float sampled_logit(float logit, float product, sampling_row const& row, float length) {
  return logit + S::remainder::correction(S::summary::log_chance(row, product, length));
}

}  // namespace cellar::operation
