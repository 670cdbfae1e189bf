#include "cuda/device.cuh"
#include "cuda/snapshots.hpp"

TEST_CASE("a sequence that the host saved goes on on a device, and is saved there byte for byte, and the other way round") {
  test_device::run([](auto const& on) { snapshots::check_all(on); });
}
