#pragma once
#include "cellar/core/team.hpp"
#include "cellar/layout/concept.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Copies bytes, by the widest accesses that both addresses and the count allow, the members first, first + members, ... of a team.
CELLAR_HD inline void copy_run(std::byte* to, std::byte const* from, i64 bytes, unsigned member, unsigned members) {
  auto const copy = [&]<int Width>(loaded_bytes<Width>*) {
    for (i64 i = i64{member} * Width; i < bytes; i += i64{members} * Width) store_aligned(to + i, load_aligned<Width>(from + i));
  };
  auto const low = (reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) | std::uintptr_t(bytes)) % 16;
  if (low == 0) {
    copy(static_cast<loaded_bytes<16>*>(nullptr));
  } else if (low % 4 == 0) {
    copy(static_cast<loaded_bytes<4>*>(nullptr));
  } else {
    for (i64 i = member; i < bytes; i += members) to[i] = from[i];
  }
}

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
