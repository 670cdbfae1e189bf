#include <algorithm>
#include <random>

#include "catch.hpp"
#include "cellar/layout/paged.hpp"
#include "cellar/layout/tile_major.hpp"
#include "cellar/layout/token_major.hpp"

using namespace cellar;

namespace {

/// Rows do not overlap, lie within bytes(), are row_stride apart, and form runs where the layout says so.
template <class Layout, class Block>
void check_laws(Layout const& l, block_geometry const& g, i64 blocks, Block block_of) {
  std::vector<int> owners(std::size_t(l.bytes()), 0);
  for (i64 b = 0; b < blocks; ++b)
    for (int head = 0; head < g.heads; ++head) {
      i64 low = l.bytes(), high = 0;
      for (int p = 0; p < plane_count; ++p)
        for (i64 row = 0; row < g.rows[p]; ++row) {
          i64 const at = l.offset(plane(p), block_of(b), head, row);
          REQUIRE(at >= 0);
          REQUIRE(at + g.row_bytes[p] <= l.bytes());
          REQUIRE(at == l.offset(plane(p), block_of(b), head, 0) + row * l.row_stride(plane(p)));
          for (i64 i = 0; i < g.row_bytes[p]; ++i) ++owners[std::size_t(at + i)];
          if (g.row_bytes[p] > 0) {
            low = std::min(low, at);
            high = std::max(high, at + g.row_bytes[p]);
          }
        }
      if (Layout::is_run_contiguous) REQUIRE(high - low == g.slice_bytes());
    }
  REQUIRE(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));  // bytes() holds no gap either
}

template <class Layout>
void check_layout() {
  block_geometry const geometries[] = {
      {1, {16, 16, 16, 16}, {128, 128, 0, 0}},  // exact
      {3, {1, 1, 1, 1}, {32, 16, 2, 4}},        // one-token blocks, scales
      {2, {16, 1, 16, 1}, {7, 64, 2, 130}},     // a value codec of 16-token groups, odd sizes
  };
  for (block_geometry const& g : geometries)
    for (i64 const blocks : {i64{1}, i64{5}, i64{64}}) {
      Layout const l{g, blocks};
      check_laws(l, g, blocks, [](i64 b) { return physical_block(b); });

      // through a shuffled page table
      for (i64 const page_blocks : {i64{1}, i64{4}}) {
        i64 const pages = blocks / page_blocks;
        if (pages * page_blocks != blocks) continue;
        std::vector<page_id> table;
        for (i64 p = 0; p < pages; ++p) table.push_back(page_id(p));
        std::mt19937 engine(7);
        std::shuffle(table.begin(), table.end(), engine);
        cellar::layout::paged<Layout> const paged{l, {table.data(), pages}, page_blocks};
        check_laws(paged, g, blocks, [](i64 b) { return logical_block(b); });
        for (i64 b = 0; b < blocks; ++b)
          REQUIRE(paged.offset(plane::values, logical_block(b), 0, 0) ==
                  l.offset(plane::values, physical_block(number(table[std::size_t(b / page_blocks)]) * page_blocks + b % page_blocks), 0, 0));
      }
    }
}

}  // namespace

TEST_CASE("tile_major obeys the laws, also through a page table") { check_layout<layout::tile_major>(); }
TEST_CASE("token_major obeys the laws, also through a page table") { check_layout<layout::token_major>(); }

TEST_CASE("token_major is what engines hold: plane, token, head, channel") {
  layout::token_major const l{{2, {16, 16, 16, 16}, {128, 128, 0, 0}}, 4};
  for (i64 token = 0; token < 64; ++token)
    for (int head = 0; head < 2; ++head) {
      CHECK(l.offset(plane::keys, physical_block(token / 16), head, token % 16) == (token * 2 + head) * 128);
      CHECK(l.offset(plane::values, physical_block(token / 16), head, token % 16) == 64 * 2 * 128 + (token * 2 + head) * 128);
    }
}

TEST_CASE("offsets pass 2^32") {
  block_geometry const g{8, {16, 16, 16, 16}, {256, 256, 0, 0}};
  i64 const blocks = i64{1} << 22;
  layout::tile_major const tiles{g, blocks};
  layout::token_major const tokens{g, blocks};
  CHECK(tiles.offset(plane::keys, physical_block(blocks - 1), 0, 0) == (blocks - 1) * 8 * 16 * 512);
  CHECK(tokens.offset(plane::values, physical_block(blocks - 1), 7, 15) == 2 * blocks * 16 * 8 * 256 - 256);
}
