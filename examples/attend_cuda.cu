// A complete integration on a GPU: prompts from an engine's device memory, then decoding by one captured graph, whose replays serve growing sequences.
//
//   nvcc -std=c++20 -O2 -arch=native -I include examples/attend_cuda.cu -o attend_cuda && ./attend_cuda
#include <cstdio>
#include <random>

#include "cellar/cellar.cuh"

namespace {

constexpr int layers = 4, query_heads = 32, kv_heads = 8, head_dim = 128;
constexpr cellar::i64 prompt_tokens = 8192, steps = 32;

using cellar::bf16;
using cellar::cuda::check;

/// What an engine's projections would have left on the device.
cellar::cuda::device_buffer<bf16> activations(cellar::cuda::executor const& on, cellar::i64 rows, int heads) {
  static std::minstd_rand engine(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> x(std::size_t(rows * heads * head_dim));
  for (bf16& y : x) y = cellar::from_float<bf16>(normal(engine));
  return on.upload(std::move(x));
}

int run() {
  cudaStream_t stream{};  // the engine's
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cellar::cuda::executor const on(stream);

  // Keys and values in 4 bits a channel in pinned host memory, 2-bit landmarks on the device. The near pools keep what steps select.
  using scheme = cellar::scheme::yakv<head_dim>;
  cellar::model_shape const shape{.layers = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim};
  cellar::limits const limits{.sequences = 1, .tokens = prompt_tokens + 512, .generated_tokens = 512};
  cellar::cache<scheme, cellar::cuda::executor> cache(on, shape, limits);

  // The prompt: exact keys and values lie in the engine's memory until they are sealed; its own prefill attends to them.
  cellar::sequence_id id;
  {
    auto keys = activations(on, layers * prompt_tokens, kv_heads), values = activations(on, layers * prompt_tokens, kv_heads);
    id = cache.begin_prompt(cellar::prompt_staging<bf16>{keys.data(), values.data(), prompt_tokens, prompt_tokens});
    cache.finish_prompt(on, id);
  }

  // One step: the engine's projections would stand between these calls.
  auto keys = activations(on, layers, kv_heads), values = activations(on, layers, kv_heads), queries = activations(on, layers, query_heads);
  auto outputs = on.allocate<bf16>(layers * query_heads * head_dim);
  auto const step = [&] {
    for (int layer = 0; layer < layers; ++layer) {
      auto const row = [&](auto& x, int heads) { return cellar::packed_heads(x.data() + layer * heads * head_dim, 1, heads, head_dim); };
      cache.append(on, layer, row(keys, kv_heads), row(values, kv_heads));
      cache.attend<bf16>(on, layer, row(queries, query_heads), row(outputs, query_heads));
    }
  };
  cellar::batch_entry const batch[] = {{id, 1}};
  cellar::row_view<cellar::batch_entry const> const entries{batch, 1};

  // Captured once: plan does the host's part outside, and kernels read lengths, tables and ids from device memory.
  cudaGraph_t graph{};
  cudaGraphExec_t replay{};
  cache.plan(on, entries);
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  step();
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
  for (cellar::i64 i = 1; i < steps; ++i) {
    cache.plan(on, entries);
    check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    cache.complete();
  }
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

  auto const [hits, misses] = cache.pool_hits_and_misses(on);
  auto const used = cache.usage(id);
  std::printf("%lld tokens; of a layer, bytes near %lld, far %lld; %lld of %lld selected runs were near already\n", static_cast<long long>(cache.length(id)),
              static_cast<long long>(used.summary + used.always_near + used.generated), static_cast<long long>(used.far), static_cast<long long>(hits),
              static_cast<long long>(hits + misses));
  check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return 0;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("SKIPPED: there is no CUDA device");
    return 0;
  }
  return run();
}
