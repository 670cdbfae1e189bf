#pragma once
#include "catch.hpp"
#include "cellar/cellar.cuh"

namespace test_device {

/// f(executor) on a stream of the first device; skips visibly where there is none. The stream is one that waits for the null stream: a launch on that one while
/// a step is captured would be an error.
template <class F>
void run(F const& f) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    skip("no CUDA device");
    return;
  }
  cudaStream_t stream{};
  cellar::cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
  f(cellar::cuda::executor(stream));
  cellar::cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  cellar::cuda::check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace test_device
