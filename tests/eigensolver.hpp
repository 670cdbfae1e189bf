#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

/// Leading eigenvectors of a symmetric matrix by Jacobi's rotations: slow, simple, and no library.
struct jacobi_eigensolver {
  bool operator()(double* a, int n, int count, double* vectors) const {
    std::vector<double> v(std::size_t(n * n), 0.0);  // columns are eigenvectors
    for (int i = 0; i < n; ++i) v[std::size_t(i * n + i)] = 1;
    double total = 0;
    for (int i = 0; i < n * n; ++i) total += a[i] * a[i];
    for (int sweep = 0; sweep < 60; ++sweep) {
      double off = 0;
      for (int p = 0; p < n; ++p)
        for (int q = p + 1; q < n; ++q) off += a[p * n + q] * a[p * n + q];
      if (off <= 1e-26 * total) break;
      for (int p = 0; p < n; ++p)
        for (int q = p + 1; q < n; ++q) {
          double const x = a[p * n + q];
          if (x == 0) continue;
          double const theta = (a[q * n + q] - a[p * n + p]) / (2 * x);
          double const t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1)), c = 1 / std::sqrt(t * t + 1), s = t * c;
          for (int k = 0; k < n; ++k) {
            double const kp = a[k * n + p], kq = a[k * n + q];
            a[k * n + p] = c * kp - s * kq;
            a[k * n + q] = s * kp + c * kq;
          }
          for (int k = 0; k < n; ++k) {
            double const pk = a[p * n + k], qk = a[q * n + k];
            a[p * n + k] = c * pk - s * qk;
            a[q * n + k] = s * pk + c * qk;
          }
          for (int k = 0; k < n; ++k) {
            double const kp = v[std::size_t(k * n + p)], kq = v[std::size_t(k * n + q)];
            v[std::size_t(k * n + p)] = c * kp - s * kq;
            v[std::size_t(k * n + q)] = s * kp + c * kq;
          }
        }
    }
    std::vector<int> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int i, int j) { return a[i * n + i] > a[j * n + j]; });
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < n; ++k) vectors[i * n + k] = v[std::size_t(k * n + order[std::size_t(i)])];
    return true;
  }
};
