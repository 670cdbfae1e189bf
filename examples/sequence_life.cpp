// The life of a sequence in a model of global and windowed layers: one cache for the layers of each kind. Prompt, decoding, rejected speculation, a fork
// that shares the prefix, a snapshot and its restoration. The far blocks of the global layers lie in a file, behind a pool.
#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "problem.hpp"

using cellar::i64;

struct global_layers : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 1;
  static constexpr cellar::budget published{.share = 0.25, .sinks = 4, .window = 32};
  using summary = cellar::summary::mean<>;
  using select = cellar::select::top_k;
  using tier = cellar::tier::file;
};

/// Queries see the last 128 tokens. The ring holds as many more as speculation may take back, since what has left it is never read again.
struct windowed_layers : cellar::scheme_defaults<64> {
  static constexpr cellar::budget published{.window = 128 + 8};
  using select = cellar::select::none;
  using attention = cellar::attention::sliding_window<128>;
};

/// The layers of one kind: their cache, and the outputs of all steps, (step, query head, channel).
template <class Scheme>
struct layer_group {
  problem const& p;
  cellar::host::executor on;
  std::string snapshot;
  cellar::cache<Scheme> cache;
  std::vector<float> out = std::vector<float>(p.queries.size());

  layer_group(problem const& problem, cellar::host::executor const& executor, std::string const& folder,
              cellar::tier_options_of<typename Scheme::tier> const& tier)
      : p(problem),
        on(executor),
        snapshot(folder + "/" + (std::is_same_v<Scheme, global_layers> ? "global" : "windowed")),
        cache(on, p.shape, {.sequences = 2, .tokens = p.prompt + p.steps, .step_tokens = 4, .pool_runs = 1000}, Scheme::published, tier) {}

  cellar::sequence_id prompt() {
    auto keys = p.keys, values = p.values;  // the engine's staging memory, free again after finish_prompt
    auto const id = cache.begin_prompt(cellar::prompt_staging<float>{keys.data(), values.data(), p.prompt, p.prompt});
    cache.finish_prompt(on, id);
    return id;
  }
  /// Tokens [first, first + n) after the prompt, in one step.
  void step(cellar::sequence_id id, i64 first, i64 n, std::vector<float> const& keys) {
    int const d = p.shape.head_dim, heads = p.shape.query_heads, kv_heads = p.shape.kv_heads;
    cellar::batch_entry const batch[]{{id, n}};
    cache.plan(on, {batch, 1});
    for (int layer = 0; layer < p.shape.layers; ++layer) {
      cache.append(on, layer, cellar::packed_heads(keys.data() + (p.prompt + first) * kv_heads * d, n, kv_heads, d),
                   cellar::packed_heads(p.values.data() + (p.prompt + first) * kv_heads * d, n, kv_heads, d));
      cache.attend(on, layer, cellar::packed_heads(p.queries.data() + first * heads * d, n, heads, d),
                   cellar::packed_heads(out.data() + first * heads * d, n, heads, d));
    }
  }
  /// Whether a second sequence gives what the first gave, bit for bit.
  bool repeats(cellar::sequence_id id, i64 first) {
    auto const before = out;
    for (i64 i = first; i < p.steps; ++i) step(id, i, 1, p.keys);
    return out == before;
  }

  bool live() {
    auto const id = prompt();
    for (i64 i = 0; i < 10; ++i) step(id, i, 1, p.keys);
    auto drafted = p.keys;  // four tokens at once, of which the model keeps the first
    for (i64 i = (p.prompt + 11) * 128; i < (p.prompt + 14) * 128; ++i) drafted[std::size_t(i)] *= -1;
    step(id, 10, 4, drafted);
    cache.truncate(on, id, p.prompt + 11);
    for (i64 i = 11; i < 20; ++i) step(id, i, 1, p.keys);

    auto const other = cache.fork(on, id);
    cache.save(on, id, snapshot);
    for (i64 i = 20; i < p.steps; ++i) step(id, i, 1, p.keys);
    cache.free(id);
    bool const forks = repeats(other, 20);
    return repeats(cache.restore(on, snapshot), 20) && forks;
  }
};

int main() {
  problem const p = random_problem(3, 1010);
  std::string folder = std::filesystem::temp_directory_path() / ("cellar_" + std::string(6, 'X'));
  if (!mkdtemp(folder.data())) return 2;
  cellar::host::thread_pool pool(2);
  cellar::host::executor const on(pool);
  bool lived = true;
  double global_error = 1, windowed_error = 1;
  try {
    layer_group<global_layers> global(p, on, folder, {.path = folder + "/far"});
    layer_group<windowed_layers> windowed(p, on, folder, {});
    lived = global.live() && windowed.live();
    global_error = relative_error(global.out, exact(p));
    windowed_error = relative_error(windowed.out, exact(p, [](double x, i64 q, i64 k) { return q - k < 128 ? x : -INFINITY; }));
  } catch (std::exception const& e) {  // cellar::precondition_error, cellar::io_error
    std::printf("%s\n", e.what());
  }
  std::filesystem::remove_all(folder);
  std::printf("fork and restored sequence as the first: %s\nrelative error of global layers %.4f, of windowed layers %.4f\n", lived ? "yes" : "no",
              global_error, windowed_error);
  return lived && global_error < 0.15 && windowed_error < 0.01 ? 0 : 1;
}
