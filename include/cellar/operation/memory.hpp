#pragma once
#include "cellar/layout/paged.hpp"
#include "cellar/scheme/concept.hpp"

/// The memory that the operations of a scheme work on, whoever owns it.
///
///   sequence     | sinks | far blocks 0, 1, ... (sealed)             | tail: window and, for many schemes, all generated tokens |
///   position     0      sinks            sinks + sealed * B                                                             length
///   where        near    far planes and near summaries, by page        near, a ring
///
/// A page is page_blocks consecutive blocks of one sequence; one page id names its far planes and its summary tiles in every layer.
namespace cellar::inline CELLAR_ABI {

/// Sizes of a scheme's memory for one model. All are bytes unless they say otherwise.
template <offloading_scheme S>
struct memory_map {
  static_assert(detail::checked_scheme<S>::value);
  static constexpr int head_dim = S::head_dim;
  static constexpr int block_tokens = S::block_tokens;
  static constexpr int tile_blocks = S::summary::tile_blocks;
  static constexpr int tiles_per_page = int(ceil_div(64, tile_blocks* block_tokens));  ///< A page is at least 64 tokens.
  static constexpr int page_blocks = tiles_per_page * tile_blocks;
  static constexpr int page_tokens = page_blocks * block_tokens;

  model_shape shape;
  i64 sinks = 0;      ///< Tokens.
  i64 tail_rows = 0;  ///< Tokens that the ring holds.

  CELLAR_HD block_geometry geometry() const {
    row_bytes const k = typename S::key_codec{}.bytes(head_dim), v = typename S::value_codec{}.bytes(head_dim);
    i64 const k_rows = block_tokens / S::key_codec::token_group, v_rows = block_tokens / S::value_codec::token_group;
    return {shape.kv_heads, {k_rows, v_rows, k_rows, v_rows}, {k.codes, v.codes, k.scales, v.scales}};
  }
  CELLAR_HD i64 far_page() const { return page_blocks * geometry().heads * geometry().slice_bytes(); }
  CELLAR_HD i64 tile() const { return typename S::summary{}.tile_bytes(head_dim); }
  CELLAR_HD i64 summary_page() const { return shape.kv_heads * tiles_per_page * tile(); }
  /// Exact keys and values of a sequence in a layer: [kv_head][key or value][row][channel].
  CELLAR_HD i64 near_sequence() const { return shape.kv_heads * 2 * near_rows() * head_dim * i64(sizeof(typename S::near_scalar)); }
  CELLAR_HD i64 near_rows() const { return sinks + tail_rows; }
  /// What policies learnt, of a sequence in a layer: [kv_head]{summary, key codec, value codec}.
  CELLAR_HD i64 state_sequence() const { return shape.kv_heads * head_state(); }
  CELLAR_HD i64 head_state() const { return state_of<typename S::summary>() + state_of<typename S::key_codec>() + state_of<typename S::value_codec>(); }
  template <class Policy>
  CELLAR_HD static i64 state_of() {
    if constexpr (trained<Policy>)
      return round_up(Policy{}.state_bytes(head_dim), 16);
    else
      return 0;
  }
};

/// One layer's memory. `near` and `state` hold one record per sequence slot, far planes and summaries one per page.
template <offloading_scheme S>
struct layer_memory {
  typename S::layout layout;
  std::byte* far = nullptr;
  std::byte* summaries = nullptr;
  std::byte* near = nullptr;
  std::byte* state = nullptr;
};

/// A prompt's exact keys and values of one layer, [length, kv_heads, head_dim] as attended, and where they go.
template <offloading_scheme S, storage_scalar T>
struct prompt_layer {
  layer_memory<S> memory;
  heads_view<T const> keys, values;
};

/// One sequence of a step, as every layer sees it.
struct sequence_step {
  i64 slot = 0;                   ///< Of near memory and state.
  row_view<page_id const> pages;  ///< Block table.
  i64 sealed_before = 0;          ///< Far blocks before the step.
  i64 sealed = 0;                 ///< Far blocks that the step's queries may select.
  i64 length = 0;                 ///< Tokens, those of this step included.
  i64 new_tokens = 0;             ///< Appended by this step; one query each.
  i64 first_row = 0;              ///< Of this sequence in the step's ragged rows.
  i64 selected_blocks = 0;        ///< The selection's budget.
};

/// Where a sequence's parts lie in one layer.
template <offloading_scheme S>
struct sequence_view {
  using map_type = memory_map<S>;
  map_type map;
  layer_memory<S> memory;
  i64 slot = 0;
  row_view<page_id const> pages;

