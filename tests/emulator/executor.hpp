#pragma once
#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "cellar/cuda/append.hpp"
#include "cellar/cuda/attend.hpp"
#include "cellar/cuda/resolve.hpp"
#include "cellar/cuda/reuse.hpp"
#include "cellar/cuda/sequence.hpp"
#include "cellar/cuda/snapshot.hpp"
#include "emulator/emulator.hpp"

namespace emulator {

/// Streams of a device: what is enqueued runs when somebody waits, one kernel or copy at a time, in an order drawn among those that streams and completions
/// allow. A host that relies on something having run, or frees what has yet to be used, is found out.
class streams {
 public:
  streams(int count, std::uint64_t seed) : queues_(std::size_t(count)), random_(seed) {}
  streams(streams const&) = delete;

  /// `after`: what must have happened; null: nothing.
  void enqueue(int stream, std::function<void()> work, std::shared_ptr<bool const> after = nullptr) {
    queues_[std::size_t(stream)].push_back({std::move(work), std::move(after)});
  }
  /// Runs whatever may come first until a stream is empty. Others may be left with work.
  void wait(int stream) {
    while (!queues_[std::size_t(stream)].empty()) {
      std::vector<std::deque<operation>*> ready;
      for (auto& q : queues_)
        if (!q.empty() && (!q.front().after || *q.front().after)) ready.push_back(&q);
      if (ready.empty()) throw std::logic_error("emulator::streams: every stream waits for another");
      if (random_() % 32 == 0 || std::find(ready.begin(), ready.end(), ahead_) == ready.end()) ahead_ = ready[random_() % ready.size()];
      auto const work = std::move(ahead_->front().work);
      ahead_->pop_front();
      work();
    }
  }

 private:
  struct operation {
    std::function<void()> work;
    std::shared_ptr<bool const> after;
  };
  std::vector<std::deque<operation>> queues_;
  std::deque<operation>* ahead_ = nullptr;  // goes on for a while, so that others fall far behind
  std::mt19937_64 random_;
};

/// A device for a cache whose kernels run under emulated blocks: cellar's drivers are the same as on a GPU. `Drivers` has them found by its namespace.
///
/// Its memory is the host's, but of its own: nothing is shared with what the caller holds but far memory. Without streams, calls run at once.
template <class Drivers = cellar::cuda::grid_size>
class device {
 public:
  explicit device(rank_order order = shuffled(1), streams* on = nullptr, int stream = 0) : order_(order), streams_(on), stream_(stream) {}
  device on_stream(int stream) const { return device(order_, streams_, stream); }

  static constexpr bool is_host = false;
  template <class T>
  class buffer {
   public:
    buffer() = default;
    explicit buffer(cellar::i64 count) : data_(new std::byte[bytes(count)](), poisoning{bytes(count)}), size_(std::size_t(count)) {}
    T* data() { return reinterpret_cast<T*>(data_.get()); }
    T const* data() const { return reinterpret_cast<T const*>(data_.get()); }
    std::size_t size() const { return size_; }

   private:
    static std::size_t bytes(cellar::i64 count) { return std::size_t(count) * sizeof(T) + 16; }
    struct poisoning {
      std::size_t bytes = 0;
      void operator()(std::byte* p) const {
        std::memset(p, 0xa5, bytes);
        asm volatile("" : : "r"(p) : "memory");  // a compiler drops what is written to memory before it is freed
        delete[] p;
      }
    };
    std::unique_ptr<std::byte[], poisoning> data_;
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
  template <class Scheme>
  using kept_selections = cellar::cuda::kept_selections<Scheme, device>;
  template <class Tier>
  struct reached {
    static_assert(Tier::is_directly_readable);
    reached(device const&, Tier&, int) {}
  };
  class step_table {
   public:
    step_table(device const& on, cellar::i64 sequences, cellar::i64 step_sequences, cellar::i64 pages)
        : on_(on), steps_(std::size_t(step_sequences)), pages_(std::size_t(sequences * pages)), each_(pages) {}
    step_table(step_table&&) = default;
    ~step_table() { on_.wait(); }

    cellar::row_view<cellar::sequence_step const> publish(device const& on, cellar::row_view<cellar::sequence_step const> steps) {
      on_ = on;
      std::vector<cellar::sequence_step> next(steps_.size());
      for (std::size_t i = 0; i < next.size(); ++i) {
        if (cellar::i64(i) < steps.count) next[i] = steps[cellar::i64(i)];
        next[i].pages = pages(on, next[i].slot, next[i].pages);
      }
      on.enqueue([to = steps_.data(), next] { std::copy(next.begin(), next.end(), to); });
      return {steps_.data(), cellar::i64(steps_.size())};
    }
    cellar::row_view<cellar::page_id const> pages(device const& on, cellar::i64 slot, cellar::row_view<cellar::page_id const> table) {
      on.enqueue(
          [to = pages_.data() + slot * each_, next = std::vector<cellar::page_id>(table.begin(), table.end())] { std::copy(next.begin(), next.end(), to); });
      return {pages_.data() + slot * each_, table.count};
    }

   private:
    device on_;
    std::vector<cellar::sequence_step> steps_;
    std::vector<cellar::page_id> pages_;
    cellar::i64 each_;
  };

  int workers() const { return 1; }
  int multiprocessors() const { return 1; }
  static constexpr cellar::i64 grid_side = 65535;
  void wait() const {
    if (streams_) streams_->wait(stream_);
  }
  void copy(std::byte* to, std::byte const* from, cellar::i64 bytes) const {
    enqueue([=] { copy_now(to, from, bytes); });
  }
  void download(void* to, void const* from, cellar::i64 bytes) const { upload(to, from, bytes); }
  void upload(void* to, void const* from, cellar::i64 bytes) const {
    wait();
    copy_now(to, from, bytes);
  }
  template <int Threads, class Kernel>
  void launch(cellar::cuda::grid_size blocks, cellar::i64 shared, Kernel const& kernel) const {
    if (blocks.x * blocks.y * blocks.z == 0) return;
    if (blocks.x >= 1ll << 31 || blocks.y > grid_side || blocks.z > grid_side) throw std::logic_error("emulator: a grid that no device launches");
    enqueue([blocks, shared, kernel, order = order_] {
      auto const body = [&](team& t) {
        cellar::i64 const at = t.block();
        kernel(t, cellar::cuda::grid_place{unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y), unsigned(at / blocks.x / blocks.y)});
      };
      emulator::launch({.threads = Threads, .blocks = int(blocks.x * blocks.y * blocks.z), .shared_bytes = shared, .order = order}, body);
    });
  }
  template <class Work>
  void enqueue(Work work, std::shared_ptr<bool const> after = nullptr) const {
    if (streams_)
      streams_->enqueue(stream_, std::move(work), std::move(after));
    else
      work();
  }

 private:
  static void copy_now(void* to, void const* from, cellar::i64 bytes) {
    if (bytes > 0) std::memcpy(to, from, std::size_t(bytes));
  }

  rank_order order_;
  streams* streams_ = nullptr;
  int stream_ = 0;
};
static_assert(cellar::cuda::device<device<>>);

/// What cuda::completion is on a GPU.
class completion {
 public:
  template <class Device>
  void record(Device const& on) {
    auto const happened = std::make_shared<bool>(false);
    on.enqueue([happened] { *happened = true; });
    done_ = happened;
  }
  template <class Device>
  void wait(Device const& on) const {
    on.enqueue([] {}, done_);
  }

 private:
  std::shared_ptr<bool const> done_;
};

}  // namespace emulator
