#pragma once
#if defined(__linux__) && __has_include(<linux/mempolicy.h>)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cellar/tier/host_memory.hpp"

namespace cellar::inline CELLAR_ABI::tier {

/// host_memory whose pages lie on all NUMA nodes in turns, whoever touches them first: for one process whose threads run on several nodes, so that each of
/// them reads with the bandwidth of all. Where the process may use one node only, or the system refuses, it is host_memory.
///
/// For one process a node (numactl --cpunodebind, or a container's cpuset), and where a device copies far memory, host_memory is the better choice: its
/// pages lie where the thread runs that seals into them.
///
/// Effects  system calls at construction and destruction
/// Errors   as host_memory
class interleaved_memory {
 public:
  static constexpr bool is_directly_readable = true;
  static constexpr bool is_device_reachable = false;

  interleaved_memory(int layers, i64 bytes_per_layer) : memory_(layers, bytes_per_layer) { ask(true); }
  interleaved_memory(interleaved_memory&&) = default;
  interleaved_memory& operator=(interleaved_memory&& other) noexcept {
    ask(false);
    memory_ = std::move(other.memory_);
    return *this;
  }
  ~interleaved_memory() { ask(false); }  // an allocator may give the pages to others

  i64 bytes() const { return memory_.bytes(); }
  std::byte* data(int layer) { return memory_.data(layer); }
  std::byte const* data(int layer) const { return memory_.data(layer); }

 private:
  /// That pages be interleaved, or no longer. A wish: refusal changes nothing.
  void ask([[maybe_unused]] bool interleaved) noexcept {
#ifdef MPOL_F_MEMS_ALLOWED  // an enumerator says nothing to the preprocessor
    constexpr unsigned long most_nodes = 1024;
    unsigned long nodes[most_nodes / (8 * sizeof(unsigned long))] = {};
    if (::syscall(SYS_get_mempolicy, nullptr, nodes, most_nodes, nullptr, MPOL_F_MEMS_ALLOWED) != 0) return;
    for (int layer = 0; layer < memory_.layers(); ++layer)
      if (memory_.allocated_bytes() > 0)
        ::syscall(SYS_mbind, memory_.data(layer), static_cast<unsigned long>(memory_.allocated_bytes()), interleaved ? MPOL_INTERLEAVE : MPOL_DEFAULT,
                  interleaved ? nodes : nullptr, interleaved ? most_nodes : 0ul, 0u);
#endif
  }

  host_memory memory_;
};
static_assert(block_tier<interleaved_memory>);

}  // namespace cellar::tier
