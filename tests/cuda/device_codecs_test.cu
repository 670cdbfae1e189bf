#include "cuda/codec_laws.hpp"
#include "cuda/device.cuh"

TEST_CASE("codecs on a device as on the host, at any address") {
  test_device::run([](auto const& on) { codec_laws::all(on); });
}
