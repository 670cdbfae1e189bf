#pragma once
#include <memory>
#include <new>
#include <vector>

#include "cellar/tier/concept.hpp"

namespace cellar::inline CELLAR_ABI::tier {

/// Far bytes in host memory, one allocation a layer, read in place.
///
/// Errors  std::bad_alloc at construction; nothing is kept then
class host_memory {
 public:
  static constexpr bool is_directly_readable = true;
  static constexpr bool is_device_reachable = false;

  host_memory(int layers, i64 bytes_per_layer) : bytes_(bytes_per_layer) {
    for (int i = 0; i < layers; ++i) layers_.push_back(std::make_unique_for_overwrite<std::byte[]>(std::size_t(bytes_per_layer)));
  }
  i64 bytes() const { return bytes_; }
  std::byte* data(int layer) { return layers_[std::size_t(layer)].get(); }
  std::byte const* data(int layer) const { return layers_[std::size_t(layer)].get(); }

 private:
  i64 bytes_;
  std::vector<std::unique_ptr<std::byte[]>> layers_;
};
static_assert(block_tier<host_memory>);

}  // namespace cellar::tier
