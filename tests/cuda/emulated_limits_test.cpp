#include "cuda/families.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

TEST_CASE("a cache whose steps no grid of a device holds is refused") {
  using scheme_type = scheme::quest<16, float>;
  using device_cache = cache<scheme_type, emulator::device<>>;
  emulator::device<> const on;
  model_shape const shape{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = 16};
  CHECK_THROWS_WITH(device_cache(on, shape, {.sequences = 65536, .tokens = 16}), contains("lower step_sequences"));
  CHECK_THROWS_WITH(device_cache(on, shape, {.sequences = 1, .tokens = i64{1} << 20, .step_tokens = 43691}), contains("step_tokens"));  // 32769 * 2 of 65535
  CHECK_THROWS_AS(device_cache(on, shape, {.sequences = 1, .tokens = i64{1} << 20, .step_tokens = i64{1} << 40}), precondition_error);
  CHECK_NOTHROW(device_cache(on, shape, {.sequences = 70000, .tokens = 16, .step_sequences = 2, .far_tokens = 64}));  // sequences of a step are what counts
}
