#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: yakv_variants") { families::yakv_variants(emulator::device<>()); }
