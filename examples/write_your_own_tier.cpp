// A tier of one's own: far bytes that are not memory but a store of named objects, here a std::map. The cache keeps what it fetched in its near pool, so
// that a run which the next step selects again is not fetched again.
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "problem.hpp"

/// Runs by (layer, block, head). A store with a quota: it is checked at construction, so that a store of a run cannot fail for want of room later.
class object_store {
 public:
  static constexpr bool is_directly_readable = false;
  static constexpr bool is_device_reachable = false;

  struct options {
    cellar::i64 quota = cellar::i64{1} << 30;  ///< Bytes.
  };

  /// Errors  precondition_error where the quota is too small
  object_store(int layers, cellar::block_geometry const& g, cellar::i64 blocks, options const& o) : content_(std::make_unique<content>()) {
    cellar::expects(layers * blocks * g.block_bytes() <= o.quota, "object_store: the quota is smaller than far memory; raise it, or lower limits.far_tokens");
  }
  void store(int layer, cellar::physical_block block, int head, cellar::row_view<std::byte const> from) {
    std::vector<std::byte> run(from.begin(), from.end());
    std::lock_guard const lock(content_->mutex);
    content_->runs[{layer, number(block), head}] = std::move(run);
  }
  void fetch(int layer, cellar::physical_block block, int head, cellar::row_view<std::byte> to) {
    std::lock_guard const lock(content_->mutex);
    auto const found = content_->runs.find({layer, number(block), head});
    if (found == content_->runs.end() || cellar::i64(found->second.size()) != to.count)
      throw cellar::io_error(0, "fetch", "object_store: a run that was never stored, or is of another size");
    std::copy(found->second.begin(), found->second.end(), to.begin());
  }

 private:
  struct content {
    std::mutex mutex;  // store and fetch come from all workers
    std::map<std::tuple<int, cellar::i64, int>, std::vector<std::byte>> runs;
  };
  std::unique_ptr<content> content_;
};
static_assert(cellar::block_tier<object_store>);

template <class Tier>
struct stored_in : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 1;
  static constexpr cellar::budget published{.share = 0.25, .sinks = 4, .window = 32};
  using summary = cellar::summary::mean<>;
  using select = cellar::select::top_k;
  using tier = Tier;
};

int main() {
  problem p = random_problem(3);
  std::size_t const step = std::size_t(p.shape.query_heads * p.shape.head_dim);
  for (std::size_t i = step; i < p.queries.size(); ++i) p.queries[i] = p.queries[i - step] + 0.1f * p.queries[i];  // neighbouring steps ask alike
  cellar::statistics seen;
  auto const mine = decode<stored_in<object_store>>(p, {.quota = 1 << 20}, &seen);
  bool const same = mine == decode<stored_in<cellar::tier::host_memory>>(p);
  double const error = relative_error(mine, exact(p)), hits = double(seen.pool_hits) / double(seen.pool_hits + seen.pool_misses);
  std::printf("relative error %.4f, as with host_memory: %s\nof selected runs %.0f %% were in the pool; %.1f kB fetched a step\n", error, same ? "yes" : "no",
              100 * hits, double(seen.moved_bytes) / 1000 / double(p.steps));
  return same && error < 0.15 && hits > 0.5 ? 0 : 1;
}
