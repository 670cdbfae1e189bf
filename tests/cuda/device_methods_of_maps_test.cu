#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: methods of maps") {
  test_device::run([](auto const& on) { families::methods_of_maps(on); });
}
