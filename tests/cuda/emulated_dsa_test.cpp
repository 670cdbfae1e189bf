#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: sparse attention by a model's own indexer") { families::dsa(emulator::device<>()); }
