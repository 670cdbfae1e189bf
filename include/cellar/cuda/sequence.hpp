#pragma once
#include "cellar/cuda/device.hpp"
#include "cellar/operation/append.hpp"
#include "cellar/operation/convert.hpp"

/// Work on whole sequences on a device, as host/sequence.hpp has it; a call enqueues and returns, unless it says that it waits.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

template <offloading_scheme S>
struct decode_block_kernel {
  static constexpr int resident_blocks(int) { return 2; }

  memory_map<S> map;
  layer_memory<S> memory;
  i64 slot;
  row_view<page_id const> pages;
  logical_block block;
  float *keys, *values;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place place) const {
    int const head = int(place.x);
    sequence_view<S> const from{map, memory, slot, pages};
    block_parts<std::byte const> const rows = from.far_block(block, head);
    i64 const position = from.position(number(block)), at = i64{head} * S::block_tokens;
    from.key_codec(head, position).decode(t, rows.keys, matrix_view<float, S::head_dim>{keys + at * S::head_dim, S::block_tokens});
    if constexpr (!memory_map<S>::values_in_keys)
      from.value_codec(head, position).decode(t, rows.values, matrix_view<float, S::value_dim>{values + at * S::value_dim, S::block_tokens});
  }
};

template <offloading_scheme S>
struct restore_near_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  i64 slot;
  logical_block block;
  i64 tokens;
  float const *keys, *values;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place place) const {
    constexpr float most = largest<typename S::near_scalar>;  // what a codec decodes may be larger than what it was made of
    int const head = int(place.x);
    sequence_view<S> const to{map, memory, slot, {}};
    operation::write_near(t, to, head, to.position(number(block)), tokens, [&](int side, i64 row, int c) {
      if (side == 2) return 0.0f;  // blocks of one token are never cut
      float const y = (side == 0 ? keys : values)[(i64{head} * S::block_tokens + row) * memory_map<S>::side_dim(side) + c];
      return y > most ? most : y < -most ? -most : y;
    });
  }
};

template <offloading_scheme S>
struct copy_page_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  i64 first, target;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    operation::convert_block(t, map.geometry(), memory.layout, memory.far, physical_block(first + at.x), memory.layout, memory.far,
                             physical_block(target + at.x));
  }
};

template <offloading_scheme S>
struct drop_outliers_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  i64 slot, sealed;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    if (t.rank() == 0)
      for (logical_block& id : sequence_view<S>{map, memory, slot, {}}.outliers(int(at.x)))
        if (number(id) >= sealed) id = logical_block{-1};
  }
};

}  // namespace detail

/// Decodes one far block of a sequence in several layers.
///
/// Shapes  keys, values [layers, kv_heads, block_tokens, head_dim or value_dim], f32, in device memory; values null where they are in keys
template <offloading_scheme S, device On>
void decode_block(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, row_view<page_id const> pages, logical_block block,
                  float* keys, float* values) {
  i64 const each = i64{map.shape.kv_heads} * S::block_tokens;
  for (i64 i = 0; i < layers.count; ++i)
    on.template launch<128>(
        {map.shape.kv_heads}, 0,
        detail::decode_block_kernel<S>{map, layers[i], slot, pages, block, keys + i * each * S::head_dim, values ? values + i * each * S::value_dim : nullptr});
}

/// Puts rows of a block's first tokens back into near memory. Waits.
///
/// Shapes  keys, values as decode_block gives them
template <offloading_scheme S, device On>
void restore_near(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, logical_block block, i64 tokens, float const* keys,
                  float const* values) {
  i64 const each = i64{map.shape.kv_heads} * S::block_tokens;
  for (i64 i = 0; i < layers.count; ++i)
    on.template launch<128>({map.shape.kv_heads}, 0,
                            detail::restore_near_kernel<S>{map, layers[i], slot, block, tokens, keys + i * each * S::head_dim,
                                                           values ? values + i * each * S::value_dim : nullptr});
  on.wait();  // the rows are the caller's again
}

/// Copies the first `blocks` blocks of a page, and its summaries, to another page, in several layers.
template <offloading_scheme S, device On>
void copy_page(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, page_id from, page_id to, i64 blocks) {
  i64 const bytes = map.summary_page();
  for (layer_memory<S> const& memory : layers) {
    on.template launch<128>({blocks}, 0,
                            detail::copy_page_kernel<S>{map, memory, number(from) * memory_map<S>::page_blocks, number(to) * memory_map<S>::page_blocks});
    on.copy(memory.summaries + number(to) * bytes, memory.summaries + number(from) * bytes, bytes);
  }
}

/// Forgets the outliers of a sequence from block `sealed` on, in several layers.
template <offloading_scheme S, device On>
void drop_outliers(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, i64 sealed) {
  for (layer_memory<S> const& memory : layers) on.template launch<32>({map.shape.kv_heads}, 0, detail::drop_outliers_kernel<S>{map, memory, slot, sealed});
}

/// Copies near memory, outliers and learnt state of a sequence to another slot, in several layers.
template <offloading_scheme S, device On>
void copy_slot(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 from, i64 to) {
  for (layer_memory<S> const& memory : layers) {
    auto const copy = [&](std::byte* data, i64 bytes) { on.copy(data + to * bytes, data + from * bytes, bytes); };
    copy(memory.near, map.near_sequence());
    copy(memory.state, map.state_sequence());
    copy(memory.outliers, map.outlier_sequence());
  }
}

}  // namespace cellar::cuda
