#pragma once
#include <cstring>
#include <memory>
#include <vector>

#include "cellar/cuda/append.hpp"
#include "cellar/cuda/attend.hpp"
#include "cellar/cuda/resolve.hpp"
#include "cellar/cuda/sequence.hpp"
#include "emulator/emulator.hpp"

/// A device for a cache whose kernels run under emulated blocks: cellar's drivers are the same as on a GPU.
///
/// Its memory is the host's, but of its own: nothing is shared with what the caller holds but far memory.
namespace emulator {

/// `Drivers` has the drivers found by its namespace.
template <class Drivers = cellar::cuda::grid_size>
class device {
 public:
  explicit device(rank_order order = shuffled(1)) : order_(order) {}

  static constexpr bool is_host = false;
  template <class T>
  class buffer {
   public:
    buffer() = default;
    explicit buffer(cellar::i64 count) : data_(new std::byte[std::size_t(count) * sizeof(T) + 16]()), size_(std::size_t(count)) {}
    T* data() { return reinterpret_cast<T*>(data_.get()); }
    T const* data() const { return reinterpret_cast<T const*>(data_.get()); }
    std::size_t size() const { return size_; }

   private:
    std::unique_ptr<std::byte[]> data_;
    std::size_t size_ = 0;
  };
  template <class T>
  buffer<T> allocate(cellar::i64 count) const {
    return buffer<T>(count);
  }
  template <class T>
  buffer<T> upload(std::vector<T>&& x) const {
    buffer<T> b(cellar::i64(x.size()));
    upload(b.data(), x.data(), cellar::i64(x.size() * sizeof(T)));
    return b;
  }
  template <class Scheme>
  using run_pools = cellar::cuda::run_pools<Scheme, device>;
  template <class Tier>
  struct reached {
    static_assert(Tier::is_directly_readable);
    reached(device const&, Tier&, int) {}
  };
  class step_table {
   public:
    step_table(device const&, cellar::i64 sequences, cellar::i64 step_sequences, cellar::i64 pages)
        : steps_(std::size_t(step_sequences)), pages_(std::size_t(sequences * pages)), each_(pages) {}
    cellar::row_view<cellar::sequence_step const> publish(device const& on, cellar::row_view<cellar::sequence_step const> steps) {
      for (std::size_t i = 0; i < steps_.size(); ++i) {
        steps_[i] = cellar::i64(i) < steps.count ? steps[cellar::i64(i)] : cellar::sequence_step{};
        steps_[i].pages = pages(on, steps_[i].slot, steps_[i].pages);
      }
      return {steps_.data(), cellar::i64(steps_.size())};
    }
    cellar::row_view<cellar::page_id const> pages(device const&, cellar::i64 slot, cellar::row_view<cellar::page_id const> table) {
      std::copy(table.begin(), table.end(), pages_.begin() + slot * each_);
      return {pages_.data() + slot * each_, table.count};
    }

   private:
    std::vector<cellar::sequence_step> steps_;
    std::vector<cellar::page_id> pages_;
    cellar::i64 each_;
  };

  int workers() const { return 1; }
  int multiprocessors() const { return 1; }
  void wait() const {}
  void copy(std::byte* to, std::byte const* from, cellar::i64 bytes) const { upload(to, from, bytes); }
  void download(void* to, void const* from, cellar::i64 bytes) const { upload(to, from, bytes); }
  void upload(void* to, void const* from, cellar::i64 bytes) const {
    if (bytes > 0) std::memcpy(to, from, std::size_t(bytes));
  }
  template <int Threads, class Kernel>
  void launch(cellar::cuda::grid_size blocks, cellar::i64 shared, Kernel const& kernel) const {
    if (blocks.x * blocks.y * blocks.z == 0) return;
    auto const body = [&](team& t) {
      cellar::i64 const at = t.block();
      kernel(t, cellar::cuda::grid_place{unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y), unsigned(at / blocks.x / blocks.y)});
    };
    emulator::launch({.threads = Threads, .blocks = int(blocks.x * blocks.y * blocks.z), .shared_bytes = shared, .order = order_}, body);
  }

 private:
  rank_order order_;
};
static_assert(cellar::cuda::device<device<>>);

}  // namespace emulator
