#pragma once
#include <concepts>
#include <memory>

#include "cellar/core/error.hpp"
#include "cellar/core/types.hpp"

namespace cellar::inline CELLAR_ABI::host {

/// Threads that the caller owns: an engine's own pool models this with two members.
///
/// Laws  run calls f(item, worker) once for every item in [0, items), with worker in [0, workers()), never two calls with the same worker
///       at a time, and returns when all have returned. f does not throw.
template <class P>
concept thread_pool_like = requires(P& pool, i64 items, void (*f)(i64, int)) {
  { pool.workers() } -> std::convertible_to<int>;
  pool.run(items, f);
};

/// Where host operations run: on the calling thread, or on a pool of the caller's. A reference, cheap to copy; the pool must outlive it.
///
/// Results do not depend on the pool or its size.
class executor {
 public:
  /// Serial: everything on the calling thread.
  executor() = default;

  template <thread_pool_like Pool>
  explicit executor(Pool& pool)
      : pool_(&pool), workers_(int(pool.workers())), run_([](void* p, i64 items, call* f, void* context) {
          static_cast<Pool*>(p)->run(items, [f, context](i64 item, int worker) { f(context, item, worker); });
        }) {
    expects(workers_ >= 1, "host::executor: the pool has no workers");
  }

  int workers() const { return workers_; }

  /// f(item, worker) for every item; returns when all are done.
  template <class F>
  void for_each(i64 items, F&& f) const {
    if (!pool_ || items <= 1) {
      for (i64 i = 0; i < items; ++i) f(i, 0);
      return;
    }
    run_(
        pool_, items, [](void* context, i64 item, int worker) { (*static_cast<std::remove_reference_t<F>*>(context))(item, worker); },
        const_cast<void*>(static_cast<void const*>(std::addressof(f))));
  }

 private:
  using call = void(void* context, i64 item, int worker);
  void* pool_ = nullptr;
  int workers_ = 1;
  void (*run_)(void*, i64, call*, void*) = nullptr;
};

}  // namespace cellar::host
