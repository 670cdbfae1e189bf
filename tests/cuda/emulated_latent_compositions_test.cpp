#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: latent attention under other policies") { families::latent_compositions(emulator::device<>()); }
