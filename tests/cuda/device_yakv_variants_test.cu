#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: yakv_variants") {
  test_device::run([](auto const& on) { families::yakv_variants(on); });
}
