#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "cellar/host/executor.hpp"

namespace cellar::host {

/// A plain pool for programs that have none: threads - 1 threads and the caller share the items of a run. One run at a time.
class thread_pool {
 public:
  explicit thread_pool(int threads = int(std::max(1u, std::thread::hardware_concurrency()))) {
    expects(threads >= 1, "host::thread_pool: at least one thread is needed");
    for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  thread_pool(thread_pool const&) = delete;
  thread_pool& operator=(thread_pool const&) = delete;
  ~thread_pool() {
    {
      std::lock_guard const lock(mutex_);
      stops_ = true;
    }
    start_.notify_all();
    for (auto& t : threads_) t.join();
  }

  int workers() const { return int(threads_.size()) + 1; }

  template <class F>
  void run(i64 items, F&& f) {
    {
      std::lock_guard const lock(mutex_);
      context_ = const_cast<void*>(static_cast<void const*>(std::addressof(f)));
      call_ = [](void* context, i64 item, int worker) { (*static_cast<std::remove_reference_t<F>*>(context))(item, worker); };
      items_ = items;
      next_.store(0, std::memory_order_relaxed);
      busy_ = int(threads_.size());
      ++generation_;
    }
    start_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work(int worker) {
    for (i64 i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) call_(context_, i, worker);
  }
  void serve(int worker) {
    for (i64 seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        start_.wait(lock, [&] { return stops_ || generation_ != seen; });
        if (stops_) return;
        seen = generation_;
      }
      work(worker);
      std::lock_guard const lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  void* context_ = nullptr;
  void (*call_)(void*, i64, int) = nullptr;
  i64 items_ = 0, generation_ = 0;
  std::atomic<i64> next_{0};
  int busy_ = 0;
  bool stops_ = false;
  std::vector<std::thread> threads_;  // last: the others must exist before a thread starts
};
static_assert(thread_pool_like<thread_pool>);

}  // namespace cellar::host
