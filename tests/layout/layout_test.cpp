#include <algorithm>
#include <random>

#include "catch.hpp"
#include "cellar/layout/head_major.hpp"
#include "cellar/layout/paged.hpp"
#include "cellar/layout/tile_major.hpp"
#include "cellar/layout/token_major.hpp"
#include "cellar/operation/convert.hpp"

using namespace cellar;

namespace {

block_geometry const geometries[] = {
    {1, {16, 16, 16, 16}, {128, 128, 0, 0}},                        // exact
    {3, {1, 1, 1, 1}, {32, 16, 2, 4}},                              // one-token blocks, scales
    {2, {16, 1, 16, 1}, {7, 64, 2, 130}},                           // a value codec of 16-token groups, odd sizes
    {3, {4, 8, 4, 8}, {96, 5, 2, 3}, {true, false, true, false}},   // a key codec over all heads
    {2, {1, 16, 1, 16}, {160, 64, 2, 2}, {true, true, true, true}}  // both
};

/// Rows do not overlap, lie within bytes(), are row_stride apart, and form runs where the layout says so. Shared planes ignore the head.
template <class Layout, class Block>
void check_laws(Layout const& l, block_geometry const& g, i64 blocks, Block block_of) {
  std::vector<int> owners(std::size_t(l.bytes()), 0);
  for (i64 b = 0; b < blocks; ++b)
    for (int head = 0; head <= g.heads; ++head) {  // the last one stands for the shared planes
      bool const shared = head == g.heads;
      i64 low = l.bytes(), high = 0;
      for (int p = 0; p < plane_count; ++p) {
        if (g.is_shared[p] != shared) continue;
        for (i64 row = 0; row < g.rows[p]; ++row) {
          i64 const at = l.offset(plane(p), block_of(b), shared ? 0 : head, row);
          REQUIRE(at >= 0);
          REQUIRE(at + g.row_bytes[p] <= l.bytes());
          REQUIRE(at == l.offset(plane(p), block_of(b), shared ? g.heads - 1 : head, 0) + row * l.row_stride(plane(p)));
          for (i64 i = 0; i < g.row_bytes[p]; ++i) ++owners[std::size_t(at + i)];
          if (g.row_bytes[p] > 0) {
            low = std::min(low, at);
            high = std::max(high, at + g.row_bytes[p]);
          }
        }
      }
      if (Layout::is_run_contiguous && high > 0) REQUIRE(high - low == (shared ? g.shared_bytes() : g.slice_bytes()));
    }
  REQUIRE(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));  // bytes() holds no gap either
}

