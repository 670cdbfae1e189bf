#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cellar/core/math.hpp"

/// The threads that run one body together. Policy bodies are written once against `team`; `serial_team` is the
/// specification, the emulated block (tests/emulator) and CUDA blocks run the same bodies.
///
/// Laws
///   reduce, scan, shuffle, ballot  are called by every member, in the same order, under no divergent condition
///   reduce                         gives every member the same value; any order of evaluation (floating point may differ by rounding)
///   scan(x, op = plus)             exclusive, in order of rank; `total` is the same on every member
///   sync                           orders memory among members; so do reduce and scan of the team. Warp shuffles and ballots do not: warp().sync() does
///   shared<T>(n)                   the same n on every member, contents undefined, alive until the body ends
///   multiply_add                   of warps of 32, D += A B with A [16, 16] and B [16, 8] in f16 and D [16, 8] in f32, sums in any order. With lane = 4 g + t,
///                                  a lane brings A's rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next one each; B's column g at
///                                  rows 2t and 2t + 8 and the next one each; and has D's rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1
///   copy_async                     16 bytes from global to shared memory, both addresses 16-aligned; visible to the caller after wait_async, to others after a
///   further sync
namespace cellar::inline CELLAR_ABI {

template <int N>
using lanes_t = std::integral_constant<int, N>;
template <int N>
inline constexpr lanes_t<N> lanes{};

/// Lanes in step. Width 1 (host) or 32.
template <class W>
concept warp = requires(W w, float x, bool p, unsigned lane) {
  { W::width } -> std::convertible_to<unsigned>;
  { w.lane() } -> std::same_as<unsigned>;
  { w.index() } -> std::same_as<unsigned>;
  { w.count() } -> std::same_as<unsigned>;
  { w.shuffle(x, lane) } -> std::same_as<float>;
  { w.ballot(p) } -> std::same_as<std::uint32_t>;
  { w.reduce(x, plus{}) } -> std::same_as<float>;
  w.sync();
};

/// Two numbers as a matrix instruction takes them: the first in the low half.
struct f16_pair {
  f16 first, second;
};

template <class T>
concept team = requires(T& t, float x, std::uint32_t u, float& total, std::uint32_t* counter, float* to, float const* from) {
  { t.rank() } -> std::same_as<unsigned>;
  { t.size() } -> std::same_as<unsigned>;
  { t.reduce(x, plus{}) } -> std::same_as<float>;
  { t.scan(x, total) } -> std::same_as<float>;
  { t.atomic_add(counter, u) } -> std::same_as<std::uint32_t>;
  { t.warp() } -> warp;
  { t.template shared<float>(i64{1}) } -> std::same_as<float*>;
  t.copy_async(to, from);
  t.commit_async();
  t.wait_async(lanes<0>);
  t.sync();
};

/// Shared scratch for a body: the same n on every member.
template <class T, team Team>
CELLAR_HD T* shared_array(Team& t, i64 n) {
  return t.template shared<T>(n);
}

/// A warp of one lane.
struct serial_warp {
  static constexpr unsigned width = 1;
  CELLAR_HD unsigned lane() const { return 0; }
  CELLAR_HD unsigned index() const { return 0; }
  CELLAR_HD unsigned count() const { return 1; }
  CELLAR_HD void sync() const {}
  template <class T>
  CELLAR_HD T shuffle(T x, unsigned) const {
    return x;
  }
  CELLAR_HD std::uint32_t ballot(bool p) const { return p; }
  template <class T, class Op, int N = 1>
  CELLAR_HD T reduce(T x, Op, lanes_t<N> = {}) const {
    return x;
  }
};

struct vector_kernels;

/// A team of one, on the host: the specification of every body.
///
/// `scratch` is the caller's memory for shared(); a body states what it needs. It may be null for bodies that share nothing. `kernels` run the inner loops
/// (core/vector.hpp); null: their generic bodies do.
class serial_team {
 public:
  serial_team() = default;
  CELLAR_HD serial_team(std::byte* scratch, i64 bytes, vector_kernels const* kernels = nullptr) : scratch_(scratch), bytes_(bytes), kernels_(kernels) {}

  CELLAR_HD vector_kernels const* kernels() const { return kernels_; }

  CELLAR_HD unsigned rank() const { return 0; }
  CELLAR_HD unsigned size() const { return 1; }
  CELLAR_HD void sync() const {}
  CELLAR_HD serial_warp warp() const { return {}; }
  template <class T, class Op>
  CELLAR_HD T reduce(T x, Op) const {
    return x;
  }
  template <class T>
  CELLAR_HD T scan(T x, T& total) const {
    total = x;
    return T{};
  }
  template <class T>
  CELLAR_HD T atomic_add(T* p, T x) const {
    T const old = *p;
    *p = old + x;
    return old;
  }
  template <class T>
  CELLAR_HD T* shared(i64 n) {
    static_assert(std::is_trivial_v<T>);
    used_ = round_up(used_, 16);
    T* const p = reinterpret_cast<T*>(scratch_ + used_);
    used_ += n * i64(sizeof(T));
    if (used_ > bytes_) trap();  // a body that asks for more than its stated scratch is a defect of the library
    return p;
  }
  template <class To, class From>
  CELLAR_HD void copy_async(To* to, From const* from) const {
    __builtin_memcpy(to, from, 16);
  }
  CELLAR_HD void commit_async() const {}
  template <int N>
  CELLAR_HD void wait_async(lanes_t<N>) const {}

 private:
  std::byte* scratch_ = nullptr;
  i64 bytes_ = 0, used_ = 0;
  vector_kernels const* kernels_ = nullptr;
};
static_assert(team<serial_team>);

}  // namespace cellar
