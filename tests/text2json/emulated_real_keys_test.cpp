#include "emulator/executor.hpp"
#include "text2json/real_keys_on_device.hpp"

TEST_CASE("under emulated blocks as on the host: every scheme on smollm's keys") {
  real_keys_on_device::check(emulator::device<>(), "CELLAR_TEST_MODEL_SMOLLM", 300);
}

TEST_CASE("under emulated blocks as on the host: every scheme on qwen's keys") {
  real_keys_on_device::check(emulator::device<>(), "CELLAR_TEST_MODEL_QWEN", 300);
}
