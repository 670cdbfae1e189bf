// The operations face: an engine that owns all memory, block tables and threads, and calls Cellar's functions on them. The cache (compose_scheme.cpp) does
// this bookkeeping for those who have none; here it is in full: sizes, pages, a prompt, decoding, sealing.
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <thread>

#include "problem.hpp"

using cellar::i64;

/// The engine's threads as it has them: jobs in a queue. The two members at the end are all that Cellar asks for.
class engine_threads {
 public:
  explicit engine_threads(int n) {
    for (int worker = 0; worker < n; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  ~engine_threads() {
    {
      std::lock_guard const lock(mutex_);
      stops_ = true;
    }
    changed_.notify_all();
    for (auto& t : threads_) t.join();
  }

  int workers() const { return int(threads_.size()); }
  template <class F>
  void run(i64 items, F&& f) {  // f(item, worker) for every item; returns when all have returned
    std::unique_lock lock(mutex_);
    job_ = std::ref(f);
    next_ = 0;
    items_ = left_ = items;
    changed_.notify_all();
    done_.wait(lock, [&] { return left_ == 0; });
  }

 private:
  void serve(int worker) {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stops_ || next_ < items_; });
      if (stops_) return;
      i64 const item = next_++;
      lock.unlock();
      job_(item, worker);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_, done_;
  std::function<void(i64, int)> job_;
  i64 next_ = 0, items_ = 0, left_ = 0;
  bool stops_ = false;
  std::vector<std::thread> threads_;
};
static_assert(cellar::host::thread_pool_like<engine_threads>);

/// A landmark for every four tokens; keys in eight bits, far.
struct scheme : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 4;
  using summary = cellar::summary::mean<>;
  using select = cellar::select::top_k;
  using key_codec = cellar::codec::int8<>;
};
using map_type = cellar::memory_map<scheme>;

/// One layer's memory, as the engine allocates it: pages for all sequences, and a slot of near memory for each.
struct layer_arena {
  std::vector<std::byte> far, summaries, near, state;

  layer_arena(map_type const& map, scheme::layout const& layout, i64 pages, i64 slots)
      : far(std::size_t(layout.bytes())),
        summaries(std::size_t(pages * map.summary_page())),
        near(std::size_t(slots * map.near_sequence())),
        state(std::size_t(slots * map.state_sequence())) {}
};

