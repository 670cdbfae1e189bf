// A summary of one's own: the key of largest norm stands for its block. The scheme around it needs nothing else.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cellar/cellar.hpp"

/// Score: q . (the block's longest key). A tile interleaves 16 blocks by channel, [channel][block] in f32.
struct longest_key {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 16;

  cellar::i64 tile_bytes(cellar::i64 head_dim) const { return tile_blocks * head_dim * 4; }
  cellar::i64 scratch_bytes(cellar::i64) const { return 0; }
  cellar::i64 prepared_bytes(cellar::i64 queries, cellar::i64 head_dim) const { return queries * head_dim * 4; }

  template <cellar::team Team, int D>
  CELLAR_HD void build(Team& t, cellar::matrix_view<float const, D> keys, cellar::i64 blocks, std::byte* tile, int first_lane) const {
    cellar::i64 const tokens = keys.rows / blocks;
    for (cellar::i64 b = t.rank(); b < blocks; b += t.size()) {
      float const* longest = keys.row(b * tokens);
      for (cellar::i64 i = 1; i < tokens; ++i) {
        float const* const other = keys.row(b * tokens + i);
        if (cellar::dot<D>(other, other) > cellar::dot<D>(longest, longest)) longest = other;
      }
      for (int c = 0; c < D; ++c) reinterpret_cast<float*>(tile)[c * tile_blocks + first_lane + b] = longest[c];
    }
  }
  template <cellar::team Team, int D>
  CELLAR_HD void prepare(Team& t, cellar::matrix_view<float const, D> queries, cellar::prepared_queries<std::byte, D> to) const {
    for (cellar::i64 i = t.rank(); i < queries.rows * D; i += t.size()) reinterpret_cast<float*>(to.data)[i] = queries(i / D, i % D);
  }
  template <cellar::team Team, int D>
  CELLAR_HD void score_tile(Team& t, cellar::prepared_queries<std::byte const, D> from, std::byte const* tile, cellar::matrix_view<float> scores) const {
    for (cellar::i64 i = t.rank(); i < from.count * tile_blocks; i += t.size()) {
      float s = 0;
      for (int c = 0; c < D; ++c)
        s += reinterpret_cast<float const*>(from.data)[i / tile_blocks * D + c] * reinterpret_cast<float const*>(tile)[c * tile_blocks + i % tile_blocks];
      scores(i / tile_blocks, i % tile_blocks) = s;
    }
    t.sync();
  }
};
static_assert(cellar::block_summary<longest_key>);

struct by_longest_key : cellar::scheme_defaults<64> {
  static constexpr cellar::budget published{.tokens = 64};  // four blocks of 16
  using summary = longest_key;
  using select = cellar::select::top_k;
};

int main() {
  // Short keys, and one long key in each of the blocks 3, 7, 20 and 31: the query along them must select these.
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(513 * 64), values(keys.size(), 1.f), q(64, 1.f), out(64);
  for (float& k : keys) k = 0.1f * normal(engine);
  for (int const block : {3, 7, 20, 31}) std::fill_n(keys.begin() + (block * 16 + 5) * 64, 64, 1.f);
  cellar::host::executor const on;
  cellar::cache<by_longest_key> cache(on, {.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 64}, {.sequences = 1, .tokens = 513});
  auto const sequence = cache.begin_prompt(cellar::prompt_staging<float>{keys.data(), values.data(), 512, 512});
  cache.finish_prompt(on, sequence);
  cellar::batch_entry const batch[]{{sequence, 1}};
  cache.plan(on, {batch, 1});
  cache.append(on, 0, cellar::packed_heads<float const>(keys.data() + 512 * 64, 1, 1, 64), cellar::packed_heads<float const>(values.data(), 1, 1, 64));
  cache.attend(on, 0, cellar::packed_heads<float const>(q.data(), 1, 1, 64), cellar::packed_heads(out.data(), 1, 1, 64));
  std::vector<long> ids;
  auto const selected = cache.selected(0, 0);
  for (auto const id : *selected) ids.push_back(number(id));
  for (long const id : ids) std::printf("block %ld\n", id);
  return ids == std::vector<long>{3, 7, 20, 31} && std::abs(out[0] - 1) < 0.01f ? 0 : 1;
}
