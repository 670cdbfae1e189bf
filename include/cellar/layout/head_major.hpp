#pragma once
#include "cellar/layout/concept.hpp"

namespace cellar::inline CELLAR_ABI::layout {

/// Plane, head, block, row: each plane is [heads, tokens, channels], so that a head's consecutive tokens lie side by side.
struct head_major {
  using block_id = physical_block;
  static constexpr bool is_run_contiguous = false;

  block_geometry geometry;
  i64 blocks = 0;

  CELLAR_HD constexpr i64 bytes() const { return blocks * geometry.block_bytes(); }
  CELLAR_HD constexpr i64 row_stride(plane p) const { return geometry.row_bytes[int(p)]; }
  CELLAR_HD constexpr i64 offset(plane p, physical_block block, int head, i64 row) const {
    i64 at = 0;
    for (int before = 0; before < int(p); ++before) at += blocks * geometry.rows[before] * geometry.copies(before) * geometry.row_bytes[before];
    i64 const copy = geometry.is_shared[int(p)] ? 0 : head;
    return at + ((copy * blocks + number(block)) * geometry.rows[int(p)] + row) * row_stride(p);
  }
};
static_assert(physical_layout<head_major>);

}  // namespace cellar::layout
