#include "cuda/device.cuh"
#include "cuda/team_laws.hpp"

TEST_CASE("a block of a device obeys the laws of teams") {
  test_device::run([](auto const& on) {
    team_laws::check<32>(on);
    team_laws::check<128>(on);
    team_laws::check<1024>(on);
  });
}
