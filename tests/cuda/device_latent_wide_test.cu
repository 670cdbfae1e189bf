#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: latent attention in 576 and 512 channels") {
  test_device::run([](auto const& on) { families::latent_wide(on); });
}
