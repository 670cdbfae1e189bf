#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cellar/core/team.hpp"

/// CUDA blocks on the CPU: every thread of a block is a fibre of one OS thread,
/// barriers and warp exchanges are rendezvous.
///
///   emulator::launch({.threads = 128, .shared_bytes = 2048, .order =
///   emulator::shuffled(7)}, [&](emulator::team& t) { body(t, ...); });
///
/// Threads run one after another, in the chosen order, each until it waits.
/// What is caught:
///   always         barriers that not all threads reach, or at different
///   places; early returns, warp operations in a branch;
///                  unequal shared allocations; more shared memory than
///                  launched; asynchronous copies that are not aligned, not
///                  into shared memory, or not waited for at the end
///   shuffled order missing barriers and waits, by wrong results: shared memory
///   starts as NaN, a copy's destination is NaN until it is waited for ASan
///   accesses out of bounds, shared memory included (arrays lie between
///   poisoned zones) TSan           data races, lost updates and writes of two
///   blocks to one address included: every fibre is a thread to it
namespace emulator {

/// A mistake of a body, with who waits where.
struct defect : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// In which order the threads of a block run, each until it waits.
struct rank_order {
  enum class rule { forward, backward, shuffled } by = rule::forward;
  std::uint64_t seed = 0;
};
inline constexpr rank_order forward{rank_order::rule::forward};
inline constexpr rank_order backward{rank_order::rule::backward};
constexpr rank_order shuffled(std::uint64_t seed) { return {rank_order::rule::shuffled, seed}; }
/// For messages of tests.
std::string name_of(rank_order order);

struct launch_options {
  int threads = 128;  ///< A block; a multiple of 32 up to 1024.
  int blocks = 1;     ///< Run one after another, in shuffled order where the order
                      ///< is shuffled.
  std::int64_t shared_bytes = 0;
  rank_order order = shuffled(1);
  bool portable_switch = false;  ///< Switch fibres by ucontext, as on processors
                                 ///< without our own switch.
};

/// Which sanitizer this program is linked with.
bool has_address_sanitizer();
bool has_thread_sanitizer();

namespace detail {

struct fibre;
enum class scope : std::uint8_t { warp, block };

/// A place in a body, for messages and to tell barriers apart.
struct place {
  char const* what;
  char const* file;
  int line;
};

/// Runs once when all have arrived: slots[i] is what thread i brought.
using combine = void (*)(void** slots, int count, void* context);

// Defined in emulator.cpp, which no thread sanitizer instruments.
void meet(fibre* self, scope of, place at, void* slot, combine how, void* context, bool orders_memory);
void* shared(fibre* self, std::size_t bytes, place at);
void copy_async(fibre* self, void* to, void const* from);
void commit_async(fibre* self);
void wait_async(fibre* self, int groups_left);
unsigned rank(fibre const* self);
unsigned size(fibre const* self);
unsigned block(fibre const* self);
void launch(launch_options const& options, std::function<void(fibre*)> const& body);

inline constexpr int warp_width = 32;

template <class T, class Combine>
void meet_with(fibre* self, scope of, place at, T& mine, Combine how, bool orders_memory) {
  meet(
      self, of, at, &mine, [](void** slots, int count, void* context) { (*static_cast<Combine*>(context))(reinterpret_cast<T**>(slots), count); }, &how,
      orders_memory);
}

}  // namespace detail

/// 32 lanes. Exchanges do not order memory; sync does.
class warp {
 public:
  static constexpr unsigned width = detail::warp_width;

  explicit warp(detail::fibre* self) : self_(self) {}
  unsigned lane() const { return detail::rank(self_) % width; }
  unsigned index() const { return detail::rank(self_) / width; }
  unsigned count() const { return detail::size(self_) / width; }

