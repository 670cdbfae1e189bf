#pragma once
#include <cuda_pipeline_primitives.h>

#include "cellar/core/team.hpp"

/// Blocks and warps of a device as teams: the only file with device instructions. The team's laws are tests that run here and under the emulated block.
namespace cellar::inline CELLAR_ABI::cuda {

/// The dynamic shared memory of a launch: what teams hand out.
extern __shared__ __align__(128) unsigned char shared_arena[];

namespace detail {

/// x of every lane of an aligned group of N, combined in butterfly order: the same value on every lane.
template <int N, class T, class Op>
__device__ __forceinline__ T reduce_lanes(T x, Op op) {
#pragma unroll
  for (int distance = N / 2; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}
/// The sum of x of the lanes up to this one, included.
template <class T>
__device__ __forceinline__ T scan_lanes(T x, unsigned lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    T const before = __shfl_up_sync(~0u, x, distance);
    if (lane >= unsigned(distance)) x += before;
  }
  return x;
}

}  // namespace detail

/// 32 lanes of a block.
template <int Threads>
struct lanes_of_block {
  static constexpr unsigned width = 32;
  __device__ __forceinline__ unsigned lane() const { return threadIdx.x & 31u; }
  __device__ __forceinline__ unsigned index() const { return threadIdx.x >> 5; }
  __device__ __forceinline__ unsigned count() const { return Threads / 32; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ std::uint32_t ballot(bool p) const { return __ballot_sync(~0u, p); }
  template <class T>
  __device__ __forceinline__ T shuffle(T x, unsigned from) const {
    return __shfl_sync(~0u, x, int(from));
  }
  template <class T, class Op, int N = 32>
  __device__ __forceinline__ T reduce(T x, Op op, lanes_t<N> = {}) const {
    return detail::reduce_lanes<N>(x, op);
  }
  __device__ __forceinline__ void multiply_add(float (&d)[4], f16_pair const (&a)[4], f16_pair const (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(bit_cast<std::uint32_t>(a[0])), "r"(bit_cast<std::uint32_t>(a[1])), "r"(bit_cast<std::uint32_t>(a[2])), "r"(bit_cast<std::uint32_t>(a[3])),
          "r"(bit_cast<std::uint32_t>(b[0])), "r"(bit_cast<std::uint32_t>(b[1])));
  }
};

/// The threads of a block. Threads: blockDim.x of the launch, a multiple of 32.
template <int Threads>
class block_team {
  static_assert(Threads % 32 == 0 && Threads <= 1024);

 public:
  __device__ __forceinline__ unsigned rank() const { return threadIdx.x; }
  __device__ __forceinline__ unsigned size() const { return Threads; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ lanes_of_block<Threads> warp() const { return {}; }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(T x, Op op) const {
    constexpr int warps = Threads / 32;
    __shared__ T of_warps[warps];
    x = detail::reduce_lanes<32>(x, op);
    __syncthreads();  // the call before has been read
    if ((threadIdx.x & 31u) == 0) of_warps[threadIdx.x >> 5] = x;
    __syncthreads();
    x = of_warps[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) x = op(x, of_warps[i]);
    return x;
  }
  template <class T>
  __device__ __forceinline__ T scan(T x, T& total) const {
    constexpr int warps = Threads / 32;
    __shared__ T of_warps[warps];
    T const all = detail::scan_lanes(x, threadIdx.x & 31u);
    __syncthreads();
    if ((threadIdx.x & 31u) == 31) of_warps[threadIdx.x >> 5] = all;
    __syncthreads();
    T before{}, sum{};
#pragma unroll
    for (int i = 0; i < warps; ++i) {
      if (i == int(threadIdx.x >> 5)) before = sum;
      sum += of_warps[i];
    }
    total = sum;
    return before + all - x;
  }
  template <class T>
  __device__ __forceinline__ T atomic_add(T* p, T x) const {
    return atomicAdd(p, x);
  }
  template <class T>
  __device__ __forceinline__ T* shared(i64 n) {
    static_assert(alignof(T) <= 16);
    T* const p = reinterpret_cast<T*>(shared_arena + used_);
    used_ += unsigned(round_up(n * i64(sizeof(T)), 16));
    return p;
  }
  template <class To, class From>
  __device__ __forceinline__ void copy_async(To* to, From const* from) const {
    __pipeline_memcpy_async(to, from, 16);
  }
  __device__ __forceinline__ void commit_async() const { __pipeline_commit(); }
  template <int N>
  __device__ __forceinline__ void wait_async(lanes_t<N>) const {
    __pipeline_wait_prior(N);
  }

 private:
  unsigned used_ = 0;
};
static_assert(team<block_team<128>>);

}  // namespace cellar::cuda