  CELLAR_HD cellar::layout::paged<typename S::layout> far_layout() const { return {memory.layout, pages, map_type::page_blocks}; }
  template <class Byte = std::byte>
  CELLAR_HD row_parts<Byte> far_rows(plane codes, plane scales, logical_block block, int head) const {
    auto const l = far_layout();
    return {memory.far + l.offset(codes, block, head, 0), memory.far + l.offset(scales, block, head, 0), l.row_stride(codes), l.row_stride(scales)};
  }
  /// The summary tile that holds a block.
  CELLAR_HD std::byte* tile(i64 block, int head) const {
    i64 const page = number(pages[block / map_type::page_blocks]), within = block % map_type::page_blocks / map_type::tile_blocks;
    return memory.summaries + page * map.summary_page() + (head * map_type::tiles_per_page + within) * map.tile();
  }
  /// The exact key (0) or value (1) of a position that is near.
  CELLAR_HD typename S::near_scalar* near_row(int head, int key_or_value, i64 position) const {
    i64 const row = position < map.sinks ? position : map.sinks + (position - map.sinks) % map.tail_rows;
    auto* const base = reinterpret_cast<typename S::near_scalar*>(memory.near + slot * map.near_sequence());
    return base + ((i64(head) * 2 + key_or_value) * map.near_rows() + row) * map_type::head_dim;
  }
  CELLAR_HD std::byte* state(int head) const { return memory.state + slot * map.state_sequence() + head * map.head_state(); }

  // Policies, bound to what they need: rotary embedding, learnt state, position of their first row.
  CELLAR_HD typename S::summary summary(int head, i64 position) const { return bound(typename S::summary{}, state(head), position); }
  CELLAR_HD typename S::key_codec key_codec(int head, i64 position) const {
    return bound(typename S::key_codec{}, state(head) + map.template state_of<typename S::summary>(), position);
  }
  CELLAR_HD typename S::value_codec value_codec(int head, i64 position) const {
    i64 const before = map.template state_of<typename S::summary>() + map.template state_of<typename S::key_codec>();
    return bound(typename S::value_codec{}, state(head) + before, position);
  }
  /// Position of a far block's first token.
  CELLAR_HD i64 position(i64 block) const { return map.sinks + block * map_type::block_tokens; }

 private:
  template <class Policy>
  CELLAR_HD Policy bound(Policy p, std::byte const* state, i64 position) const {
    if constexpr (block_aware<Policy>) p = p.of_blocks(map_type::block_tokens);
    if constexpr (rotary_aware<Policy>) p = p.with(map.shape.rotary);
    if constexpr (trained<Policy>) p = p.bind(state);
    if constexpr (positional<Policy>) p = p.at(position);
    return p;
  }
};

/// The largest magnitude that a policy stores as a finite number, where it says so.
template <class Policy>
constexpr float largest_stored(i64 channels) {
  if constexpr (requires { Policy{}.largest(channels); })
    return Policy{}.largest(channels);
  else
    return largest<float>;
}

/// True where a policy of the scheme needs model_shape::rotary.
template <offloading_scheme S>
inline constexpr bool needs_rotary = rotary_aware<typename S::summary> || rotary_aware<typename S::key_codec> || rotary_aware<typename S::value_codec>;

}  // namespace cellar
