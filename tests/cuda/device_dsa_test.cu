#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: sparse attention by a model's own indexer") {
  test_device::run([](auto const& on) { families::dsa(on); });
}
