#include "cuda/codec_laws.hpp"
#include "emulator/executor.hpp"

TEST_CASE("codecs under emulated blocks as on the host, at any address") { codec_laws::all(emulator::device<>()); }
