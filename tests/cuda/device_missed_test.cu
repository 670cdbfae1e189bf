#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: what was missed, and selections by it") {
  test_device::run([](auto const& on) { families::missed(on); });
}
