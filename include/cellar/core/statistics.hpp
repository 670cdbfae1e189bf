#pragma once
#include "cellar/core/math.hpp"

namespace cellar::inline CELLAR_ABI {

/// What attend calls did, summed over them. Collected only when a cache is given one to fill.
///
/// Seconds are of work, summed over the workers. On the host, `fetch` is the decoding of far rows: a directly readable tier copies nothing.
struct statistics {
  i64 attends = 0;           ///< Calls, one a layer and step.
  i64 fetched_blocks = 0;    ///< Far blocks read, summed over KV heads. Outliers, which are near, are none.
  i64 moved_bytes = 0;       ///< Read from the tier: their planes, without those that the near pool had.
  i64 pool_hits = 0;         ///< Runs of selected blocks found in the near pool.
  i64 pool_misses = 0;       ///< Runs that were not: fetched into it, or past it where all of it is in use.
  i64 scored_blocks = 0;     ///< Far blocks that were scored, summed over KV heads; of summaries of two levels, those that the fine level scored.
  i64 undefined_scores = 0;  ///< Blocks whose score was NaN, which ranks last: a summary that overflowed.
  i64 lost_samples = 0;      ///< Of query rows, that the budget cut (schemes that sample): their estimates are too low.
  struct {
    double score = 0, select = 0, fetch = 0, attend = 0;
  } seconds;
};

}  // namespace cellar
