#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: clusters") { families::clusters(emulator::device<>()); }
