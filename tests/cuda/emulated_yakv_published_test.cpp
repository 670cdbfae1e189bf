#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: yakv_published") { families::yakv_published(emulator::device<>()); }
