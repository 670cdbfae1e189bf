#pragma once
#include <cstdint>

#include "cellar/host/thread_pool.hpp"

namespace engine {

/// out[r][o] = sum over i of x[r][i] * w[o][i]; x [rows, in], w [out_width, in], out [rows, out_width]. Reads w once. One BLAS call a thread, on slices:
/// BLAS's own threads should be off.
void linear(float const* x, std::int64_t rows, std::int64_t in, float const* w, std::int64_t out_width, float* out, cellar::host::thread_pool& on);

/// Turns a row of logits into exp(logit - maximum) and returns the sum; relative error of exp about 1e-7, exact zero below exp(-87).
float exponentials(float* row, std::int64_t n, float maximum);

float maximum(float const* row, std::int64_t n);

/// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
void silu_times(float* gate, float const* up, std::int64_t n);

/// gate[i] = gate[i] * (1 + tanh(sqrt(2 / pi) * (gate[i] + 0.044715 * gate[i]^3))) / 2 * up[i]
void gelu_times(float* gate, float const* up, std::int64_t n);

/// out = x / sqrt(mean(x^2) + epsilon) * weight; out may be x.
void rms_norm(float const* x, float const* weight, std::int64_t n, double epsilon, float* out);

/// log(sum(exp(logits))), accumulated in double.
double log_sum_exp(float const* logits, std::int64_t n);

}  // namespace engine
