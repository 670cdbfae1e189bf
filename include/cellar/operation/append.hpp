#pragma once
#include "cellar/operation/seal.hpp"

/// Appending and sealing for teams of many members: what host/append.hpp does with vector kernels, shared out among members.
namespace cellar::inline CELLAR_ABI::operation {

/// Copies rows of one KV head near: those of the positions first, first + 1, ...
///
/// Shapes   keys, values (row, channel) in f32, `rows` of them
/// Effects  a body over a team, without a barrier at its end
template <team Team, offloading_scheme S, class Key, class Value>
CELLAR_HD void write_near(Team& t, sequence_view<S> const& to, int head, i64 first, i64 rows, Key const& key, Value const& value) {
  constexpr int D = S::head_dim;
  using near_scalar = typename S::near_scalar;
  for (i64 i = t.rank(); i < rows * D; i += t.size()) {
    i64 const row = i / D;
    int const c = int(i % D);
    to.near_row(head, 0, first + row)[c] = from_float<near_scalar>(key(row, c));
    to.near_row(head, 1, first + row)[c] = from_float<near_scalar>(value(row, c));
  }
}

/// Near rows [begin, end) of a KV head, or of all heads where head is their number, in f32.
///
/// Shapes   keys, values [end - begin, columns]
/// Effects  a body over a team, without a barrier at its end
template <team Team, offloading_scheme S>
CELLAR_HD void read_near(Team& t, sequence_view<S> const& from, int head, i64 begin, i64 end, float* keys, float* values) {
  constexpr int D = S::head_dim;
  int const heads = from.map.shape.kv_heads, first = head < heads ? head : 0;
  i64 const columns = head < heads ? D : i64{heads} * D;
  for (i64 i = t.rank(); i < (end - begin) * columns; i += t.size()) {
    i64 const row = i / columns, c = i % columns;
    keys[i] = to_float(from.near_row(first + int(c / D), 0, begin + row)[c % D]);
    values[i] = to_float(from.near_row(first + int(c / D), 1, begin + row)[c % D]);
  }
}

/// `seal`, with a token group for each member to encode.
///
/// Requires  as seal. Effects: ends with a barrier
template <team Team, offloading_scheme S, int Columns>
CELLAR_HD void seal_shared(Team& t, sequence_view<S> const& to, int head, i64 first, i64 blocks, matrix_view<float const, Columns> keys,
                           matrix_view<float const, Columns> values, i64 kept = 0) {
  constexpr i64 B = S::block_tokens;
  summarize(t, to, head, first, blocks, keys);
  int const stored_head = head < to.map.shape.kv_heads ? head : 0;
  auto const encode = [&](auto const& codec_at, matrix_view<float const, Columns> const& x, plane codes, plane scales) {
    using codec_type = std::remove_cvref_t<decltype(codec_at(i64{0}))>;
    if constexpr (is_served<codec_type, Columns>) {
      constexpr i64 group = codec_type::token_group;
      for (i64 g = kept / group + t.rank(); g * group < blocks * B; g += t.size()) {
        i64 const token = g * group, row = token % B / group;
        auto const rows = to.far_rows(codes, scales, logical_block(first + token / B), stored_head);
        auto alone = cellar::detail::alone_in(t);
        codec_at(to.position(first) + token)
            .encode(alone, matrix_view<float const, Columns>{x.row(token), group, x.stride, x.dynamic_columns},
                    row_parts<std::byte>{rows.codes + row * rows.code_stride, rows.scales + row * rows.scale_stride, rows.code_stride, rows.scale_stride});
      }
    }
  };
  encode([&](i64 position) { return to.key_codec(head, position); }, keys, plane::keys, plane::key_scales);
  encode([&](i64 position) { return to.value_codec(head, position); }, values, plane::values, plane::value_scales);
  t.sync();
}

/// Seals the blocks that leave the window, from near memory, for one KV head or what is stored for all.
///
/// Requires  the step's rows are near; scratch [2, page_tokens, columns]
/// Effects   a body over a team; does nothing where no block seals
template <team Team, offloading_scheme S>
CELLAR_HD void seal_step(Team& t, sequence_view<S> const& to, int head, sequence_step const& step, float* scratch) {
  using map = memory_map<S>;
  int const heads = to.map.shape.kv_heads;
  i64 const columns = head < heads ? i64{S::head_dim} : i64{heads} * S::head_dim;
  float *const keys = scratch, *const values = scratch + map::page_tokens * columns;
  for (i64 b = step.sealed_before; b < step.sealed && !to.map.discards_far;) {
    i64 const blocks = step.sealed - b < map::page_blocks ? step.sealed - b : i64{map::page_blocks}, tokens = blocks * S::block_tokens;
    i64 const kept = b == step.sealed_before ? step.kept_tokens : 0;
    read_near(t, to, head, to.position(b), to.position(b) + tokens, keys, values);
    t.sync();
    if (head < heads)
      seal_shared(t, to, head, b, blocks, matrix_view<float const, S::head_dim>{keys, tokens}, matrix_view<float const, S::head_dim>{values, tokens}, kept);
    else if constexpr (map::has_shared)
      seal_shared(t, to, head, b, blocks, matrix_view<float const>{keys, tokens, columns, columns}, matrix_view<float const>{values, tokens, columns, columns},
                  kept);
    b += blocks;
  }
}

}  // namespace cellar::operation
