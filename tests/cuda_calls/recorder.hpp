#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

/// A CUDA runtime that runs nothing and writes down what it is asked for, in place of the real one: cellar's executor as nvcc compiles it, on any machine.
///
/// It has the functions that cellar calls and no others, so a program that calls another one does not link. Memory is the host's; copies are made at once,
/// kernels do not run. Not for several threads.
namespace recorder {

enum class memory { device, pinned, registered };

struct call {
  std::string function;
  cudaStream_t stream = nullptr;  ///< Of functions that have one.
  std::string kernel;             ///< Of a launch, mangled.
  bool is_from_pinned = false;    ///< Of a copy: what it reads.
  bool is_to_device = false;      ///< Of a copy: what it writes.
};

struct runtime {
  std::vector<call> calls;
  std::map<std::uintptr_t, std::pair<std::size_t, memory>> held;  ///< Memory that was given and not taken back, by address.
  std::int64_t events = 0;                                        ///< That exist.
  std::map<cudaStream_t, std::int64_t> enqueued;                  ///< Calls on each stream since somebody waited for it.
  std::map<cudaStream_t, std::int64_t> freed_meanwhile;           ///< Memory taken back while a stream had such calls.
  std::int64_t unfinished_queries = 0;                            ///< Of events, that say "not yet".
  std::int64_t shared_limit = 99 * 1024;
  int major = 9;
  bool reads_pageable = true, has_unified_addressing = true;

  // The calls that fail: the n-th from now on, or all from there on. Zero: none. Those that free or tell of errors do not.
  std::int64_t fails_at = 0;
  bool keeps_failing = false;
  std::string failing_function;  ///< All calls of this one do.
  std::string failed;            ///< The first that did.

  std::int64_t count(std::string const& function) const {
    std::int64_t n = 0;
    for (auto const& c : calls) n += c.function == function;
    return n;
  }
  bool holds_nothing() const { return held.empty() && events == 0; }
};

/// The one runtime of the program.
runtime& state();

}  // namespace recorder
