#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: schemes that observe attention") { families::observing(emulator::device<>()); }
