#pragma once
/// Opt-in: linear algebra by LAPACK. Link a library that has it (OpenBLAS, reference LAPACK, MKL); 32-bit integers.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "cellar/codec/low_rank.hpp"

extern "C" void dsyevr_(char const* job, char const* range, char const* triangle, int const* n, double* a, int const* lda, double const* low,
                        double const* high, int const* first, int const* last, double const* tolerance, int* found, double* values, double* vectors,
                        int const* ldz, int* support, double* work, int const* work_size, int* integers, int const* integers_size, int* info,
                        std::size_t job_length, std::size_t range_length, std::size_t triangle_length);  // Fortran's lengths of the strings

namespace cellar::inline CELLAR_ABI::interop {

/// Leading eigenvectors by dsyevr (relatively robust representations).
///
/// Effects  allocates O(n * n). Thread-safe as far as the library is
struct lapack_eigensolver {
  bool operator()(double const* matrix, int n, int count, double* vectors) const {
    char const job = 'V', range = 'I', triangle = 'L';
    int const first = n - count + 1, last = n, work_size = 26 * n, integers_size = 10 * n;
    double const unused = 0;
    int found = 0, info = 0;
    std::size_t const rows = std::size_t(n), slack = 8;  // OpenBLAS's dsymv for SSE3 reads up to 64 bytes past its operands
    std::vector<double> a(rows * rows + slack), values(rows), ascending(rows * std::size_t(count) + slack), work(std::size_t(work_size) + slack);
    std::copy_n(matrix, rows * rows, a.begin());
    std::vector<int> support(2 * std::size_t(count)), integers(std::size_t(integers_size), 0);
    dsyevr_(&job, &range, &triangle, &n, a.data(), &n, &unused, &unused, &first, &last, &unused, &found, values.data(), ascending.data(), &n, support.data(),
            work.data(), &work_size, integers.data(), &integers_size, &info, 1, 1, 1);
    if (info != 0 || found != count) return false;
    for (int i = 0; i < count; ++i) std::copy_n(ascending.begin() + std::ptrdiff_t(count - 1 - i) * n, n, vectors + std::ptrdiff_t(i) * n);
    return true;
  }
};
static_assert(codec::symmetric_eigensolver<lapack_eigensolver>);

}  // namespace cellar::interop
