#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: summaries of two levels") { families::levels(emulator::device<>()); }
