#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: latent attention under other policies") {
  test_device::run([](auto const& on) { families::latent_compositions(on); });
}