int main() {
  problem p = random_problem(3);
  for (std::size_t i = 0; i < p.keys.size(); ++i)  // four tokens in a row have keys alike
    if (std::size_t const in_four = i % 512; in_four >= 128) p.keys[i] = p.keys[i - in_four + i % 128] + 0.2f * p.keys[i];
  int const layers = 2;  // both see the same keys and values here
  cellar::model_shape shape = p.shape;
  shape.layers = layers;
  int const d = shape.head_dim;
  engine_threads threads(3);
  cellar::host::executor const on(threads);

  // Sizes, once. The ring of near memory holds the window, a block that has not left it, and a step's tokens.
  cellar::budget const budget{.share = 0.25, .sinks = 4, .window = 32};
  cellar::limits const limits{.sequences = 1, .tokens = p.prompt + p.steps};
  map_type const map{shape, budget.sinks, budget.window + scheme::block_tokens - 1 + limits.step_tokens};
  i64 const pages = cellar::ceil_div(limits.tokens, map_type::page_tokens);
  scheme::layout const layout{map.geometry(), pages * map_type::page_blocks};
  auto const sizes = cellar::operation::workspace_for<scheme>(shape, limits, budget);
  std::vector<std::byte> workspace(std::size_t(cellar::operation::workspace_bytes<scheme>(shape, limits, budget, on.workers()) + 64));
  auto* const scratch = reinterpret_cast<std::byte*>(cellar::round_up(reinterpret_cast<i64>(workspace.data()), 64));
  std::vector<cellar::logical_block> ids(std::size_t(shape.kv_heads * sizes.selected));  // [sequences, kv_heads, selected]
  std::vector<i64> counts(std::size_t(shape.kv_heads));                                  // [sequences, kv_heads]
  std::vector<layer_arena> arenas(std::size_t(layers), layer_arena(map, layout, pages, limits.sequences));
  auto const memory = [&](int layer) {
    layer_arena& a = arenas[std::size_t(layer)];
    return cellar::layer_memory<scheme>{layout, a.far.data(), a.summaries.data(), a.near.data(), a.state.data()};
  };

  // The engine's block table for this sequence: physical pages in any order, named only once they are needed.
  std::vector<cellar::page_id> table;
  auto const grow_table = [&](i64 sealed) {
    while (i64(table.size()) * map_type::page_blocks < sealed) table.push_back(cellar::page_id(pages - 1 - i64(table.size())));
    return cellar::row_view<cellar::page_id const>{table.data(), i64(table.size())};
  };
  // Whole blocks between sinks and window.
  auto const sealed_of = [&](i64 length) { return std::max<i64>(0, length - budget.sinks - budget.window) / scheme::block_tokens; };

  // The prompt: exact keys and values of all layers become summaries and codes.
  i64 length = p.prompt, sealed = sealed_of(length);
  std::vector<cellar::prompt_layer<scheme>> prompt;
  prompt.reserve(std::size_t(layers));
  for (int layer = 0; layer < layers; ++layer)
    prompt.push_back(
        {memory(layer), cellar::packed_heads(p.keys.data(), length, shape.kv_heads, d), cellar::packed_heads(p.values.data(), length, shape.kv_heads, d)});
  std::vector<float> learning(std::size_t(on.workers() * cellar::operation::prompt_scratch_floats<scheme>(shape, length, cellar::scalar_type::f32)));
  cellar::host::seal_prompt<scheme>(on, map, {prompt.data(), layers}, {.pages = grow_table(sealed), .sealed = sealed, .length = length},
                                    {learning.data(), i64(learning.size())});

  // Decoding: one step for each token, every layer in turn. A batch has a sequence_step for each sequence, of its own slot and first_row.
  std::vector<float> out(p.queries.size());
  for (i64 i = 0; i < p.steps; ++i) {
    i64 const sealed_before = sealed;
    sealed = sealed_of(++length);
    cellar::sequence_step step{.pages = grow_table(sealed), .sealed_before = sealed_before, .sealed = sealed, .length = length, .new_tokens = 1};
    step.selected_blocks = cellar::operation::budget_blocks<scheme>(budget, p.prompt);
    auto const kv = [&](std::vector<float> const& x) { return cellar::packed_heads(x.data() + (length - 1) * shape.kv_heads * d, 1, shape.kv_heads, d); };
    i64 const row = i * shape.query_heads * d;
    auto const q = cellar::packed_heads(p.queries.data() + row, 1, shape.query_heads, d);
    for (int layer = 0; layer < layers; ++layer) {
      cellar::host::append_tokens<scheme, float>(on, map, memory(layer), {&step, 1}, {kv(p.keys), kv(p.values)}, scratch);
      cellar::host::select_blocks<scheme, float>(on, map, memory(layer), {&step, 1}, q, sizes, scratch, ids.data(), counts.data());
      cellar::host::attend_blocks<scheme, float>(on, map, memory(layer), {&step, 1}, q, cellar::packed_heads(out.data() + row, 1, shape.query_heads, d), sizes,
                                                 scratch, ids.data(), counts.data(), false);
    }
  }
  double const error = relative_error(out, exact(p));
  std::printf("%d pages of %lld bytes a layer, %lld bytes near\nrelative error %.4f\n", int(table.size()), (long long)map.far_page(),
              (long long)(i64(table.size()) * map.summary_page() + map.near_sequence()), error);
  return error < 0.1 ? 0 : 1;
}
