#pragma once
#include "cellar/layout/concept.hpp"
#include "cellar/layout/tile_major.hpp"

namespace cellar::inline CELLAR_ABI::layout {

/// One sequence's logical blocks through its page table, over any physical layout. A page is page_blocks consecutive blocks.
template <kv_layout Physical>
struct paged {
  using block_id = logical_block;
  static constexpr bool is_run_contiguous = Physical::is_run_contiguous;

  Physical physical;
  row_view<page_id const> table;  ///< Logical page -> physical page.
  i64 page_blocks = 1;

  CELLAR_HD constexpr physical_block resolve(logical_block b) const {
    return physical_block{number(table[number(b) / page_blocks]) * page_blocks + number(b) % page_blocks};
  }
  CELLAR_HD constexpr i64 bytes() const { return physical.bytes(); }
  CELLAR_HD constexpr i64 row_stride(plane p) const { return physical.row_stride(p); }
  CELLAR_HD constexpr i64 offset(plane p, logical_block block, int head, i64 row) const { return physical.offset(p, resolve(block), head, row); }
};

static_assert(kv_layout<paged<tile_major>>);

}  // namespace cellar::layout
