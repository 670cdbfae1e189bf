#pragma once
#include <algorithm>
#include <cmath>
#include <utility>

#include "cellar/cuda/device.hpp"
#include "engine/backend.hpp"

namespace engine {

/// softmax of what each row sees, in place: columns [row + visible_from, row + visible_to) of row `row`, cut to those that are there; the others become zero.
struct causal_softmax {
  float* scores;  // [rows, columns]
  std::int64_t columns, visible_from, visible_to;

  template <cellar::team Team>
  CELLAR_HD void operator()(Team& t, cellar::cuda::grid_place at) const {
    float* const x = scores + std::int64_t(at.x) * columns;
    std::int64_t const from = at.x + visible_from, begin = from > 0 ? from : 0, to = at.x + visible_to, end = to < columns ? to : columns;
    float top = -cellar::infinity;
    for (std::int64_t i = begin + t.rank(); i < end; i += t.size()) top = x[i] > top ? x[i] : top;
    top = t.reduce(top, cellar::maximum{});
    float sum = 0;
    for (std::int64_t i = begin + t.rank(); i < end; i += t.size()) sum += std::exp(x[i] - top);
    sum = t.reduce(sum, cellar::plus{});
    for (std::int64_t i = t.rank(); i < columns; i += t.size()) x[i] = i < begin || i >= end ? 0.0f : std::exp(x[i] - top) / sum;
  }
};

/// On a device of cellar's drivers, products by a BLAS of it:
///
///     blas.multiply(is_a_transposed, is_b_transposed, m, n, k, alpha, a, lda, b, ldb, c, ldc)      column-major, c[m, n] = alpha a b
///
/// A layer's keys and values stay on the device while a prompt is read: 2 * tokens * kv_heads * head_dim floats.
template <class Device, class Blas>
class device_backend final : public backend {
 public:
  device_backend(Device const& on, Blas blas) : on_(on), blas_(std::move(blas)) {}

  int add(std::shared_ptr<std::vector<float> const> weights) override {
    weights_.push_back(on_.upload(std::vector<float>(*weights)));
    return int(weights_.size()) - 1;
  }

  void linear(int weights, float const* x, std::int64_t rows, std::int64_t in, std::int64_t out_width, float* out) override {
    reserve(in_, rows * in);
    reserve(out_, rows * out_width);
    upload(in_.data(), x, rows * in);
    blas_.multiply(true, false, out_width, rows, in, 1, weights_[std::size_t(weights)].data(), in, in_.data(), in, out_.data(), out_width);
    download(out, out_.data(), rows * out_width);
  }

  void begin_prompt() override {
    for (prompt& p : prompts_) p.known = 0;
  }
  void prompt_attention(int layer, attention_shape shape, float const* q, std::int64_t rows, std::int64_t first, float const* keys, float const* values,
                        float* out, std::int64_t window) override {
    std::int64_t const d = shape.head_dim, width = shape.kv_heads * d, q_width = shape.heads * d, group = shape.heads / shape.kv_heads;
    if (std::size_t(layer) >= prompts_.size()) prompts_.resize(std::size_t(layer) + 1);
    auto& [k, v, known] = prompts_[std::size_t(layer)];
    known = std::min(known, first);
    for (auto* const x : {&k, &v}) {
      if (std::int64_t const needed = (first + rows) * width; std::int64_t(x->size()) < needed) {
        auto larger = on_.template allocate<float>(std::max(needed, 2 * std::int64_t(x->size())));
        on_.copy(reinterpret_cast<std::byte*>(larger.data()), reinterpret_cast<std::byte const*>(x->data()), known * width * std::int64_t(sizeof(float)));
        on_.wait();
        std::swap(*x, larger);
      }
      upload(x->data() + known * width, (x == &k ? keys : values) + known * width, (first + rows - known) * width);
    }
    known = first + rows;
    std::int64_t const start = window > 0 ? std::max<std::int64_t>(0, first - window + 1) : 0, columns = first + rows - start;
    reserve(in_, rows * q_width);
    reserve(out_, rows * q_width);
    reserve(scores_, rows * columns);
    upload(in_.data(), q, rows * q_width);
    for (int h = 0; h < shape.heads; ++h) {
      std::int64_t const from = start * width + h / group * d;
      blas_.multiply(true, false, columns, rows, d, float(1 / std::sqrt(double(d))), k.data() + from, width, in_.data() + h * d, q_width, scores_.data(),
                     columns);
      causal_softmax const softmax{scores_.data(), columns, window > 0 ? first - window + 1 - start : -first - rows, first + 1 - start};
      on_.template launch<256>({rows}, 0, softmax);
      blas_.multiply(false, false, d, rows, columns, 1, v.data() + from, width, scores_.data(), columns, out_.data() + h * d, q_width);
    }
    download(out, out_.data(), rows * q_width);
  }

 private:
  using buffer = typename Device::template buffer<float>;
  struct prompt {
    buffer keys, values;
    std::int64_t known = 0;  // tokens that are there
  };

  void reserve(buffer& x, std::int64_t floats) const {
    if (std::int64_t(x.size()) < floats) x = on_.template allocate<float>(floats);
  }
  void upload(float* to, float const* from, std::int64_t floats) const { on_.upload(to, from, floats * std::int64_t(sizeof(float))); }
  void download(float* to, float const* from, std::int64_t floats) const { on_.download(to, from, floats * std::int64_t(sizeof(float))); }

  Device on_;
  Blas blas_;
  std::vector<buffer> weights_;
  std::vector<prompt> prompts_;  // of each layer
  buffer in_, out_, scores_;
};

}  // namespace engine
