#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: blocks") {
  test_device::run([](auto const& on) { families::blocks(on); });
}
