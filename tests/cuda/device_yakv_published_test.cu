#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: yakv_published") {
  test_device::run([](auto const& on) { families::yakv_published(on); });
}
