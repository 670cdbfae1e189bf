// What only a device shows: a captured step replayed with other lengths, tables and selections; nothing allocated and nothing waited for while decoding.
#include "cuda/against_host.hpp"
#include "cuda/device.cuh"

using namespace cellar;

namespace {

struct sealing : scheme::yakv<64> {  // blocks seal while decoding
  static constexpr bool keeps_generated = false;
};

struct overlapped : sealing {
  static constexpr bool is_reproducible = false;
};
struct ahead : scheme::quest<64> {  // selects for the next step on a second stream, which the capture forks and joins
  using reuse = cellar::select::reuse_ids<1, 2>;
};

/// Counts what a cache asks of memory.
struct counting_resource {
  i64 allocations = 0;
  cuda::memory_resource resource() {
    return {this,
            [](void* self, std::size_t bytes) -> void* {
              ++static_cast<counting_resource*>(self)->allocations;
              void* p = nullptr;
              return cudaMalloc(&p, bytes) == cudaSuccess ? p : nullptr;
            },
            [](void*, void* p) { static_cast<void>(cudaFree(p)); }};
  }
};

template <class Scheme>
void check_replay(cuda::executor const& plain) {
  constexpr int D = Scheme::head_dim, layers = 2, kv_heads = 2, query_heads = 6;
  counting_resource counter;
  cuda::executor const on(plain.stream(), counter.resource());
  model_shape const shape{.layers = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = D};
  limits const l{.sequences = 3, .tokens = 700, .step_tokens = 2, .step_sequences = 2};
  budget b = Scheme::published;
  b.tokens = 64;
  b.window = 20;
  b.dense_layers = 0;
  cache<Scheme, cuda::executor> eager(on, shape, l, b), replayed(on, shape, l, b);
  random_numbers random(5);
  i64 const tokens = 300;
  std::vector<sequence_id> ids;
  for (int s = 0; s < 3; ++s) {
    auto k = on.upload(against_host::rounded<bf16>(random.normals(layers * tokens * kv_heads * D)));
    auto v = on.upload(against_host::rounded<bf16>(random.normals(layers * tokens * kv_heads * D)));
    for (auto* const c : {&eager, &replayed}) {
      auto const id = c->begin_prompt(prompt_staging<bf16>{k.data(), v.data(), tokens, tokens});
      c->finish_prompt(on, id);
      if (c == &eager) ids.push_back(id);
    }
  }
  i64 const rows = 4;  // capacity of a step
  auto k = on.allocate<bf16>(layers * rows * kv_heads * D), v = on.allocate<bf16>(layers * rows * kv_heads * D);
  auto q = on.allocate<bf16>(layers * rows * query_heads * D);
  auto out = on.allocate<bf16>(layers * rows * query_heads * D), out_replayed = on.allocate<bf16>(layers * rows * query_heads * D);
  auto const refill = [&](auto& x) {
    auto const y = against_host::rounded<bf16>(random.normals(i64(x.size())));
    on.upload(x.data(), y.data(), i64(y.size() * sizeof(bf16)));
  };
  cudaStream_t second{};
  cuda::check(cudaStreamCreate(&second), "cudaStreamCreate");
  cuda::executor const side = on.on_stream(second);
  cuda::completion attended, selected;
  auto const step = [&](cache<Scheme, cuda::executor>& c, auto& to) {
    for (int layer = 0; layer < layers; ++layer) {
      auto const view = [&](auto& x, int heads) { return packed_heads(x.data() + i64{layer} * rows * heads * D, rows, heads, D); };
      c.append(on, layer, view(k, kv_heads), view(v, kv_heads));
      c.template attend<bf16>(on, layer, view(q, query_heads), view(to, query_heads));
      if constexpr (operation::keeps_selections<Scheme>) {
        attended.record(on), attended.wait(side);
        c.select(side, layer, view(q, query_heads));
        selected.record(side), selected.wait(on);
      }
    }
  };
  cudaGraph_t graph{};
  cudaGraphExec_t run{};
  i64 const before = counter.allocations;
  for (int i = 0; i < 40; ++i) {
    refill(k), refill(v), refill(q);
    std::vector<batch_entry> const batch = i % 3 == 0   ? std::vector<batch_entry>{{ids[0], 1}, {ids[1], 2}}
                                           : i % 3 == 1 ? std::vector<batch_entry>{{ids[2], 2}}
                                                        : std::vector<batch_entry>{{ids[1], 1}, {ids[0], 1}};
    row_view<batch_entry const> const view{batch.data(), i64(batch.size())};
    eager.plan(on, view);
    replayed.plan(on, view);
    step(eager, out);
    if (i == 0) {
      cuda::check(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeGlobal), "capture");  // which refuses whatever synchronizes or allocates
      step(replayed, out_replayed);
      cuda::check(cudaStreamEndCapture(on.stream(), &graph), "capture");
      cuda::check(cudaGraphInstantiate(&run, graph, 0), "instantiate");
    } else {
      replayed.complete();
    }
    cuda::check(cudaGraphLaunch(run, on.stream()), "replay");
    i64 used = 0;
    for (auto const& e : batch) used += e.new_tokens;
    for (int layer = 0; layer < layers; ++layer) {
      std::vector<bf16> a(std::size_t(used * query_heads * D)), c(a.size());
      on.download(a.data(), out.data() + i64{layer} * rows * query_heads * D, i64(a.size() * sizeof(bf16)));
      on.download(c.data(), out_replayed.data() + i64{layer} * rows * query_heads * D, i64(c.size() * sizeof(bf16)));
      if (Scheme::is_reproducible) REQUIRE(std::memcmp(a.data(), c.data(), a.size() * sizeof(bf16)) == 0);
      for (std::size_t row = 0; row < a.size(); row += D) REQUIRE(against_host::error_of(a.data() + row, c.data() + row, D) < 4e-3);
    }
  }
  CHECK(counter.allocations == before);
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(second);
}

}  // namespace

TEST_CASE("a step captured once and replayed, with other lengths, tables and ids, gives the bits of eager steps, and decoding allocates nothing") {
  test_device::run([](auto const& on) {
    check_replay<scheme::yakv<64>>(on);
    check_replay<sealing>(on);
    check_replay<scheme::quest<64>>(on);
    check_replay<overlapped>(on);
    check_replay<ahead>(on);
  });
}
