#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: methods of maps") { families::methods_of_maps(emulator::device<>()); }