  void sync(char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    detail::meet(self_, detail::scope::warp, {"warp.sync", file, line}, nullptr, nullptr, nullptr, true);
  }
  template <class T>
  T shuffle(T x, unsigned from, char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    struct exchange {
      T x;
      unsigned from;
    } mine{x, from};
    detail::meet_with(
        self_, detail::scope::warp, {"warp.shuffle", file, line}, mine,
        [](exchange** of, int count) {
          T brought[width];
          for (int i = 0; i < count; ++i) brought[i] = of[i]->x;
          for (int i = 0; i < count; ++i) {
            if (of[i]->from >= unsigned(count)) throw defect("shuffle from lane " + std::to_string(of[i]->from) + ", which is not there");
            of[i]->x = brought[of[i]->from];
          }
        },
        false);
    return mine.x;
  }
  std::uint32_t ballot(bool p, char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    std::uint32_t mine = p;
    detail::meet_with(
        self_, detail::scope::warp, {"warp.ballot", file, line}, mine,
        [](std::uint32_t** of, int count) {
          std::uint32_t all = 0;
          for (int i = 0; i < count; ++i) all |= *of[i] << i;
          for (int i = 0; i < count; ++i) *of[i] = all;
        },
        false);
    return mine;
  }
  /// Over aligned groups of N lanes, in the butterfly order of the device.
  template <class T, class Op, int N = detail::warp_width>
  T reduce(T x, Op op, cellar::lanes_t<N> = {}, char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    static_assert(N >= 1 && N <= detail::warp_width && (N & (N - 1)) == 0);
    detail::meet_with(
        self_, detail::scope::warp, {"warp.reduce", file, line}, x,
        [op](T** of, int count) {
          for (int distance = N / 2; distance > 0; distance /= 2) {
            T brought[width];
            for (int i = 0; i < count; ++i) brought[i] = *of[i];
            for (int i = 0; i < count; ++i) *of[i] = op(brought[i], brought[i ^ distance]);
          }
        },
        false);
    return x;
  }
  /// In double: what a device rounds differs.
  void multiply_add(float (&d)[4], cellar::f16_pair const (&a)[4], cellar::f16_pair const (&b)[2], char const* file = __builtin_FILE(),
                    int line = __builtin_LINE()) const {
    struct exchange {
      cellar::f16_pair a[4], b[2];
      float d[4];
    } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    detail::meet_with(
        self_, detail::scope::warp, {"warp.multiply_add", file, line}, mine,
        [](exchange** of, int count) {
          if (count != int(width)) throw defect("multiply_add by fewer than 32 lanes");
          double left[16][16], right[16][8];
          for (int lane = 0; lane < 32; ++lane) {
            int const g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; ++i) {
              left[g + i % 2 * 8][2 * t + i / 2 * 8] = double(cellar::to_float(of[lane]->a[i].first));
              left[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = double(cellar::to_float(of[lane]->a[i].second));
            }
            for (int i = 0; i < 2; ++i) {
              right[2 * t + i * 8][g] = double(cellar::to_float(of[lane]->b[i].first));
              right[2 * t + i * 8 + 1][g] = double(cellar::to_float(of[lane]->b[i].second));
            }
          }
          for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
              double sum = double(of[lane]->d[i]);
              for (int k = 0; k < 16; ++k) sum += left[lane / 4 + i / 2 * 8][k] * right[k][2 * (lane % 4) + i % 2];
              of[lane]->d[i] = float(sum);
            }
        },
        false);
    for (int i = 0; i < 4; ++i) d[i] = mine.d[i];
  }

 private:
  detail::fibre* self_;
};

/// One thread's view of its block. Models cellar::team.
class team {
 public:
  explicit team(detail::fibre* self) : self_(self) {}
  unsigned rank() const { return detail::rank(self_); }
  unsigned size() const { return detail::size(self_); }
  unsigned block() const { return detail::block(self_); }
  emulator::warp warp() const { return emulator::warp(self_); }

  void sync(char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    detail::meet(self_, detail::scope::block, {"team.sync", file, line}, nullptr, nullptr, nullptr, true);
  }
  template <class T, class Op>
  T reduce(T x, Op op, char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    detail::meet_with(
        self_, detail::scope::block, {"team.reduce", file, line}, x,
        [op](T** of, int count) {
          T all = *of[0];
          for (int i = 1; i < count; ++i) all = op(all, *of[i]);
          for (int i = 0; i < count; ++i) *of[i] = all;
        },
        true);
    return x;
  }
  template <class T>
  T scan(T x, T& total, char const* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    struct exchange {
      T x, total;
    } mine{x, T{}};
    detail::meet_with(
        self_, detail::scope::block, {"team.scan", file, line}, mine,
        [](exchange** of, int count) {
          T sum{};
          for (int i = 0; i < count; ++i) {
            T const next = sum + of[i]->x;
            of[i]->x = sum;
            sum = next;
          }
          for (int i = 0; i < count; ++i) of[i]->total = sum;
        },
        true);
    total = mine.total;
    return mine.x;
  }
  template <class T>
  T atomic_add(T* p, T x) const {
    return std::atomic_ref<T>(*p).fetch_add(x, std::memory_order_relaxed);
  }
  template <class T>
  T* shared(cellar::i64 n, char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
    static_assert(std::is_trivial_v<T> && alignof(T) <= 16);
    return static_cast<T*>(detail::shared(self_, std::size_t(n) * sizeof(T), {"team.shared", file, line}));
  }
  template <class To, class From>
  void copy_async(To* to, From const* from) const {
    detail::copy_async(self_, to, from);
  }
  void commit_async() const { detail::commit_async(self_); }
  template <int N>
  void wait_async(cellar::lanes_t<N>) const {
    detail::wait_async(self_, N);
  }

 private:
  detail::fibre* self_;
};
static_assert(cellar::team<team>);

/// Runs body(team) on every thread of every block.
///
/// Errors  defect, or what the body throws
template <class Body>
void launch(launch_options const& options, Body const& body) {
  detail::launch(options, [&](detail::fibre* self) {
    team t(self);
    body(t);
  });
}

}  // namespace emulator
