#pragma once
#include "cellar/operation/convert.hpp"
#include "cellar/operation/seal.hpp"

/// Appending and sealing for teams of many members: what host/append.hpp does with vector kernels, shared out among members.
namespace cellar::inline CELLAR_ABI::operation {

/// Copies rows of one KV head near: those of the positions first, first + 1, ...
///
/// Shapes   element(side, row, channel) in f32, of `rows` tokens
/// Effects  a body over a team, without a barrier at its end
template <team Team, offloading_scheme S, class Element>
CELLAR_HD void write_near(Team& t, sequence_view<S> const& to, int head, i64 first, i64 rows, Element const& element) {
  using map = memory_map<S>;
  for (int side = 0; side < map::sides; ++side) {
    int const dim = map::side_dim(side);
    for (i64 i = t.rank(); i < rows * dim; i += t.size()) {
      i64 const row = i / dim;
      int const c = int(i % dim);
      to.near_row(head, side, first + row)[c] = from_float<typename S::near_scalar>(element(side, row, c));
    }
  }
}

/// Near rows [begin, end) of a KV head, or of all heads where head is their number, in f32, as sealed_rows::at finds them.
///
/// Effects  a body over a team, without a barrier at its end
template <team Team, offloading_scheme S>
CELLAR_HD void read_near(Team& t, sequence_view<S> const& from, int head, i64 begin, i64 end, float* scratch) {
  using map = memory_map<S>;
  int const heads = head < from.map.shape.kv_heads ? 1 : from.map.shape.kv_heads, first = heads == 1 && head < from.map.shape.kv_heads ? head : 0;
  for (int side = 0; side < map::sides; ++side) {
    int const dim = map::side_dim(side);
    i64 const columns = i64{heads} * dim;
    for (i64 i = t.rank(); i < (end - begin) * columns; i += t.size()) {
      i64 const row = i / columns, c = i % columns;
      scratch[i] = to_float(from.near_row(first + int(c / dim), side, begin + row)[c % dim]);
    }
    scratch += map::page_tokens * columns;
  }
}

/// Bytes of `stage` of seal_shared for `blocks` blocks.
template <offloading_scheme S>
i64 stage_bytes(model_shape const& shape, i64 blocks) {
  block_geometry const g = memory_map<S>{shape}.geometry();
  return S::layout::is_run_contiguous ? round_up(blocks * (g.slice_bytes() > g.shared_bytes() ? g.slice_bytes() : g.shared_bytes()), 16) : 0;
}

/// `seal`, with a token group for each member to encode. Where runs are contiguous they are coded in `stage`, and copied far as wholes.
///
/// Requires  as seal; stage: stage_bytes of memory near the processor. Effects: ends with a barrier
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void seal_shared(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, sealed_rows<S, Columns> const& x, i64 kept, std::byte* stage) {
  using key_codec = typename S::key_codec;
  using value_codec = typename S::value_codec;
  constexpr i64 B = S::block_tokens, key_group = key_codec::token_group, value_group = value_codec::token_group;
  constexpr bool codes_keys = is_served<key_codec, Columns>, is_shared = Columns == dynamic;
  constexpr bool codes_values = is_served<value_codec, Columns> && !memory_map<S>::values_in_keys;
  summarize(t, to, head, first, blocks, x);
  if constexpr (!codes_keys && !codes_values) return t.sync();
  int const stored_head = is_shared ? 0 : head;
  bool const is_staged = S::layout::is_run_contiguous && kept == 0;
  block_geometry const geometry = to.map.geometry();
  i64 const run_bytes = is_shared ? geometry.shared_bytes() : geometry.slice_bytes();
  auto const encode = [&]<int C>(auto const& codec, matrix_view<float const, C> const& all, i64 group, i64 token, row_parts<std::byte> const& rows) {
    auto alone = cellar::detail::alone_in(t);
    i64 const row = token % B / group;
    codec.encode(alone, matrix_view<float const, C>{all.row(token), group, all.stride, all.dynamic_columns},
                 row_parts<std::byte>{rows.codes + row * rows.code_stride, rows.scales + row * rows.scale_stride, rows.code_stride, rows.scale_stride});
  };
  auto const rows_of = [&](i64 block, bool is_key) {  // of the block-th of these
    if (is_staged) {
      auto const parts = block_of_runs(geometry, stage + block * run_bytes, stage + block * run_bytes);
      return is_key ? parts.keys : parts.values;
    }
    return is_key ? to.far_rows(plane::keys, plane::key_scales, logical_block(first + block), stored_head)
                  : to.far_rows(plane::values, plane::value_scales, logical_block(first + block), stored_head);
  };
  // Keys and values in one loop, so that all members have work. Codes of kept tokens stay.
  i64 const key_items = codes_keys ? blocks * B / key_group : 0, all = key_items + (codes_values ? blocks * B / value_group : 0);
  for (i64 i = t.rank(); i < all; i += t.size()) {
    if constexpr (codes_keys)
      if (i64 const token = i * key_group; i < key_items && i >= kept / key_group)
        encode(to.key_codec(head, to.position(first) + token), x.keys, key_group, token, rows_of(token / B, true));
    if constexpr (codes_values)
      if (i64 const token = (i - key_items) * value_group; i >= key_items && i - key_items >= kept / value_group)
        encode(to.value_codec(head, to.position(first) + token), x.values, value_group, token, rows_of(token / B, false));
  }
  t.sync();
  if constexpr (S::layout::is_run_contiguous)
    if (is_staged) {
      int leading = 0;  // the plane that a run begins with
      while (geometry.is_shared[leading] != is_shared) ++leading;
      auto const w = t.warp();
      for (i64 b = w.index(); b < blocks; b += w.count()) {
        std::byte* const far = to.memory.far + to.far_layout().offset(plane(leading), logical_block(first + b), stored_head, 0);
        copy_run(far, stage + b * run_bytes, run_bytes, w.lane(), w.width);
      }
      t.sync();
    }
}

/// Floats of scratch for seal_step of one KV head, or of all.
template <offloading_scheme S>
i64 seal_floats(model_shape const& shape) {
  using map = memory_map<S>;
  return map{shape}.page_floats() + stage_bytes<S>(shape, map::page_blocks) / i64(sizeof(float));
}

/// Seals the blocks that leave the window, from near memory, for one KV head or what is stored for all.
///
/// Requires  the step's rows are near; scratch of seal_floats, 16-byte aligned
/// Effects   a body over a team; does nothing where no block seals
template <team Team, offloading_scheme S>
CELLAR_HD void seal_step(Team& t, sequence_view<S> const& to, int head, sequence_step const& step, float* scratch) {
  using map = memory_map<S>;
  int const heads = to.map.shape.kv_heads;
  auto* const stage = reinterpret_cast<std::byte*>(scratch + to.map.page_floats());
  for (i64 b = step.sealed_before; b < step.sealed && !to.map.discards_far;) {
    i64 const blocks = step.sealed - b < map::page_blocks ? step.sealed - b : i64{map::page_blocks}, tokens = blocks * S::block_tokens;
    i64 const kept = b == step.sealed_before ? step.kept_tokens : 0;
    read_near(t, to, head, to.position(b), to.position(b) + tokens, scratch);
    t.sync();
    if (head < heads)
      seal_shared(t, to, head, b, blocks, sealed_rows<S, S::head_dim>::at(scratch, tokens, map::page_tokens, 1), kept, stage);
    else if constexpr (map::has_shared)
      seal_shared(t, to, head, b, blocks, sealed_rows<S, dynamic>::at(scratch, tokens, map::page_tokens, heads), kept, stage);
    b += blocks;
  }
}

}  // namespace cellar::operation
