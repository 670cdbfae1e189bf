#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "cellar/host/append.hpp"
#include "cellar/operation/convert.hpp"

/// Work on whole sequences: reading sealed rows back, copying pages and near memory.
namespace cellar::inline CELLAR_ABI::host {

namespace detail {

/// A head's planes of a far block: in place, or fetched into `slice` and `shared`.
template <offloading_scheme S>
block_parts<std::byte const> read_block(sequence_view<S> const& from, logical_block block, int head, std::byte* slice, std::byte* shared) {
  if constexpr (S::tier::is_directly_readable) {
    return from.far_block(block, head);
  } else {
    auto const geometry = from.map.geometry();
    auto const at = from.far_layout().resolve(block);
    if (geometry.slice_bytes() > 0) from.memory.tier->fetch(from.memory.layer, at, head, {slice, geometry.slice_bytes()});
    if (geometry.shared_bytes() > 0) from.memory.tier->fetch(from.memory.layer, at, geometry.heads, {shared, geometry.shared_bytes()});
    return block_of_runs<std::byte const>(geometry, slice, shared);
  }
}

}  // namespace detail

/// Decodes one far block of a sequence in several layers.
///
/// Shapes   keys, values [layers, kv_heads, block_tokens, head_dim or value_dim], f32; values null where they are in keys
/// Effects  allocates a block's planes for each item where the tier is not read in place
/// Errors   those of the tier
template <offloading_scheme S>
void decode_block(executor const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, row_view<page_id const> pages,
                  logical_block block, float* keys, float* values) {
  int const heads = map.shape.kv_heads;
  on.for_each(layers.count * heads, [&](i64 item, int) {
    int const head = int(item % heads);
    sequence_view<S> const from{map, layers[item / heads], slot, pages};
    auto const geometry = map.geometry();
    std::vector<std::byte> runs(std::size_t(S::tier::is_directly_readable ? 0 : geometry.slice_bytes() + geometry.shared_bytes()));
    auto const rows = detail::read_block(from, block, head, runs.data(), runs.empty() ? nullptr : runs.data() + geometry.slice_bytes());
    i64 const position = from.position(number(block)), at = item * S::block_tokens;
    serial_team t(nullptr, 0, on.kernels());
    from.key_codec(head, position).decode(t, rows.keys, matrix_view<float, S::head_dim>{keys + at * S::head_dim, S::block_tokens});
    if constexpr (!memory_map<S>::values_in_keys)
      from.value_codec(head, position).decode(t, rows.values, matrix_view<float, S::value_dim>{values + at * S::value_dim, S::block_tokens});
  });
}

/// Copies the first `blocks` blocks of a page, and its summaries, to another page, in several layers.
///
/// Effects  allocates a block's planes for each layer where the tier is not read in place
/// Errors   those of the tier; the first page is as it was
template <offloading_scheme S>
void copy_page(executor const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, page_id from, page_id to, i64 blocks) {
  on.for_each(layers.count, [&](i64 item, int) {
    layer_memory<S> const& memory = layers[item];
    auto const geometry = map.geometry();
    i64 const first = number(from) * memory_map<S>::page_blocks, target = number(to) * memory_map<S>::page_blocks;
    if constexpr (S::tier::is_directly_readable) {
      serial_team t;
      for (i64 b = 0; b < blocks; ++b)
        operation::convert_block(t, geometry, memory.layout, memory.far, physical_block(first + b), memory.layout, memory.far, physical_block(target + b));
    } else {
      std::vector<std::byte> run(std::size_t(std::max(geometry.slice_bytes(), geometry.shared_bytes())));
      for (i64 b = 0; b < blocks; ++b)
        for (int head = 0; head <= geometry.heads; ++head) {
          i64 const bytes = head < geometry.heads ? geometry.slice_bytes() : geometry.shared_bytes();
          if (bytes == 0) continue;
          memory.tier->fetch(memory.layer, physical_block(first + b), head, {run.data(), bytes});
          memory.tier->store(memory.layer, physical_block(target + b), head, {run.data(), bytes});
        }
    }
    if (i64 const bytes = map.summary_page(); bytes > 0)
      std::memcpy(memory.summaries + number(to) * bytes, memory.summaries + number(from) * bytes, std::size_t(bytes));
  });
}

/// Forgets the outliers of a sequence from block `sealed` on, in several layers.
template <offloading_scheme S>
void drop_outliers(executor const&, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, i64 sealed) {
  for (layer_memory<S> const& memory : layers)
    for (int head = 0; head < map.shape.kv_heads; ++head)
      for (logical_block& id : sequence_view<S>{map, memory, slot, {}}.outliers(head))
        if (number(id) >= sealed) id = logical_block{-1};
}

/// Copies near memory, outliers and learnt state of a sequence to another slot, in several layers.
template <offloading_scheme S>
void copy_slot(executor const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 from, i64 to) {
  on.for_each(layers.count, [&](i64 item, int) {
    layer_memory<S> const& memory = layers[item];
    std::memcpy(memory.near + to * map.near_sequence(), memory.near + from * map.near_sequence(), std::size_t(map.near_sequence()));
    if (map.state_sequence() > 0)
      std::memcpy(memory.state + to * map.state_sequence(), memory.state + from * map.state_sequence(), std::size_t(map.state_sequence()));
    if (map.outlier_sequence() > 0)
      std::memcpy(memory.outliers + to * map.outlier_sequence(), memory.outliers + from * map.outlier_sequence(), std::size_t(map.outlier_sequence()));
  });
}

/// Puts rows of a block's first tokens back into near memory.
///
/// Shapes  keys, values as decode_block gives them
template <offloading_scheme S>
void restore_near(executor const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, logical_block block, i64 tokens,
                  float const* keys, float const* values) {
  int const heads = map.shape.kv_heads;
  on.for_each(layers.count * heads, [&](i64 item, int) {
    sequence_view<S> const to{map, layers[item / heads], slot, {}};
    for (i64 i = 0; i < tokens; ++i)
      for (int side = 0; side < 2; ++side) {
        int const dim = memory_map<S>::side_dim(side);
        float const* const row = (side == 0 ? keys : values) + (item * S::block_tokens + i) * dim;
        auto* const near = to.near_row(int(item % heads), side, to.position(number(block)) + i);
        constexpr float most = largest<typename S::near_scalar>;  // what a codec decodes may be larger than what it was made of
        for (int c = 0; c < dim; ++c) near[c] = from_float<typename S::near_scalar>(std::clamp(row[c], -most, most));
      }
  });
}

}  // namespace cellar::host
