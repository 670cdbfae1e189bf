#pragma once
#include "cellar/layout/concept.hpp"

namespace cellar::inline CELLAR_ABI::layout {

/// Block, head, plane, row: everything of one (block, head) is one run, so one fetch is one copy. Shared planes follow the last head.
struct tile_major {
  using block_id = physical_block;
  static constexpr bool is_run_contiguous = true;

  block_geometry geometry;
  i64 blocks = 0;

  CELLAR_HD constexpr i64 bytes() const { return blocks * geometry.block_bytes(); }
  CELLAR_HD constexpr i64 row_stride(plane p) const { return geometry.row_bytes[int(p)]; }
  CELLAR_HD constexpr i64 offset(plane p, physical_block block, int head, i64 row) const {
    bool const shared = geometry.is_shared[int(p)];
    i64 const slice = (shared ? geometry.heads : head) * geometry.slice_bytes();
    return number(block) * geometry.block_bytes() + slice + geometry.bytes_before(int(p), shared) + row * row_stride(p);
  }
};
static_assert(physical_layout<tile_major>);

}  // namespace cellar::layout
