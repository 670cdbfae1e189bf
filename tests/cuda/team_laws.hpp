#pragma once
#include <cstdint>
#include <numeric>
#include <vector>

#include "catch.hpp"
#include "cellar/cuda/append.hpp"
#include "cellar/cuda/device.hpp"

/// The laws of a team and of its warps (core/team.hpp), on whatever device runs them.
namespace team_laws {

using namespace cellar;

/// Every member writes what each operation gave it, [operation][member].
struct all_operations {
  static constexpr int operations = 12;
  float* out;
  float const* numbers;  // 0, 1, ..., in device memory

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place at) const {
    int const n = int(t.size()), me = int(t.rank());
    auto const write = [&](int operation, float x) { out[(i64{at.x} * operations + operation) * n + me] = x; };
    auto const w = t.warp();
    write(0, t.reduce(float(me % 7), plus{}));
    write(1, t.reduce(float((me * 37) % n), maximum{}));
    float total = 0;
    write(2, t.scan(float(me % 5), total));
    write(3, total);
    write(4, w.shuffle(float(me), (w.lane() + 5) % w.width));
    write(5, float(popcount(w.ballot(me % 3 == 0))));
    write(6, w.reduce(float(w.lane()), plus{}));
    write(7, w.reduce(float(w.lane()), plus{}, lanes<8>));
    float* const shared = shared_array<float>(t, n);
    auto* const counter = shared_array<std::uint32_t>(t, 1);
    if (me == 0) *counter = 0;
    shared[n - 1 - me] = float(me);
    t.sync();
    t.atomic_add(counter, std::uint32_t(me % 4));
    write(8, shared[me]);
    t.sync();
    write(9, float(*counter));
    float* const to = shared_array<float>(t, 4 * n);
    t.copy_async(to + 4 * me, numbers + 4 * ((me + 1) % n));
    t.commit_async();
    t.wait_async(lanes<0>);
    write(10, to[4 * me + 3]);
    // D = A B with A[i][k] = i - k, B[k][j] = k * j: small integers, exact in f16.
    unsigned const g = w.lane() / 4, pair = w.lane() % 4;
    f16_pair a[4], b[2];
    for (unsigned i = 0; i < 4; ++i) {
      int const row = int(g + i % 2 * 8), k = int(2 * pair + i / 2 * 8);
      a[i] = {from_float<f16>(float(row - k)), from_float<f16>(float(row - k - 1))};
    }
    for (unsigned i = 0; i < 2; ++i) {
      int const k = int(2 * pair + i * 8), column = int(g);
      b[i] = {from_float<f16>(float(k * column)), from_float<f16>(float((k + 1) * column))};
    }
    float d[4] = {1, 2, 3, 4};
    w.multiply_add(d, a, b);
    write(11, d[0] + 1e3f * d[1] + 1e5f * (d[2] - d[3]));
  }
};

template <int Threads, class Device>
void check(Device const& on) {
  int const n = Threads;
  i64 const blocks = 3, all = blocks * all_operations::operations * n;
  auto device_out = on.template allocate<float>(all);
  std::vector<float> numbers(static_cast<std::size_t>(4 * n));
  std::iota(numbers.begin(), numbers.end(), 0.0f);
  auto const device_numbers = on.upload(std::move(numbers));
  on.template launch<Threads>({blocks}, 64 + 5 * 4 * n + 256, all_operations{device_out.data(), device_numbers.data()});
  std::vector<float> out(static_cast<std::size_t>(all));
  on.download(out.data(), device_out.data(), all * i64(sizeof(float)));
  float sum7 = 0, sum5 = 0, sum4 = 0;
  for (int i = 0; i < n; ++i) sum7 += float(i % 7), sum5 += float(i % 5), sum4 += float(i % 4);
  for (i64 block = 0; block < blocks; ++block) {
    float before = 0;
    for (int i = 0; i < n; ++i) {
      auto const got = [&](int operation) { return out[std::size_t((block * all_operations::operations + operation) * n + i)]; };
      int const lane = i % 32, warp = i - lane;
      int multiples = 0;
      for (int j = warp; j < warp + 32; ++j) multiples += j % 3 == 0;
      INFO("block " << block << ", member " << i << " of " << n);
      REQUIRE(got(0) == sum7);
      REQUIRE(got(1) == float(n - 1));
      REQUIRE(got(2) == before);
      REQUIRE(got(3) == sum5);
      REQUIRE(got(4) == float(warp + (lane + 5) % 32));
      REQUIRE(got(5) == float(multiples));
      REQUIRE(got(6) == 496.0f);
      REQUIRE(got(7) == float(lane / 8 * 64 + 28));
      REQUIRE(got(8) == float(n - 1 - i));
      REQUIRE(got(9) == sum4);
      REQUIRE(got(10) == float(4 * ((i + 1) % n) + 3));
      float d[4];
      for (int e = 0; e < 4; ++e) {
        int const row = lane / 4 + e / 2 * 8, column = 2 * (lane % 4) + e % 2;
        d[e] = float(e + 1);
        for (int k = 0; k < 16; ++k) d[e] += float((row - k) * k * column);
      }
      REQUIRE(got(11) == d[0] + 1e3f * d[1] + 1e5f * (d[2] - d[3]));
      before += float(i % 5);
    }
  }
}

}  // namespace team_laws
