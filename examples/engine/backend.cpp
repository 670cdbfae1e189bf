#include "engine/backend.hpp"

#include "engine/numeric.hpp"

namespace engine {
namespace {

class on_host final : public backend {
 public:
  explicit on_host(cellar::host::thread_pool& threads) : threads_(threads) {}

  int add(std::shared_ptr<std::vector<float> const> weights) override {
    weights_.push_back(std::move(weights));
    return int(weights_.size()) - 1;
  }
  void linear(int weights, float const* x, std::int64_t rows, std::int64_t in, std::int64_t out_width, float* out) override {
    engine::linear(x, rows, in, weights_[std::size_t(weights)]->data(), out_width, out, threads_);
  }
  void prompt_attention(int, attention_shape shape, float const* q, std::int64_t rows, std::int64_t first, float const* keys, float const* values, float* out,
                        std::int64_t window) override {
    causal_attention(shape, q, rows, first, keys, values, out, threads_, window);
  }

 private:
  cellar::host::thread_pool& threads_;
  std::vector<std::shared_ptr<std::vector<float> const>> weights_;
};

}  // namespace

std::unique_ptr<backend> host_backend(cellar::host::thread_pool& threads) { return std::make_unique<on_host>(threads); }

}  // namespace engine
