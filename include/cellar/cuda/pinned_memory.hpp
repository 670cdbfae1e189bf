#pragma once
#include <algorithm>
#include <concepts>
#include <cstddef>
#include <utility>
#include <vector>

#include "cellar/core/types.hpp"

namespace cellar::inline CELLAR_ABI::cuda {

/// Makes host memory known to a device, so that kernels read it in place. Neither call throws; one that is refused leaves no error behind.
template <class P>
concept pinner = requires(P p, void* data, i64 bytes) {
  { p.pin(data, bytes) } -> std::same_as<bool>;
  {p.unpin(data)};
};

/// Host memory that stays pinned while this lives, piece by piece: systems refuse to pin very much in one call.
template <pinner Pinner>
class pinned_memory {
 public:
  static constexpr i64 piece = i64{1} << 30;  ///< Bytes of a call, at most.

  explicit pinned_memory(Pinner p) : pinner_(std::move(p)) {}
  pinned_memory(pinned_memory&& other) noexcept : pinner_(other.pinner_), pieces_(std::exchange(other.pieces_, {})), bytes_(std::exchange(other.bytes_, 0)) {}
  pinned_memory& operator=(pinned_memory&& other) noexcept {
    std::swap(pinner_, other.pinner_);
    std::swap(pieces_, other.pieces_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~pinned_memory() { release(); }

  /// Pins [data, data + bytes).
  ///
  /// Returns  whether it is all pinned. A piece that is refused stays pageable where `is_optional`, and the others are pinned; else nothing stays pinned, of
  ///          earlier calls too
  /// Effects  allocates; where that throws, nothing of this call is pinned
  bool pin(std::byte* data, i64 bytes, bool is_optional) {
    pieces_.reserve(pieces_.size() + std::size_t((bytes + piece - 1) / piece));
    bool is_all = true;
    for (i64 at = 0; at < bytes; at += piece) {
      i64 const n = std::min(piece, bytes - at);
      if (pinner_.pin(data + at, n)) {
        pieces_.push_back(data + at);
        bytes_ += n;
      } else if (is_all = false; !is_optional) {
        release();
        break;
      }
    }
    return is_all;
  }
  i64 bytes() const { return bytes_; }
  Pinner const& from() const { return pinner_; }

 private:
  void release() {
    for (std::byte* const p : pieces_) pinner_.unpin(p);
    pieces_.clear();
    bytes_ = 0;
  }

  Pinner pinner_;
  std::vector<std::byte*> pieces_;
  i64 bytes_ = 0;
};

}  // namespace cellar::cuda