template <class Layout>
void check_layout() {
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
TEST_CASE("head_major obeys the laws, also through a page table") { check_layout<layout::head_major>(); }
TEST_CASE("token_major obeys the laws, also through a page table") { check_layout<layout::token_major>(); }

TEST_CASE("token_major is what engines hold: plane, token, head, channel") {
  layout::token_major const l{{2, {16, 16, 16, 16}, {128, 128, 0, 0}}, 4};
  for (i64 token = 0; token < 64; ++token)
    for (int head = 0; head < 2; ++head) {
      CHECK(l.offset(plane::keys, physical_block(token / 16), head, token % 16) == (token * 2 + head) * 128);
      CHECK(l.offset(plane::values, physical_block(token / 16), head, token % 16) == 64 * 2 * 128 + (token * 2 + head) * 128);
    }
}

TEST_CASE("head_major is what some engines hold: plane, head, token, channel") {
  layout::head_major const l{{2, {16, 16, 16, 16}, {128, 128, 0, 0}}, 4};
  for (i64 token = 0; token < 64; ++token)
    for (int head = 0; head < 2; ++head) {
      CHECK(l.offset(plane::keys, physical_block(token / 16), head, token % 16) == (head * 64 + token) * 128);
      CHECK(l.offset(plane::values, physical_block(token / 16), head, token % 16) == 64 * 2 * 128 + (head * 64 + token) * 128);
    }
}

TEST_CASE("every layout converts to every layout and back, through shuffled page tables") {  // H24, H25, H38
  i64 const blocks = 24, page_blocks = 3, pages = blocks / page_blocks;
  auto const shuffled = [&](unsigned seed) {
    std::vector<page_id> table;
    for (i64 p = 0; p < pages; ++p) table.push_back(page_id(p));
    std::mt19937 engine(seed);
    std::shuffle(table.begin(), table.end(), engine);
    return table;
  };
  auto const convert = [&]<class From, class To>(block_geometry const& g, std::type_identity<From>, std::type_identity<To>) {
    auto const from_table = shuffled(1), to_table = shuffled(2);
    layout::paged<From> const from{{g, blocks}, {from_table.data(), pages}, page_blocks};
    layout::paged<To> const to{{g, blocks}, {to_table.data(), pages}, page_blocks};
    // Every byte says which plane, block, head, row and byte it is of.
    auto const content = [](int p, i64 b, int head, i64 row, i64 i) { return std::byte((p * 31 + b * 7 + head * 13 + row * 3 + i * 5 + 1) % 251); };
    std::vector<std::byte> source(std::size_t(from.bytes())), target(std::size_t(to.bytes()), std::byte{0xee}), back(source.size(), std::byte{0xee});
    for (int p = 0; p < plane_count; ++p)
      for (i64 b = 0; b < blocks; ++b)
        for (int head = 0; head < g.copies(p); ++head)
          for (i64 row = 0; row < g.rows[p]; ++row)
            for (i64 i = 0; i < g.row_bytes[p]; ++i) source[std::size_t(from.offset(plane(p), logical_block(b), head, row) + i)] = content(p, b, head, row, i);
    serial_team t;
    for (i64 b = 0; b < blocks; ++b) operation::convert_block(t, g, from, source.data(), logical_block(b), to, target.data(), logical_block(b));
    for (int p = 0; p < plane_count; ++p)
      for (i64 b = 0; b < blocks; ++b)
        for (int head = 0; head < g.copies(p); ++head)
          for (i64 row = 0; row < g.rows[p]; ++row)
            for (i64 i = 0; i < g.row_bytes[p]; ++i)
              REQUIRE(target[std::size_t(to.offset(plane(p), logical_block(b), head, row) + i)] == content(p, b, head, row, i));
    for (i64 b = 0; b < blocks; ++b) operation::convert_block(t, g, to, target.data(), logical_block(b), from, back.data(), logical_block(b));
    REQUIRE(back == source);
  };
  auto const to_all = [&]<class From>(block_geometry const& g, std::type_identity<From> from) {
    convert(g, from, std::type_identity<layout::tile_major>{});
    convert(g, from, std::type_identity<layout::token_major>{});
    convert(g, from, std::type_identity<layout::head_major>{});
  };
  for (block_geometry const& g : geometries) {
    to_all(g, std::type_identity<layout::tile_major>{});
    to_all(g, std::type_identity<layout::token_major>{});
    to_all(g, std::type_identity<layout::head_major>{});
  }
}

TEST_CASE("offsets pass 2^32") {
  block_geometry const g{8, {16, 16, 16, 16}, {256, 256, 0, 0}};
  i64 const blocks = i64{1} << 22;
  layout::tile_major const tiles{g, blocks};
  layout::token_major const tokens{g, blocks};
  layout::head_major const heads{g, blocks};
  CHECK(heads.offset(plane::values, physical_block(blocks - 1), 7, 15) == 2 * blocks * 16 * 8 * 256 - 256);
  CHECK(tiles.offset(plane::keys, physical_block(blocks - 1), 0, 0) == (blocks - 1) * 8 * 16 * 512);
  CHECK(tokens.offset(plane::values, physical_block(blocks - 1), 7, 15) == 2 * blocks * 16 * 8 * 256 - 256);
}
