#pragma once
#include <concepts>
#include <type_traits>

#include "cellar/core/types.hpp"

/// Where a row of far memory lies.
///
/// A block is a set of planes: codes and scales of keys and of values. A row of a plane is one token group of one KV head: token_group
/// tokens of a codec, one token for most. A plane of a codec over all heads is shared: its rows hold all of them, and `head` is ignored.
/// A layout maps (plane, block, head, row) to a byte offset.
///
///     tile_major   block 0                              block 1
///                  | head 0          | head 1          | head 0 ...
///                  | K | V | Ks | Vs | K | V | Ks | Vs | ...            one (block, head) = one contiguous run; shared planes follow
///
///     token_major  K:  token 0: head 0, head 1 | token 1: head 0 ...    as most engines hold them, one region a plane
///
///     head_major   K:  head 0: token 0, token 1, ... | head 1: ...      one region a plane, a head's tokens side by side
///
/// Laws
///   rows of different (plane, block, head, row) do not overlap, and all lie within [0, bytes())
///   is_run_contiguous  a head's planes of one block fill one run of slice_bytes() bytes without gaps, shared planes one of shared_bytes()
///   offsets are 64-bit; no alignment is promised beyond what the row sizes give
namespace cellar::inline CELLAR_ABI {

enum class plane : int { keys, values, key_scales, value_scales };
inline constexpr int plane_count = 4;

/// The sizes that a layout arranges.
struct block_geometry {
  int heads = 0;               ///< KV heads.
  i64 rows[plane_count] = {};  ///< Rows of one head in a block; of all heads, where the plane is shared.
  i64 row_bytes[plane_count] = {};
  bool is_shared[plane_count] = {};  ///< One row for all heads.

  CELLAR_HD constexpr i64 copies(int p) const { return is_shared[p] ? 1 : heads; }          ///< Of a plane in a block.
  CELLAR_HD constexpr i64 slice_bytes() const { return bytes_before(plane_count, false); }  ///< All planes of one (block, head).
  CELLAR_HD constexpr i64 shared_bytes() const { return bytes_before(plane_count, true); }  ///< All shared planes of a block.
  CELLAR_HD constexpr i64 block_bytes() const { return heads * slice_bytes() + shared_bytes(); }
  /// Bytes of the planes before p, of those that are shared or of those that are not.
  CELLAR_HD constexpr i64 bytes_before(int p, bool shared) const {
    i64 n = 0;
    for (int before = 0; before < p; ++before) n += is_shared[before] == shared ? rows[before] * row_bytes[before] : 0;
    return n;
  }
};

template <class L>
concept kv_layout = std::is_trivially_copyable_v<L> && requires(L const& l, plane p, typename L::block_id block, int head, i64 row) {
  { L::is_run_contiguous } -> std::convertible_to<bool>;
  { l.bytes() } -> std::same_as<i64>;  // all planes of all its blocks
  { l.offset(p, block, head, row) } -> std::same_as<i64>;
  { l.row_stride(p) } -> std::same_as<i64>;  // bytes from one row of a (plane, block, head) to the next
};

/// A layout that a cache can create: from sizes and a number of physical blocks.
template <class L>
concept physical_layout = kv_layout<L> && std::same_as<typename L::block_id, physical_block> && requires(block_geometry g, i64 blocks) {
  L{g, blocks};
};

}  // namespace cellar
