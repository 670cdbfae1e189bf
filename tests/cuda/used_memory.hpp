#pragma once
#include <vector>

#include "cellar/core/math.hpp"

/// Memory of an engine, as it was left by whoever had it before; 64-byte aligned.
class used_memory {
 public:
  used_memory(cellar::i64 bytes, unsigned char left) : bytes_(std::size_t(bytes + 64), std::byte{left}) {}
  std::byte* data() { return reinterpret_cast<std::byte*>(cellar::round_up(reinterpret_cast<cellar::i64>(bytes_.data()), 64)); }

 private:
  std::vector<std::byte> bytes_;
};

inline constexpr unsigned char nan_bytes = 0xff;  // of f32, f16 and bf16; -1 as an id or a page
