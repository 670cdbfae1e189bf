#pragma once
#include <algorithm>
#include <cmath>
#include <numbers>

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

/// The inverse frequencies of rotary embeddings: what `rotary::inverse_frequencies` views, computed in double by the formulas of Hugging Face's
/// modeling_rope_utils. All write f[i] for i in [0, head_dim / 2), head_dim = 2 * f.count.
namespace cellar::inline CELLAR_ABI {

/// f[i] = theta^(-2 i / head_dim).
///
/// Source  RoFormer, Su et al., arXiv:2104.09864
inline void plain_inverse_frequencies(double theta, row_view<double> f) {
  expects(theta > 1 && f.count > 0, "plain_inverse_frequencies: theta must be above 1, and there must be frequencies");
  for (i64 i = 0; i < f.count; ++i) f[i] = std::pow(theta, -double(i) / double(f.count));
}

/// Position interpolation: f[i] = theta^(-2 i / head_dim) / factor.
///
/// Source  Chen et al., arXiv:2306.15595
inline void linear_inverse_frequencies(double theta, double factor, row_view<double> f) {
  expects(factor > 0, "linear_inverse_frequencies: factor must be above zero");
  plain_inverse_frequencies(theta, f);
  for (double& x : f) x /= factor;
}

/// How Llama 3.1 and later stretch their context.
struct llama3_scaling {
  double factor = 8;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_context = 8192;  ///< Tokens.
};

/// With wavelength w = 2 pi / f and context c: f / factor where w > c / low_frequency_factor; f where w < c / high_frequency_factor; between them
/// (1 - s) f / factor + s f,  s = (c / w - low_frequency_factor) / (high_frequency_factor - low_frequency_factor).
///
/// Source  Llama 3.1, arXiv:2407.21783 ("llama3" in modeling_rope_utils)
inline void llama3_inverse_frequencies(double theta, llama3_scaling const& scaling, row_view<double> f) {
  expects(scaling.factor > 0 && scaling.original_context > 0, "llama3_inverse_frequencies: factor and original_context must be above zero");
  expects(0 < scaling.low_frequency_factor && scaling.low_frequency_factor < scaling.high_frequency_factor,
          "llama3_inverse_frequencies: low_frequency_factor must be above zero and below high_frequency_factor");
  plain_inverse_frequencies(theta, f);
  double const low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
  for (double& x : f) {
    double const turns = scaling.original_context * x / (2 * std::numbers::pi);  // c / w
    double const s = std::clamp((turns - low) / (high - low), 0.0, 1.0);         // 0 and 1 are the outer cases
    x = (1 - s) * x / scaling.factor + s * x;
  }
}

/// How YaRN stretches a context.
struct yarn_scaling {
  double factor = 4;
  double original_context = 4096;  ///< Tokens.
  double beta_fast = 32, beta_slow = 1;
  bool truncates = true;  ///< Bounds of the ramp are whole pairs.
};

/// With b(n) = head_dim log(original_context / (2 pi n)) / (2 log(theta)), low = max(floor(b(beta_fast)), 0), high = min(ceil(b(beta_slow)), head_dim - 1)
/// and ramp[i] = clamp((i - low) / (high - low), 0, 1), where high is 0.001 more if it equals low:
/// f[i] = theta^(-2 i / head_dim) (ramp[i] / factor + 1 - ramp[i]).
///
/// Returns  the magnitude 0.1 log(factor) + 1 (1 for factors up to 1), by which the engine multiplies cosine and sine. Policies that turn keys turn
///          them from one position to another, so that the magnitude stays in the keys and `rotate` needs none.
/// Source   Peng et al., arXiv:2309.00071
inline double yarn_inverse_frequencies(double theta, yarn_scaling const& scaling, row_view<double> f) {
  expects(scaling.factor > 0 && scaling.original_context > 0 && scaling.beta_slow > 0 && scaling.beta_fast > scaling.beta_slow,
          "yarn_inverse_frequencies: factor, original_context and beta_slow must be above zero, beta_fast above beta_slow");
  plain_inverse_frequencies(theta, f);
  double const pi = std::numbers::pi;
  auto const pair = [&](double turns) { return double(f.count) * std::log(scaling.original_context / (2 * pi * turns)) / std::log(theta); };
  double low = pair(scaling.beta_fast), high = pair(scaling.beta_slow);
  if (scaling.truncates) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, double(2 * f.count - 1));
  if (low == high) high += 0.001;
  for (i64 i = 0; i < f.count; ++i) {
    double const ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    f[i] *= ramp / scaling.factor + 1 - ramp;
  }
  return scaling.factor > 1 ? 0.1 * std::log(scaling.factor) + 1 : 1;
}

}  // namespace cellar
