#include "text2json/attention_metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cellar/core/math.hpp"
#include "engine/numeric.hpp"

namespace text2json {

attention_comparison compare_attention(int head_dim, int group, float const* queries, float const* outputs, attended_rows const& rows,
                                       std::vector<bool> const& attended, std::int64_t far_tokens, std::int64_t budget) {
  std::size_t const n = attended.size(), far = std::size_t(far_tokens);
  std::vector<float> best(far, 0.f);
  std::vector<std::vector<float>> shares;
  attention_comparison to;
  double error = 0, size = 0;
  for (int h = 0; h < group; ++h) {
    float const* const q = queries + h * head_dim;
    std::vector<float> weights(n);
    for (std::size_t p = 0; p < n; ++p) {
      float s = 0;
      for (int c = 0; c < head_dim; ++c) s += q[c] * rows.keys[p][c];
      weights[p] = s / std::sqrt(float(head_dim));
    }
    double const sum = double(engine::exponentials(weights.data(), std::int64_t(n), engine::maximum(weights.data(), std::int64_t(n))));
    std::vector<double> exact(std::size_t(head_dim), 0.0);
    double on_far = 0, captured = 0;
    for (std::size_t p = 0; p < n; ++p) {
      double const w = double(weights[p]) / sum;
      weights[p] = float(w);
      for (int c = 0; c < head_dim; ++c) exact[std::size_t(c)] += w * double(rows.values[p][c]);
      if (p < far) on_far += w;
      if (!attended[p]) continue;
      captured += w;
      if (p < far) to.captured_far += w;
    }
    to.captured += captured / group;
    to.missed.push_back(1 - captured);
    to.all_far += on_far;
    for (std::size_t p = 0; p < far; ++p) best[p] = std::max(best[p], float(double(weights[p]) / std::max(on_far, 1e-300)));
    shares.push_back(std::move(weights));
    for (int c = 0; c < head_dim; ++c) {
      error += std::pow(double(outputs[h * head_dim + c]) - exact[std::size_t(c)], 2);
      size += std::pow(exact[std::size_t(c)], 2);
    }
  }
  to.error = std::sqrt(error / std::max(size, 1e-300));
  std::vector<std::size_t> order(far);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::nth_element(order.begin(), order.begin() + budget, order.end(), [&](std::size_t a, std::size_t b) { return best[a] > best[b]; });
  to.oracle = (group - to.all_far) / group;  // what lies near
  for (auto const& share : shares)
    for (std::int64_t i = 0; i < budget; ++i) to.oracle += double(share[order[std::size_t(i)]]) / group;
  return to;
}

}  // namespace text2json
