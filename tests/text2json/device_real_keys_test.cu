#include "cuda/device.cuh"
#include "text2json/real_keys_on_device.hpp"

TEST_CASE("on a device as on the host: every scheme on smollm's keys") {
  test_device::run([](auto const& on) { real_keys_on_device::check(on, "CELLAR_TEST_MODEL_SMOLLM", 3000); });
}

TEST_CASE("on a device as on the host: every scheme on qwen's keys") {
  test_device::run([](auto const& on) { real_keys_on_device::check(on, "CELLAR_TEST_MODEL_QWEN", 3000); });
}

TEST_CASE("on a device as on the host: methods of other papers on smollm's keys") {
  test_device::run([](auto const& on) { real_keys_on_device::check_methods(on, "CELLAR_TEST_MODEL_SMOLLM", 3000); });
}
