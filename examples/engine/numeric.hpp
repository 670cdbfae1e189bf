#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace engine {

/// A fixed set of threads; a cellar::host::executor wraps it too. Matrix products run one BLAS call per thread on slices, so BLAS's own threads stay off.
class worker_threads {
 public:
  using item_work = std::function<void(std::int64_t item, int worker)>;

  explicit worker_threads(int threads);
  ~worker_threads();
  worker_threads(worker_threads const&) = delete;
  worker_threads& operator=(worker_threads const&) = delete;

  int workers() const { return int(threads_.size()) + 1; }

  /// Calls work(item, worker) for all items in [0, count), on the calling thread (worker 0) too; rethrows the first exception. One call at a time.
  void run(std::int64_t count, item_work const& work);

 private:
  void take(int worker);

  item_work const* work_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_ = 0;
  std::atomic<int> running_ = 0;
  std::atomic<unsigned> round_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

/// out[r][o] = sum over i of x[r][i] * w[o][i]; x [rows, in], w [out_width, in], out [rows, out_width]. Reads w once.
void linear(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t out_width, float* out, worker_threads& on);

/// Turns a row of logits into exp(logit - maximum) and returns the sum; relative error of exp about 1e-7, exact zero below exp(-87).
float exponentials(float* row, std::int64_t n, float maximum);

float maximum(float const* row, std::int64_t n);

/// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
void silu_times(float* gate, float const* up, std::int64_t n);

/// out = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(float const* x, float const* weight, std::int64_t n, double epsilon, float* out);

/// log(sum(exp(logits))), accumulated in double.
double log_sum_exp(float const* logits, std::int64_t n);

}  // namespace engine
