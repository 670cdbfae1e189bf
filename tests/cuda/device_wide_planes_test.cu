#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: wide, more planes") {
  test_device::run([](auto const& on) { families::wide_planes(on); });
}
