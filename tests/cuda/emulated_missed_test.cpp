#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: what was missed, and selections by it") { families::missed(emulator::device<>()); }
