#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cellar/host/executor.hpp"

namespace cellar::inline CELLAR_ABI::host {

/// A plain pool for programs that have none: threads - 1 threads and the caller share the items of a run. One run at a time.
///
/// Threads look for the next run for a moment before they sleep, unless the pool has more of them than the machine; a run does not wait for threads that wake
/// up after its items are taken, and one item is run by the caller.
///
/// An exception from an item ends the run: items that have not begun are left out, and the first exception reaches the caller of run.
///
/// Errors  precondition_error for no threads; std::system_error where the system has no more of them: none is left running
class thread_pool {
 public:
  explicit thread_pool(int threads = int(std::max(1u, std::thread::hardware_concurrency()))) {
    expects(threads >= 1, "host::thread_pool: at least one thread is needed");
#ifdef __cpp_exceptions
    try {
      start(threads);
    } catch (...) {
      stop();
      throw;
    }
#else
    start(threads);
#endif
  }
  thread_pool(thread_pool const&) = delete;
  thread_pool& operator=(thread_pool const&) = delete;
  ~thread_pool() { stop(); }

  int workers() const { return int(threads_.size()) + 1; }

  template <class F>
  void run(i64 items, F&& f) {
    if (items <= 1 || threads_.empty()) {
      for (i64 i = 0; i < items; ++i) f(i, 0);
      return;
    }
    i64 sleepers = 0;
    {
      std::lock_guard const lock(mutex_);
      context_ = const_cast<void*>(static_cast<void const*>(std::addressof(f)));
      call_ = [](void* context, i64 item, int worker) { (*static_cast<std::remove_reference_t<F>*>(context))(item, worker); };
      items_ = items;
      next_.store(0, std::memory_order_relaxed);
      is_open_ = true;
      generation_.fetch_add(1, std::memory_order_relaxed);
      sleepers = std::min(i64{sleeping_}, items - 1);
    }
    for (; sleepers > 0; --sleepers) start_.notify_one();
    work(0);
    {
      std::lock_guard const lock(mutex_);
      is_open_ = false;  // whoever wakes up later has nothing to do, and is not waited for
    }
    wait_a_little([this] { return active_.load(std::memory_order_relaxed) == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
#ifdef __cpp_exceptions
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
#endif
  }

 private:
  void start(int threads) {
    looks_ = threads <= int(std::thread::hardware_concurrency()) ? 1000 : 0;
    threads_.reserve(std::size_t(threads) - 1);
    for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  void stop() {
    {
      std::lock_guard const lock(mutex_);
      stops_ = true;
    }
    start_.notify_all();
    for (auto& t : threads_) t.join();
  }
  void work(int worker) {
    auto const all = [&] {
      for (i64 i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) call_(context_, i, worker);
    };
#ifdef __cpp_exceptions
    try {
      all();
    } catch (...) {
      next_.store(items_, std::memory_order_relaxed);
      std::lock_guard const lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
#else
    all();
#endif
  }
  void serve(int worker) {
    for (i64 seen = 0;;) {
      wait_a_little([&] { return generation_.load(std::memory_order_relaxed) != seen; });
      {
        std::unique_lock lock(mutex_);
        ++sleeping_;
        start_.wait(lock, [&] { return stops_ || generation_ != seen; });
        --sleeping_;
        if (stops_) return;
        seen = generation_;
        if (!is_open_) continue;
        ++active_;
      }
      work(worker);
      std::lock_guard const lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }
  /// Some tens of microseconds, in which a step's next run comes as a rule: falling asleep and waking up take longer than most runs.
  template <class Condition>
  void wait_a_little(Condition const& is_over) const {
    for (int look = 0; look < looks_ && !is_over(); ++look) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }

  std::mutex mutex_;  // guards what follows, atomic or not: atomic is what is looked at without it too
  std::condition_variable start_, done_;
  void* context_ = nullptr;
  void (*call_)(void*, i64, int) = nullptr;
  i64 items_ = 0;
  std::atomic<i64> generation_{0}, next_{0};
  std::atomic<int> active_{0};  // threads that take items
  int sleeping_ = 0;
  std::exception_ptr failure_;
  bool is_open_ = false, stops_ = false;
  int looks_ = 0;
  std::vector<std::thread> threads_;  // last: the others must exist before a thread starts
};
static_assert(thread_pool_like<thread_pool>);

}  // namespace cellar::host
