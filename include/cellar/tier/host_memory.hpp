#pragma once
#include <sys/mman.h>

#include <memory>
#include <new>
#include <vector>

#include "cellar/tier/concept.hpp"

namespace cellar::inline CELLAR_ABI::tier {

/// Far bytes in host memory, one allocation a layer, read in place. Layers of 2 MiB and more are aligned to huge pages, which the system is asked for:
/// gathering blocks would else miss the address translation at each of them. Pages are first touched by the thread that seals into them.
///
/// Errors  std::bad_alloc at construction; nothing is kept then
class host_memory {
 public:
  static constexpr bool is_directly_readable = true;
  static constexpr bool is_device_reachable = false;

  host_memory(int layers, i64 bytes_per_layer) : bytes_(bytes_per_layer) {
    layers_.reserve(std::size_t(layers));
    for (int i = 0; i < layers; ++i) {
      layers_.emplace_back(static_cast<std::byte*>(::operator new(std::size_t(allocated_bytes()), alignment(bytes_))), deleter{alignment(bytes_)});
#ifdef MADV_HUGEPAGE
      if (bytes_ >= huge_page) ::madvise(layers_.back().get(), std::size_t(bytes_ / huge_page * huge_page), MADV_HUGEPAGE);  // a wish: refusal changes nothing
#endif
    }
  }
  i64 bytes() const { return bytes_; }
  int layers() const { return int(layers_.size()); }
  /// Of a layer: whole pages, which nothing else lies in.
  i64 allocated_bytes() const { return round_up(bytes_, page); }
  std::byte* data(int layer) { return layers_[std::size_t(layer)].get(); }
  std::byte const* data(int layer) const { return layers_[std::size_t(layer)].get(); }

 private:
  static constexpr i64 page = 4096, huge_page = i64{1} << 21;  // whole pages: a device's executor pins them
  static constexpr std::align_val_t alignment(i64 bytes) { return std::align_val_t(bytes >= huge_page ? huge_page : page); }
  struct deleter {
    std::align_val_t alignment;
    void operator()(std::byte* p) const { ::operator delete(p, alignment); }
  };

  i64 bytes_;
  std::vector<std::unique_ptr<std::byte, deleter>> layers_;
};
static_assert(block_tier<host_memory>);

}  // namespace cellar::tier
