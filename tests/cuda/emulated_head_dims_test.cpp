#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: head_dims") { families::head_dims(emulator::device<>()); }
