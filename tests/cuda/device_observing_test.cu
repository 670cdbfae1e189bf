#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: schemes that observe attention") {
  test_device::run([](auto const& on) { families::observing(on); });
}
