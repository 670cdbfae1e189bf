#pragma once
#include "cellar/core/team.hpp"
#include "cellar/layout/concept.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Copies one block with all its planes from one layout to another, or to another block of the same one.
///
/// Shapes    both layouts of the same block_geometry
/// Effects   a body over a team; writes that block's rows only. The two blocks must not overlap
template <team Team, kv_layout From, kv_layout To>
CELLAR_HD void convert_block(Team& t, block_geometry const& g, From const& from, std::byte const* source, typename From::block_id source_block, To const& to,
                             std::byte* target, typename To::block_id target_block) {
  for (int p = 0; p < plane_count; ++p)
    for (i64 i = t.rank(); i < g.copies(p) * g.rows[p]; i += t.size()) {
      int const head = int(i / g.rows[p]);
      i64 const row = i % g.rows[p];
      memcpy(target + to.offset(plane(p), target_block, head, row), source + from.offset(plane(p), source_block, head, row), std::size_t(g.row_bytes[p]));
    }
  t.sync();
}

}  // namespace cellar::operation
