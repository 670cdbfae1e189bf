#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: summaries of two levels") {
  test_device::run([](auto const& on) { families::levels(on); });
}
