#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cellar/summary/concept.hpp"
#include "random.hpp"
#include "sweep.hpp"

/// Builds tiles over blocks in runs of the given lengths and scores them. [query][block]
template <int D, class Summary>
struct scored {
  std::vector<std::byte> tiles;
  std::vector<std::vector<float>> logits;
};
template <int D, class Summary>
scored<D, Summary> score(Summary const& summary, std::vector<float> const& keys, int block_tokens, std::vector<float> const& queries, std::int64_t run) {
  std::int64_t const blocks = std::int64_t(keys.size()) / D / block_tokens, tile_blocks = Summary::tile_blocks, tiles = cellar::ceil_div(blocks, tile_blocks);
  std::int64_t const tile_bytes = summary.tile_bytes(D), count = std::int64_t(queries.size()) / D;
  scored<D, Summary> s{std::vector<std::byte>(std::size_t(tiles * tile_bytes)), std::vector<std::vector<float>>(std::size_t(count))};
  cellar::serial_team t;
  auto const at = [&](std::int64_t block) {
    if constexpr (cellar::positional<Summary>)
      return summary.at(block * block_tokens);
    else
      return summary;
  };
  for (std::int64_t b = 0; b < blocks;) {
    std::int64_t const lane = b % tile_blocks, n = std::min({run, tile_blocks - lane, blocks - b});
    at(b).build(t, cellar::matrix_view<float const, D>{keys.data() + b * block_tokens * D, n * block_tokens}, n, s.tiles.data() + b / tile_blocks * tile_bytes,
                int(lane));
    b += n;
  }
  std::vector<std::byte> prepared(std::size_t(summary.prepared_bytes(count, D)) + 16), scratch(std::size_t(summary.scratch_bytes(D)) + 16);
  cellar::prepared_queries<std::byte, D> const to{prepared.data(), count, scratch.data()};
  at(0).prepare(t, rows_of<D>(queries), to);
  std::vector<float> tile_scores(std::size_t(count * tile_blocks));
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    at(tile * tile_blocks)
        .score_tile(t, cellar::prepared_queries<std::byte const, D>(to), s.tiles.data() + tile * tile_bytes,
                    cellar::matrix_view<float>{tile_scores.data(), count, tile_blocks, tile_blocks});
    for (std::int64_t h = 0; h < count; ++h)
      for (std::int64_t b = 0; b < tile_blocks && tile * tile_blocks + b < blocks; ++b)
        s.logits[std::size_t(h)].push_back(tile_scores[std::size_t(h * tile_blocks + b)]);
  }
  return s;
}

inline double product(float const* a, float const* b, int d) {
  double s = 0;
  for (int c = 0; c < d; ++c) s += double(a[c]) * double(b[c]);
  return s;
}

/// f(dimension, block_tokens, blocks, keys, queries) over head dimensions, block sizes and ragged numbers of blocks.
template <class F>
void sweep(F const& f) {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    random_numbers r(d);
    for (int const block_tokens : {1, 8, 16, 5})
      for (std::int64_t const blocks : {1, 15, 33}) f(dim, block_tokens, blocks, r.normals(blocks * block_tokens * d, 2), r.normals(3 * d));
  });
}
