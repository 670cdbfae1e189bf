#include "recorder.hpp"

#include <cstdlib>
#include <cstring>

namespace recorder {

runtime& state() {
  static runtime one;
  return one;
}

namespace {

std::map<void const*, std::string>& kernels() {
  static std::map<void const*, std::string> names;
  return names;
}

/// Whether memory lies in something of that kind.
bool is_in(void const* p, memory kind) {
  auto const& held = state().held;
  auto at = held.upper_bound(reinterpret_cast<std::uintptr_t>(p));
  if (at == held.begin()) return false;
  --at;
  return at->second.second == kind && reinterpret_cast<std::uintptr_t>(p) < at->first + at->second.first;
}

/// Writes a call down; whether it fails.
cudaError_t made(call const& c) {
  runtime& r = state();
  r.calls.push_back(c);
  bool const is_next = r.fails_at == 1, fails = is_next || c.function == r.failing_function;
  if (r.fails_at > 1 || (is_next && !r.keeps_failing)) --r.fails_at;
  if (fails && r.failed.empty()) r.failed = c.function;
  return fails ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t enqueued(call const& c) {
  ++state().enqueued[c.stream];
  return made(c);
}

cudaError_t give(void** p, std::size_t n, memory kind, char const* function) {
  if (auto const error = made({function, {}, {}, false, false}); error != cudaSuccess) return cudaErrorMemoryAllocation;
  *p = std::aligned_alloc(256, (n + 255) / 256 * 256);
  state().held[reinterpret_cast<std::uintptr_t>(*p)] = {n, kind};
  return cudaSuccess;
}
cudaError_t take(void* p, memory kind, char const* function) {
  runtime& r = state();
  r.calls.push_back({function, {}, {}, false, false});
  auto const at = r.held.find(reinterpret_cast<std::uintptr_t>(p));
  if (at == r.held.end() || at->second.second != kind) return cudaErrorInvalidValue;
  r.held.erase(at);
  for (auto const& [stream, calls] : r.enqueued) r.freed_meanwhile[stream] += calls > 0;
  if (kind != memory::registered) std::free(p);
  return cudaSuccess;
}

}  // namespace
}  // namespace recorder

using namespace recorder;

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return made({"cudaGetDevice", {}, {}, false, false});
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  runtime const& r = state();
  *value = attribute == cudaDevAttrMultiProcessorCount                 ? 132
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin      ? int(r.shared_limit)
           : attribute == cudaDevAttrPageableMemoryAccess              ? int(r.reads_pageable)
           : attribute == cudaDevAttrComputeCapabilityMajor            ? r.major
           : attribute == cudaDevAttrUnifiedAddressing                 ? int(r.has_unified_addressing)
           : attribute == cudaDevAttrCanUseHostPointerForRegisteredMem ? 1
                                                                       : -1;
  return made({"cudaDeviceGetAttribute", {}, {}, false, false});
}
cudaError_t cudaMalloc(void** p, std::size_t n) { return give(p, n, memory::device, "cudaMalloc"); }
cudaError_t cudaFree(void* p) { return take(p, memory::device, "cudaFree"); }
cudaError_t cudaMallocHost(void** p, std::size_t n) { return give(p, n, memory::pinned, "cudaMallocHost"); }
cudaError_t cudaFreeHost(void* p) { return take(p, memory::pinned, "cudaFreeHost"); }
cudaError_t cudaHostRegister(void* p, std::size_t n, unsigned) {
  if (auto const error = made({"cudaHostRegister", {}, {}, false, false}); error != cudaSuccess) return error;
  state().held[reinterpret_cast<std::uintptr_t>(p)] = {n, memory::registered};
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) { return take(p, memory::registered, "cudaHostUnregister"); }
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t n, cudaMemcpyKind, cudaStream_t stream) {
  auto const error = enqueued({"cudaMemcpyAsync", stream, {}, is_in(from, memory::pinned), is_in(to, memory::device)});
  if (error == cudaSuccess) std::memmove(to, from, n);
  return error;
}
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t n, cudaStream_t stream) {
  auto const error = enqueued({"cudaMemsetAsync", stream, {}, false, is_in(p, memory::device)});
  if (error == cudaSuccess) std::memset(p, value, n);
  return error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  state().enqueued[stream] = 0;
  return made({"cudaStreamSynchronize", stream, {}, false, false});
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) { return made({"cudaStreamWaitEvent", stream, {}, false, false}); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (auto const error = made({"cudaEventCreateWithFlags", {}, {}, false, false}); error != cudaSuccess) return error;
  *event = reinterpret_cast<cudaEvent_t>(std::uintptr_t(++state().events));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
  --state().events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) { return made({"cudaEventRecord", stream, {}, false, false}); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return made({"cudaEventSynchronize", {}, {}, false, false}); }
cudaError_t cudaEventQuery(cudaEvent_t) {
  auto const error = made({"cudaEventQuery", {}, {}, false, false});
  return error == cudaSuccess && state().unfinished_queries-- > 0 ? cudaErrorNotReady : error;
}
cudaError_t cudaFuncSetAttribute(void const*, cudaFuncAttribute, int) { return made({"cudaFuncSetAttribute", {}, {}, false, false}); }
cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* kernel, void**) {
  return enqueued({"cudaLaunchKernelExC", config->stream, kernels()[kernel], false, false});
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
char const* cudaGetErrorName(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorLaunchFailure"; }
char const* cudaGetErrorString(cudaError_t) { return "it was asked to fail"; }

// What nvcc's code calls before main, and from functions that nobody calls (kernels as host functions).
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, char const* kernel, char*, char const* name, int, void*, void*, void*, void*, int*) { kernels()[kernel] = name; }
cudaError_t __cudaGetKernel(void*, void const*) { return cudaErrorUnknown; }
cudaError_t __cudaPopCallConfiguration(void*, void*, std::size_t*, void*) { return cudaErrorUnknown; }
cudaError_t __cudaLaunchKernel(void*, void*, void*, void**, std::size_t, void*) { return cudaErrorUnknown; }

}  // extern "C"
