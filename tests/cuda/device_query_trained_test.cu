#include "cuda/device.cuh"
#include "cuda/families.hpp"

TEST_CASE("on a device as on the host: summaries that learn from queries") {
  test_device::run([](auto const& on) { families::query_trained(on); });
}
