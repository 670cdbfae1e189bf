#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: wide, more planes") { families::wide_planes(emulator::device<>()); }
