#include "cuda/snapshots.hpp"
#include "emulator/executor.hpp"

TEST_CASE("a sequence that the host saved goes on on a device, and is saved there byte for byte, and the other way round") {
  snapshots::check_all(emulator::device<>());
}
