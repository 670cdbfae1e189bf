#pragma once
#include <array>

#include "cellar/core/view.hpp"

namespace cellar::inline CELLAR_ABI {

/// CRC-32C (Castagnoli), as iSCSI and ext4 use it. `before` continues a sum over several pieces.
///
/// Complexity  one look-up a byte
inline std::uint32_t checksum(row_view<std::byte const> bytes, std::uint32_t before = 0) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t x = i;
      for (int bit = 0; bit < 8; ++bit) x = x >> 1 ^ (x & 1u ? 0x82f63b78u : 0u);
      t[i] = x;
    }
    return t;
  }();
  std::uint32_t x = ~before;
  for (std::byte const b : bytes) x = x >> 8 ^ table[(x ^ std::uint32_t(b)) & 0xffu];
  return ~x;
}

}  // namespace cellar
