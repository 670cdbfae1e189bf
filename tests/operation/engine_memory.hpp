#pragma once
#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

#include "cellar/cellar.hpp"

/// An engine's memory for one layer. Every byte starts as 0xff: NaN in every float type.
template <class Scheme>
class engine_memory {
 public:
  engine_memory(cellar::model_shape const& shape, cellar::limits const& l, cellar::budget const& b, int workers)
      : map{shape, b.sinks, l.tokens},
        pages(l.sequences * cellar::ceil_div(l.tokens, cellar::memory_map<Scheme>::page_tokens)),
        layout{map.geometry(), pages * cellar::memory_map<Scheme>::page_blocks},
        far(filled(layout.bytes())),
        summaries(filled(pages * map.summary_page())),
        near(filled(l.sequences * map.near_sequence())),
        state(filled(l.sequences * map.state_sequence() + 16)),
        workspace(static_cast<std::byte*>(
            std::aligned_alloc(64, std::size_t(cellar::round_up(cellar::operation::workspace_bytes<Scheme>(shape, l, b, workers), 64))))),
        sizes(cellar::operation::workspace_for<Scheme>(shape, l, b)),
        ids(std::size_t(l.sequences * shape.kv_heads * sizes.selected)),
        counts(std::size_t(l.sequences * shape.kv_heads)),
        samples(std::size_t(l.sequences * shape.kv_heads * sizes.sample_words()), ~0u) {
    std::mt19937 engine(3);  // the engine's pages lie anywhere
    for (cellar::i64 p = 0; p < pages; ++p) table.push_back(cellar::page_id(p));
    std::shuffle(table.begin(), table.end(), engine);
  }
  ~engine_memory() { std::free(workspace); }

  cellar::layer_memory<Scheme> layer() { return {layout, far.data(), summaries.data(), near.data(), state.data()}; }
  cellar::row_view<cellar::page_id const> pages_of(cellar::i64 sequence, cellar::i64 sealed) {
    cellar::i64 const each = pages / cellar::i64(counts.size() / std::size_t(map.shape.kv_heads));
    return {table.data() + sequence * each, cellar::ceil_div(sealed, cellar::memory_map<Scheme>::page_blocks)};
  }

  cellar::memory_map<Scheme> map;
  cellar::i64 pages;
  typename Scheme::layout layout;
  std::vector<std::byte> far, summaries, near, state;
  std::byte* workspace;
  cellar::operation::decode_workspace<Scheme> sizes;
  std::vector<cellar::page_id> table;
  std::vector<cellar::logical_block> ids;
  std::vector<cellar::i64> counts;
  std::vector<std::uint32_t> samples;

 private:
  static std::vector<std::byte> filled(cellar::i64 n) { return std::vector<std::byte>(std::size_t(n), std::byte{0xff}); }
};
