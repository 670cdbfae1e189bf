#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cellar/cuda/device.hpp"
#include "cellar/cuda/pinned_memory.hpp"
#include "cellar/cuda/resolve.hpp"
#include "cellar/cuda/reuse.hpp"
#include "cellar/cuda/snapshot.hpp"
#include "cellar/cuda/team.cuh"

namespace cellar::inline CELLAR_ABI {

/// A CUDA call that failed. What was enqueued before it may have run.
struct cuda_error : std::runtime_error {
  cudaError_t code;

  cuda_error(cudaError_t error, std::string const& operation)
      : std::runtime_error(operation + " failed: " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error)), code(error) {}
};

namespace cuda {

/// Raises cuda_error unless the call succeeded. `operation` names it and its object.
inline void check(cudaError_t result, char const* operation) {
  if (result != cudaSuccess) [[unlikely]]
    cellar::detail::raise(cuda_error(result, operation));
}

namespace detail {

#ifdef __CUDA_ARCH__
inline constexpr int compute_capability = __CUDA_ARCH__ / 10;
#else
inline constexpr int compute_capability = 0;
#endif
/// Blocks of a multiprocessor that a kernel is compiled for at least, 0: as many as ptxas likes. Where it is left to that, it spills a few registers of small
/// kernels to fit one block more.
template <int Threads, class Kernel>
constexpr int resident_blocks(int capability) {
  if constexpr (requires { Kernel::resident_blocks(capability); })
    return Kernel::resident_blocks(capability);
  else
    return std::clamp(65536 / (Threads * 80), 1, 16);
}

template <int Threads, class Kernel>
__global__ void __launch_bounds__(Threads, (resident_blocks<Threads, Kernel>(compute_capability))) run_kernel(__grid_constant__ Kernel const kernel) {
  block_team<Threads> t;
  kernel(t, grid_place{blockIdx.x, blockIdx.y, blockIdx.z});
}

}  // namespace detail

/// Where device memory comes from: an engine's own allocator, as two functions and their context. allocate gives memory aligned to 256 bytes, or null.
struct memory_resource {
  void* context = nullptr;
  void* (*allocate)(void* context, std::size_t bytes) = [](void*, std::size_t bytes) -> void* {
    void* p = nullptr;
    if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
    static_cast<void>(cudaGetLastError());  // not of a later call
    return nullptr;
  };
  void (*release)(void* context, void* memory) = [](void*, void* memory) { static_cast<void>(cudaFree(memory)); };
};

/// Owned device memory, [size()].
template <class T>
class device_buffer {
 public:
  device_buffer() = default;
  /// Errors  std::bad_alloc
  device_buffer(memory_resource const& from, i64 count) : from_(from), size_(count) {
    if (count == 0) return;
    data_ = static_cast<T*>(from_.allocate(from_.context, std::size_t(count) * sizeof(T)));
    if (!data_) cellar::detail::raise(std::bad_alloc());
  }
  device_buffer(device_buffer&& other) noexcept : from_(other.from_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(from_, other.from_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_buffer() {
    if (data_) from_.release(from_.context, data_);
  }
  T* data() { return data_; }
  T const* data() const { return data_; }
  std::size_t size() const { return std::size_t(size_); }

 private:
  memory_resource from_;
  T* data_ = nullptr;
  i64 size_ = 0;
};

/// Where device operations run: in order on a stream of the caller's, on its device, with memory from the caller's resource. A reference, cheap to copy;
/// stream and resource must outlive what was made with it. A cache's destructor waits for its stream.
///
/// Operations return when enqueued. Append and attend allocate nothing, synchronize nothing and read nothing back, so that they can be captured in a graph.
///
/// Requires    the stream's device to be current in every call. No call uses the null stream unless it is the one given
/// Errors      precondition_error at construction, naming what the device lacks; cuda_error
class executor {
 public:
  explicit executor(cudaStream_t stream, memory_resource const& memory = {}) : stream_(stream), memory_(memory) {
    check(cudaGetDevice(&device_), "cuda::executor: cudaGetDevice");
    auto const attribute = [&](cudaDeviceAttr a) {
      int x = 0;
      check(cudaDeviceGetAttribute(&x, a, device_), "cuda::executor: cudaDeviceGetAttribute");
      return x;
    };
    multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount);
    shared_bytes_ = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    reads_pageable_ = attribute(cudaDevAttrPageableMemoryAccess) != 0;
    expects(attribute(cudaDevAttrComputeCapabilityMajor) >= 8, "cuda::executor: the device is older than compute capability 8.0 (Ampere)");
    expects(attribute(cudaDevAttrUnifiedAddressing) && attribute(cudaDevAttrCanUseHostPointerForRegisteredMem),
            "cuda::executor: the device cannot read registered host memory at the host's addresses, which far memory needs");
  }

  cudaStream_t stream() const { return stream_; }
  memory_resource const& memory() const { return memory_; }
  int multiprocessors() const { return multiprocessors_; }
  static constexpr i64 grid_side = 65535;             ///< The second and third side of a launch, at most.
  int shared_bytes() const { return shared_bytes_; }  ///< Of a block, at most.
  /// The same on another stream. Ordering among streams is the caller's.
  executor on_stream(cudaStream_t stream) const {
    executor other = *this;
    other.stream_ = stream;
    return other;
  }
  int workers() const { return 1; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cuda::executor: cudaStreamSynchronize"); }

  // What drivers ask of a device (cuda/device.hpp).

  /// Runs kernel(team, place) in every block of the grid, each a block_team<Threads> with `shared` bytes to hand out.
  ///
  /// Errors  precondition_error where the device has less shared memory for a block; cuda_error
  template <int Threads, class Kernel>
  void launch(grid_size blocks, i64 shared, Kernel const& kernel) const {
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
    expects(shared <= shared_bytes_, "cuda: the kernel needs more shared memory for a block than the device has; use smaller token groups, or host::executor");
    auto* const run = detail::run_kernel<Threads, Kernel>;
    if (shared > 48 * 1024) check(cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "cuda: cudaFuncSetAttribute");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks.x), unsigned(blocks.y), unsigned(blocks.z));
    config.blockDim = dim3(unsigned(Threads));
    config.dynamicSmemBytes = std::size_t(shared);
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, run, Kernel(kernel)), "cuda: launching a kernel");
  }
  /// Copies between places in device memory.
  void copy(std::byte* to, std::byte const* from, i64 bytes) const { copy(to, from, bytes, cudaMemcpyDeviceToDevice); }
  /// Copies to the host, and waits.
  void download(void* to, void const* from, i64 bytes) const {
    copy(to, from, bytes, cudaMemcpyDeviceToHost);
    wait();
  }
  /// Copies from the host, and waits.
  void upload(void* to, void const* from, i64 bytes) const {
    copy(to, from, bytes, cudaMemcpyHostToDevice);
    wait();
  }

  // What a cache asks of its executor (host/executor.hpp has the host's).

  static constexpr bool is_host = false;
  template <class T>
  using buffer = device_buffer<T>;
  /// [count], zero once the stream has come so far.
  template <class T>
  buffer<T> allocate(i64 count) const {
    buffer<T> b(memory_, count);
    if (count > 0) check(cudaMemsetAsync(b.data(), 0, std::size_t(count) * sizeof(T), stream_), "cuda: clearing a buffer");
    return b;
  }
  template <class T>
  buffer<T> upload(std::vector<T>&& x) const {
    buffer<T> b(memory_, i64(x.size()));
    upload(b.data(), x.data(), i64(x.size() * sizeof(T)));
    return b;
  }

  template <class Scheme>
  using run_pools = cuda::run_pools<Scheme, executor>;
  template <class Scheme>
  using kept_selections = cuda::kept_selections<Scheme, executor>;

  /// A tier's memory, where a device reads it: pinned while this lives, piece by piece.
  ///
  /// Where the system refuses to pin (a limit on locked memory), a device that reads pageable memory goes on without; others refuse.
  template <class Tier>
  class reached {
   public:
    reached(executor const& on, Tier& far, int layers) : pinned_(registration{}) {
      if constexpr (!Tier::is_device_reachable)
        for (int layer = 0; layer < layers; ++layer)
          if (!pinned_.pin(far.data(layer), far.bytes(), on.reads_pageable_) && !on.reads_pageable_)
            check(pinned_.from().refusal, "cuda: pinning far memory (raise the limit on locked memory, ulimit -l, or keep less of it)");
    }

   private:
    struct registration {
      cudaError_t refusal = cudaSuccess;

      bool pin(void* data, i64 bytes) {
        cudaError_t const result = cudaHostRegister(data, std::size_t(bytes), cudaHostRegisterPortable | cudaHostRegisterMapped);
        if (result == cudaSuccess) return true;
        static_cast<void>(cudaGetLastError());  // else the next launch would report it
        refusal = result;
        return false;
      }
      void unpin(void* data) { static_cast<void>(cudaHostUnregister(data)); }
    };
    pinned_memory<registration> pinned_;
  };

  /// Steps and page tables where kernels read them, at addresses that stay. What plan writes goes through a ring of pinned entries, each used again when its
  /// copies are done: a plan may run that many steps ahead of the device.
  class step_table {
   public:
    step_table(executor const& on, i64 sequences, i64 step_sequences, i64 pages_per_sequence)
        : stream_(on.stream()),
          steps_(on.allocate<sequence_step>(step_sequences)),
          pages_(on.allocate<page_id>(sequences * pages_per_sequence)),
          mirror_(std::size_t(sequences * pages_per_sequence), page_id{0}),
          pages_per_sequence_(pages_per_sequence),
          entry_bytes_(step_sequences * (i64(sizeof(sequence_step)) + pages_per_sequence * i64(sizeof(page_id)))) {
      for (auto& e : ring_) e.open(entry_bytes_);
    }

    step_table(step_table&&) = default;
    step_table& operator=(step_table&&) = delete;  // what it replaced may still be read
    /// Waits for the stream: what a cache frees after this is no longer read.
    ~step_table() {
      if (steps_.data()) static_cast<void>(cudaStreamSynchronize(stream_));
    }

    /// The steps as kernels read them, [step_sequences]: those beyond the batch are empty.
    row_view<sequence_step const> publish(executor const& on, row_view<sequence_step const> steps) {
      stream_ = on.stream();
      entry& e = next();
      auto* const to = reinterpret_cast<sequence_step*>(e.memory);
      used_ = i64(steps_.size() * sizeof(sequence_step));
      for (i64 i = 0; i < i64(steps_.size()); ++i) {
        sequence_step step{};
        if (i < steps.count) {
          step = steps[i];
          step.pages = changed(on, e, step.slot, step.pages);
        }
        std::memcpy(static_cast<void*>(to + i), &step, sizeof step);
      }
      check(cudaMemcpyAsync(steps_.data(), to, steps_.size() * sizeof(sequence_step), cudaMemcpyHostToDevice, on.stream()), "plan: copying the step");
      e.close(on);
      return {steps_.data(), i64(steps_.size())};
    }
    /// A sequence's pages as kernels read them.
    row_view<page_id const> pages(executor const& on, i64 slot, row_view<page_id const> table) {
      entry& e = next();
      used_ = 0;
      auto const result = changed(on, e, slot, table);
      e.close(on);
      return result;
    }

   private:
    struct entry {
      std::byte* memory = nullptr;
      cudaEvent_t done = nullptr;

      entry() = default;
      entry(entry&& other) noexcept : memory(std::exchange(other.memory, nullptr)), done(std::exchange(other.done, nullptr)) {}
      entry& operator=(entry&& other) noexcept {
        std::swap(memory, other.memory);
        std::swap(done, other.done);
        return *this;
      }
      void open(i64 bytes) {
        check(cudaMallocHost(reinterpret_cast<void**>(&memory), std::size_t(std::max<i64>(bytes, 1))), "cache: allocating pinned memory for steps");
        check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cache: creating an event");
      }
      void close(executor const& on) { check(cudaEventRecord(done, on.stream()), "plan: recording an event"); }
      ~entry() {
        if (done) {
          static_cast<void>(cudaEventSynchronize(done));
          static_cast<void>(cudaEventDestroy(done));
        }
        if (memory) static_cast<void>(cudaFreeHost(memory));
      }
    };

    entry& next() {
      entry& e = ring_[turn_++ % std::size(ring_)];
      check(cudaEventSynchronize(e.done), "plan: waiting for an earlier step");
      return e;
    }
    /// Copies what differs from the device's table.
    row_view<page_id const> changed(executor const& on, entry& e, i64 slot, row_view<page_id const> table) {
      page_id* const known = mirror_.data() + slot * pages_per_sequence_;
      i64 first = 0, last = table.count;
      while (first < last && known[first] == table[first]) ++first;
      while (last > first && known[last - 1] == table[last - 1]) --last;
      if (i64 const n = last - first; n > 0) {
        auto* const from = reinterpret_cast<page_id*>(e.memory + used_);
        std::copy_n(table.data + first, n, from);
        used_ += n * i64(sizeof(page_id));
        check(cudaMemcpyAsync(pages_.data() + slot * pages_per_sequence_ + first, from, std::size_t(n) * sizeof(page_id), cudaMemcpyHostToDevice, on.stream()),
              "plan: copying a page table");
        std::copy_n(table.data + first, n, known + first);
      }
      return {pages_.data() + slot * pages_per_sequence_, table.count};
    }

    cudaStream_t stream_;
    device_buffer<sequence_step> steps_;
    device_buffer<page_id> pages_;
    std::vector<page_id> mirror_;
    i64 pages_per_sequence_ = 0, entry_bytes_ = 0, used_ = 0;
    entry ring_[4];
    std::size_t turn_ = 0;
  };

 private:
  void copy(void* to, void const* from, i64 bytes, cudaMemcpyKind kind) const {
    if (bytes > 0) check(cudaMemcpyAsync(to, from, std::size_t(bytes), kind, stream_), "cuda: copying memory");
  }

  cudaStream_t stream_;
  memory_resource memory_;
  int device_ = 0, multiprocessors_ = 0, shared_bytes_ = 0;
  bool reads_pageable_ = false;
};

static_assert(device<executor>);

/// A point of a stream that other streams, or the host, can wait for: made once, recorded as often as wanted. Within a capture it forks and joins streams.
///
/// Errors  cuda_error from every call
class completion {
 public:
  completion() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cuda::completion: creating an event"); }
  completion(completion&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  completion& operator=(completion&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~completion() {
    if (event_) static_cast<void>(cudaEventDestroy(event_));
  }
  /// Of all that is enqueued so far.
  void record(executor const& on) { check(cudaEventRecord(event_, on.stream()), "cuda::completion: recording an event"); }
  /// What is enqueued from now on comes after the last record; no wait where there was none.
  void wait(executor const& on) const { check(cudaStreamWaitEvent(on.stream(), event_, 0), "cuda::completion: waiting on a stream"); }
  /// Whether all that was recorded is done. Not within a capture.
  bool is_done() const {
    cudaError_t const result = cudaEventQuery(event_);
    if (result != cudaErrorNotReady) check(result, "cuda::completion: asking for an event");
    return result == cudaSuccess;
  }
  /// Waits on the host.
  void synchronize() const { check(cudaEventSynchronize(event_), "cuda::completion: waiting on the host"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace cuda
}  // namespace cellar
