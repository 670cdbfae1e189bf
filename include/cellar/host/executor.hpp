#pragma once
#include <atomic>
#include <concepts>
#include <exception>
#include <memory>
#include <vector>

#include "cellar/core/error.hpp"
#include "cellar/host/vector_level.hpp"
#include "cellar/operation/memory.hpp"

namespace cellar::inline CELLAR_ABI::host {

template <offloading_scheme S>
class kept_selections;  // host/reuse.hpp

namespace detail {
/// As what an executor runs: a callable with a state, no function pointer.
struct pool_item {
  void* state = nullptr;
  void operator()(i64, int) const {}
};
}  // namespace detail

/// Threads that the caller owns: an engine's own pool models this with two members.
///
/// Laws  run calls f(item, worker) once for every item in [0, items), with worker in [0, workers()), never two calls with the same worker
///       at a time, and returns when all have returned. f does not throw: what a body throws is kept, and thrown again after the call.
template <class P>
concept thread_pool_like = requires(P& pool, i64 items, detail::pool_item const& f) {
  { pool.workers() } -> std::convertible_to<int>;
  pool.run(items, f);  // any callable
};

/// Where host operations run: on the calling thread, or on a pool of the caller's, and by which instructions. A reference, cheap to copy; the pool must
/// outlive it.
///
/// Results do not depend on the pool or its size. They depend on the vector level, by rounding; it is the highest that the processor has, or that of at_level.
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

  /// The same threads at another vector level: to reproduce results of an older processor, or to test.
  ///
  /// Errors  precondition_error for a level that this processor does not run
  executor at_level(vector_level level) const {
    executor other = *this;
    other.kernels_ = kernels_of(level);
    return other;
  }
  vector_kernels const* kernels() const { return kernels_; }

  // What a cache asks of its executor: memory near the processor, a way to the tier, and where drivers read a step.

  static constexpr bool is_host = true;  ///< Memory is the host's, and calls return when done.
  template <class T>
  using buffer = std::vector<T>;
  /// [count], zero.
  template <class T>
  buffer<T> allocate(i64 count) const {
    return buffer<T>(std::size_t(count));
  }
  template <class T>
  buffer<T> upload(std::vector<T>&& x) const {
    return std::move(x);
  }
  template <class Tier>
  struct reached {
    reached(executor const&, Tier&, int) {}
  };
  template <class Scheme>
  struct run_pools {  // a device's; the host reads far memory where it lies
    template <class... Sizes>
    run_pools(executor const&, Sizes const&...) {}
    i64 bytes() const { return 0; }
    void forget(executor const&, i64, i64) const {}
    resident_runs const* bring(executor const&, layer_memory<Scheme> const&, row_view<sequence_step const>, logical_block const*, i64 const*) const {
      return nullptr;
    }
  };
  template <class Scheme>
  using kept_selections = host::kept_selections<Scheme>;
  struct step_table {
    step_table(executor const&, i64, i64, i64) {}
    row_view<sequence_step const> publish(executor const&, row_view<sequence_step const> steps) { return steps; }
    row_view<page_id const> pages(executor const&, i64, row_view<page_id const> table) { return table; }
  };

  /// f(item, worker) for every item; returns when all are done.
  ///
  /// Errors  the first one that f throws, after all items are done; later ones are dropped. Serially, items after it are not begun
  template <class F>
  void for_each(i64 items, F&& f) const {
    if (!pool_ || items <= 1) {
      for (i64 i = 0; i < items; ++i) f(i, 0);
      return;
    }
    guarded<std::remove_reference_t<F>> body{f, {}, {}};
    run_(
        pool_, items, [](void* context, i64 item, int worker) { (*static_cast<decltype(body)*>(context))(item, worker); }, &body);
    if (body.error) std::rethrow_exception(body.error);
  }

 private:
  using call = void(void* context, i64 item, int worker);

  /// A body that keeps what it throws.
  template <class F>
  struct guarded {
    F& f;
    std::atomic<bool> has_failed = false;
    std::exception_ptr error;  // written by the first to fail, read when all are done

    void operator()(i64 item, int worker) {
#ifdef __cpp_exceptions
      try {
        f(item, worker);
      } catch (...) {
        if (!has_failed.exchange(true)) error = std::current_exception();
      }
#else
      f(item, worker);
#endif
    }
  };
  void* pool_ = nullptr;
  int workers_ = 1;
  vector_kernels const* kernels_ = kernels_of(best_vector_level());
  void (*run_)(void*, i64, call*, void*) = nullptr;
};

}  // namespace cellar::host
