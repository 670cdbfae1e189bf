#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: head_dims") {
  test_device::run([](auto const& on) { families::head_dims(on); });
}
