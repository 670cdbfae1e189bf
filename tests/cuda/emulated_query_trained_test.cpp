#include "cuda/families.hpp"
#include "emulator/executor.hpp"

TEST_CASE("under emulated blocks as on the host: summaries that learn from queries") { families::query_trained(emulator::device<>()); }
