#pragma once
#include <concepts>
#include <type_traits>

#include "cellar/core/types.hpp"

/// Where a row of far memory lies.
///
/// A block is a set of planes: codes and scales of keys and of values. A row of a plane is one token group of one KV head: token_group
/// tokens of a codec, one token for most. A layout maps (plane, block, head, row) to a byte offset.
///
///     tile_major   block 0                              block 1
///                  | head 0          | head 1          | head 0 ...
///                  | K | V | Ks | Vs | K | V | Ks | Vs | ...            one (block, head) = one contiguous run
///
///     token_major  K:  token 0: head 0, head 1 | token 1: head 0 ...    as most engines hold them, one region a plane
///
/// Laws
///   rows of different (plane, block, head, row) do not overlap, and all lie within [0, bytes())
///   is_run_contiguous  the planes of one (block, head) fill one run of slice_bytes() bytes without gaps
///   offsets are 64-bit; no alignment is promised beyond what the row sizes give
namespace cellar::inline CELLAR_ABI {

enum class plane : int { keys, values, key_scales, value_scales };
inline constexpr int plane_count = 4;

/// The sizes that a layout arranges.
struct block_geometry {
  int heads = 0;               ///< KV heads.
  i64 rows[plane_count] = {};  ///< Rows of one head in a block.
  i64 row_bytes[plane_count] = {};

  /// Bytes of all planes of one (block, head).
  CELLAR_HD constexpr i64 slice_bytes() const {
    i64 n = 0;
    for (int p = 0; p < plane_count; ++p) n += rows[p] * row_bytes[p];
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
