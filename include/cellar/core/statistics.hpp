#pragma once
#include "cellar/core/math.hpp"

namespace cellar {

/// What decode steps did, summed over them. Collected only when a cache is given one to fill.
///
/// Seconds are of work, summed over the workers. On the host, `fetch` is the decoding of far rows: a directly readable tier copies nothing.
struct statistics {
  i64 steps = 0;           ///< attend calls, one a layer.
  i64 fetched_blocks = 0;  ///< Far blocks read, summed over KV heads.
  i64 moved_bytes = 0;     ///< Their planes.
  struct {
    double score = 0, select = 0, fetch = 0, attend = 0;
  } seconds;
};

}  // namespace cellar
