#include "engine/cuda.hpp"

#include <cublas_v2.h>

#include <stdexcept>
#include <utility>

#include "cellar/cellar.cuh"
#include "engine/device_backend.hpp"

namespace engine {
namespace {

void check(cublasStatus_t status, char const* operation) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string(operation) + " failed: " + cublasGetStatusString(status));
}

class cublas {
 public:
  explicit cublas(cudaStream_t stream) : cublas() { check(cublasSetStream(handle_, stream), "cublasSetStream"); }
  cublas(cublas&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  ~cublas() {
    if (handle_) static_cast<void>(cublasDestroy(handle_));
  }
  void multiply(bool is_a_transposed, bool is_b_transposed, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, float const* a, std::int64_t lda,
                float const* b, std::int64_t ldb, float* c, std::int64_t ldc) const {
    float const beta = 0;
    check(cublasSgemm(handle_, is_a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, is_b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, int(m), int(n), int(k), &alpha, a,
                      int(lda), b, int(ldb), &beta, c, int(ldc)),
          "cublasSgemm");
  }

 private:
  cublas() { check(cublasCreate(&handle_), "cublasCreate"); }  // delegated to: whatever fails later, the handle is destroyed

  cublasHandle_t handle_ = nullptr;
};

/// A stream of its own.
cudaStream_t new_stream() {
  cudaStream_t stream{};
  cellar::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}

}  // namespace

std::unique_ptr<backend> cuda_backend() {
  static cudaStream_t const stream = new_stream();  // of the program
  return std::make_unique<device_backend<cellar::cuda::executor, cublas>>(cellar::cuda::executor(stream), cublas(stream));
}

std::string cuda_device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  cellar::cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cellar::cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

}  // namespace engine
