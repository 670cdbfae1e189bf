#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: latent attention in 576 and 512 channels") { families::latent_wide(emulator::device<>()); }
