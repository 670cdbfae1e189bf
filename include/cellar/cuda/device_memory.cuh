#pragma once
#include "cellar/cuda/executor.cuh"

namespace cellar::inline CELLAR_ABI::tier {

/// Far bytes in device memory, one allocation a layer: nothing is offloaded, selections save reading. For models whose cache fits beside them.
///
/// Errors  cuda_error at construction, which takes the current device; nothing is kept then
class device_memory {
 public:
  static constexpr bool is_directly_readable = true;
  static constexpr bool is_device_reachable = true;

  device_memory(int layers, i64 bytes_per_layer) : bytes_(bytes_per_layer) {
    for (int i = 0; i < layers; ++i) {
      void* p = nullptr;
      cuda::check(cudaMalloc(&p, std::size_t(std::max<i64>(bytes_, 1))), "tier::device_memory: allocating a layer's far memory");
      layers_.emplace_back(static_cast<std::byte*>(p));
    }
  }
  i64 bytes() const { return bytes_; }
  std::byte* data(int layer) { return layers_[std::size_t(layer)].get(); }
  std::byte const* data(int layer) const { return layers_[std::size_t(layer)].get(); }

 private:
  struct deleter {
    void operator()(std::byte* p) const { static_cast<void>(cudaFree(p)); }
  };

  i64 bytes_;
  std::vector<std::unique_ptr<std::byte, deleter>> layers_;
};
static_assert(block_tier<device_memory>);

}  // namespace cellar::tier
