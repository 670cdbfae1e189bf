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
  static constexpr int head_dim = S::head_dim, value_dim = S::value_dim;
  static constexpr bool values_in_keys = stored_in_keys<typename S::value_codec>;
  static constexpr bool is_indexed = indexed_summary<typename S::summary>;
  static constexpr int scored_dim = detail::scored_dim<typename S::summary, head_dim>;
  /// Rows that a token has for each KV head: a key (0); a value (1) unless it is in the key; an index key (2) where summaries are made of these.
  static constexpr int sides = is_indexed ? 3 : 2;
  CELLAR_HD static constexpr int side_dim(int side) {
    return side == 0 ? head_dim : side == 1 ? (values_in_keys ? 0 : value_dim) : (is_indexed ? scored_dim : 0);
  }
  CELLAR_HD static constexpr bool has_side(int side) { return side_dim(side) > 0; }
  static constexpr int value_side = values_in_keys ? 0 : 1;  ///< Whose rows begin with values.
  static constexpr int widest_side = head_dim > value_dim ? (head_dim > scored_dim ? head_dim : scored_dim) : (value_dim > scored_dim ? value_dim : scored_dim);
  static constexpr int token_channels = side_dim(0) + side_dim(1) + side_dim(2);  ///< Of a token's rows of one KV head.
  static constexpr int block_tokens = S::block_tokens;
  static constexpr int tile_blocks = S::summary::tile_blocks;
  static constexpr int tiles_per_page = int(ceil_div(64, tile_blocks* block_tokens));  ///< A page is at least 64 tokens.
  static constexpr int page_blocks = tiles_per_page * tile_blocks;
  static constexpr int page_tokens = page_blocks * block_tokens;

  model_shape shape;
  i64 sinks = 0;              ///< Tokens.
  i64 tail_rows = 0;          ///< Tokens that the ring holds.
  i64 outliers = 0;           ///< Blocks of a KV head, at most.
  bool discards_far = false;  ///< What leaves the window is lost: for selections that never read it. Blocks are counted, and there are no pages.
  i64 spare_outliers = 0;     ///< Of these, room for blocks that leave the window in a step, until others are evicted in the next.

  /// A policy that knows how many heads there are, for its sizes.
  template <class Policy>
  CELLAR_HD Policy sized() const {
    if constexpr (of_all_heads<Policy>)
      return Policy{}.of_head(0, shape.kv_heads);
    else
      return Policy{};
  }
  template <class Policy>
  static constexpr bool is_shared = scope_of<Policy> == scope::all_heads;
  template <class Policy>
  CELLAR_HD i64 channels(int dim = head_dim) const {
    return is_shared<Policy> ? i64{shape.kv_heads} * dim : dim;
  }
  /// Something is stored once for all heads: such work has an item of its own beside those of the heads, number kv_heads.
  static constexpr bool has_shared = is_shared<typename S::summary> || is_shared<typename S::key_codec> || is_shared<typename S::value_codec>;
  CELLAR_HD int groups() const { return shape.kv_heads + has_shared; }

  CELLAR_HD block_geometry geometry() const {
    using key_codec = typename S::key_codec;
    using value_codec = typename S::value_codec;
    row_bytes const k = sized<key_codec>().bytes(channels<key_codec>()), v = sized<value_codec>().bytes(channels<value_codec>(value_dim));
    i64 const k_rows = block_tokens / key_codec::token_group, v_rows = block_tokens / value_codec::token_group;
    bool const k_shared = is_shared<key_codec>, v_shared = is_shared<value_codec>;
    return {shape.kv_heads, {k_rows, v_rows, k_rows, v_rows}, {k.codes, v.codes, k.scales, v.scales}, {k_shared, v_shared, k_shared, v_shared}};
  }
  /// Floats of a page's rows of one KV head, or of all where something is stored for all of them.
  CELLAR_HD i64 page_floats() const { return i64{page_tokens} * token_channels * (has_shared ? shape.kv_heads : 1); }
  CELLAR_HD i64 far_page() const { return page_blocks * geometry().block_bytes(); }
  CELLAR_HD i64 tile() const { return sized<typename S::summary>().tile_bytes(channels<typename S::summary>(scored_dim)); }
  CELLAR_HD i64 tile_copies() const { return is_shared<typename S::summary> ? 1 : shape.kv_heads; }  ///< Tiles of the same blocks.
  CELLAR_HD i64 summary_page() const { return tile_copies() * tiles_per_page * tile(); }
  /// Exact keys and values of a sequence in a layer: [kv_head][side][row][channel].
  CELLAR_HD i64 near_sequence() const { return shape.kv_heads * near_rows() * near_token(); }
  CELLAR_HD static constexpr i64 near_token() { return token_channels * i64(sizeof(typename S::near_scalar)); }  ///< Of one KV head.
  CELLAR_HD i64 near_rows() const { return sinks + tail_rows; }
  /// Outlier blocks of a sequence in a layer: [kv_head]{ids, ascending unless the rule evicts, the rest -1; kept_attention; [side][block][token][channel],
  /// exact}.
  CELLAR_HD i64 outlier_sequence() const { return shape.kv_heads * outlier_head(); }
  CELLAR_HD i64 outlier_head() const { return outlier_ids() + outlier_attention() + outliers * block_tokens * near_token(); }
  CELLAR_HD i64 outlier_ids() const { return round_up(outliers * i64(sizeof(logical_block)), 16); }
  CELLAR_HD i64 outlier_attention() const { return outlier_sums() > 0 ? 16 + round_up(outlier_sums() * i64(sizeof(float)), 16) : 0; }
  CELLAR_HD i64 outlier_sums() const { return evicts_by<typename S::outliers> && outliers > 0 ? (1 + block_tokens) * outliers + 2 * near_rows() : 0; }
  /// What policies learnt, of a sequence in a layer: [kv_head]{summary, key codec, value codec, mean values}, then those of all heads.
  CELLAR_HD i64 state_sequence() const { return shape.kv_heads * states(false) + states(true); }
  CELLAR_HD i64 states(bool shared) const {
    return state<typename S::summary>(shared) + state<typename S::key_codec>(shared) + state<typename S::value_codec>(shared, value_dim) +
           (shared ? 0 : mean_values());
  }
  /// Mean values that a remainder has: one, or one for each class of the summary.
  CELLAR_HD static constexpr int value_classes() {
    if constexpr (remainder_by_class<typename S::remainder>)
      return S::summary::classes();
    else
      return S::remainder::estimates ? 1 : 0;
  }
  CELLAR_HD static constexpr i64 mean_values() { return round_up(i64{value_classes()} * value_dim * i64(sizeof(float)), 16); }
  /// Scratch that policies need to learn, for one of them at a time.
  i64 train_scratch() const {
    i64 most = 0;
    auto const include = [&]<class Policy>(Policy const&, int dim = head_dim) {
      if constexpr (trains_in_scratch<Policy>) most = maximum{}(most, round_up(sized<Policy>().train_scratch_bytes(channels<Policy>(dim)), 16));
    };
    include(typename S::summary{});
    include(typename S::key_codec{});
    include(typename S::value_codec{}, value_dim);
    return most;
  }
  /// Bytes of a policy's state, if it is of that scope.
  template <class Policy>
  CELLAR_HD i64 state(bool shared, int dim = head_dim) const {
    if constexpr (trained<Policy>)
      return shared == is_shared<Policy> ? round_up(sized<Policy>().state_bytes(channels<Policy>(dim)), 16) : 0;
    else
      return 0;
  }
};

/// One layer's memory. `near`, `state` and `outliers` hold one record per sequence slot, far planes and summaries one per page.
///
/// Requires  all but `far` 16-byte aligned
template <offloading_scheme S>
struct layer_memory {
  typename S::layout layout;
  std::byte* far = nullptr;  ///< Null where the tier is not read in place.
  std::byte* summaries = nullptr;
  std::byte* near = nullptr;
  std::byte* state = nullptr;
  std::byte* outliers = nullptr;     ///< Null where the map has none.
  typename S::tier* tier = nullptr;  ///< Where far planes are stored if `far` is null.
  int layer = 0;                     ///< For the tier.
};

/// Keys and values of new tokens, [tokens, kv_heads, head_dim or value_dim], as attended, and index keys, [tokens, kv_heads, index_dim]. What a scheme does not
/// store is left empty: values that are in keys, index keys of other summaries.
template <storage_scalar T>
struct token_rows {
  heads_view<T const> keys, values = {}, index_keys = {};

  CELLAR_HD heads_view<T const> const& rows(int side) const { return side == 0 ? keys : side == 1 ? values : index_keys; }
};

/// What an indexed summary is asked by.
///
/// Shapes  queries [tokens, kv_heads * index_heads, index_dim], weights [tokens, kv_heads * index_heads]
template <storage_scalar T>
struct index_queries {
  heads_view<T const> queries;
  matrix_view<float const> weights;
};

/// What a scheme's selection is made by: the queries, or index queries.
template <offloading_scheme S, storage_scalar T>
using scoring_queries = std::conditional_t<memory_map<S>::is_indexed, index_queries<T>, heads_view<T const>>;

/// A prompt's exact rows of one layer, as token_rows has them, where they go, and the queries of its last tokens, [observed, query_heads, head_dim], where the
/// scheme learns from them.
template <offloading_scheme S>
struct prompt_layer {
  layer_memory<S> memory;
  any_heads_view keys, values = {}, queries = {}, index_keys = {};

  CELLAR_HD any_heads_view const& rows(int side) const { return side == 0 ? keys : side == 1 ? values : index_keys; }
};

/// The attention that what is near has had, where the least attended is evicted: sums over the steps before, and those of the step that was attended last,
/// which count once a step follows on the length that it ended at.
struct kept_attention {
  i64* length = nullptr;          ///< The length that the pending sums are of; -1: they are counted.
  float* kept = nullptr;          ///< [outliers] of blocks.
  float* near = nullptr;          ///< [near_rows] of tokens, in the places of their rows.
  float* pending_kept = nullptr;  ///< Of the last step, [outliers, block_tokens].
  float* pending_near = nullptr;  ///< Of the last step, as `near`.
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
  i64 kept_tokens = 0;            ///< First tokens of block sealed_before whose codes are there already: they stay as they are.
  i64 number = 0;                 ///< Steps of this sequence, this one included: when a near copy was used last.
};

/// One head's rows of a far block.
template <class Byte>
struct block_parts {
  row_parts<Byte> keys, values;

  template <cellar::detail::const_of<Byte> B>
  CELLAR_HD operator block_parts<B>() const {
    return {keys, values};
  }
};

/// A block's planes where they lie outside a layout: a head's in one run, the shared ones in another, each plane's rows side by side.
template <class Byte>
CELLAR_HD block_parts<Byte> block_of_runs(block_geometry const& g, Byte* slice, Byte* shared) {
  auto const rows = [&](plane codes, plane scales) {
    bool const all = g.is_shared[int(codes)];
    Byte* const run = all ? shared : slice;
    return row_parts<Byte>{run + g.bytes_before(int(codes), all), run + g.bytes_before(int(scales), all), g.row_bytes[int(codes)], g.row_bytes[int(scales)]};
  };
  return {rows(plane::keys, plane::key_scales), rows(plane::values, plane::value_scales)};
}

/// What a sequence is, beside its bytes.
struct snapshot_record {
  i64 prompt_tokens = 0, length = 0, sealed = 0, kept_tokens = 0, selected_blocks = 0;
};

/// Planes of a selected block that are near: a KV head's run, and the shared one. Null: to be fetched by who attends.
struct resident_runs {
  std::byte const* slice = nullptr;
  std::byte const* shared = nullptr;
};

/// The codec whose rows values are read from.
template <offloading_scheme S>
using codec_of_values = std::conditional_t<memory_map<S>::values_in_keys, typename S::key_codec, typename S::value_codec>;

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
  /// A head's planes of a far block, read in place.
  CELLAR_HD block_parts<std::byte> far_block(logical_block block, int head) const {
    return {far_rows(plane::keys, plane::key_scales, block, head), far_rows(plane::values, plane::value_scales, block, head)};
  }
  /// The summary tile that holds a block.
  CELLAR_HD std::byte* tile(i64 block, int head) const {
    i64 const page = number(pages[block / map_type::page_blocks]), within = block % map_type::page_blocks / map_type::tile_blocks;
    i64 const copy = map_type::template is_shared<typename S::summary> ? 0 : head;
    return memory.summaries + page * map.summary_page() + (copy * map_type::tiles_per_page + within) * map.tile();
  }
  /// The exact key (0), value (1) or index key (2) of a position that is near. A value in its key begins where that does.
  CELLAR_HD typename S::near_scalar* near_row(int head, int side, i64 position) const {
    auto* const base = reinterpret_cast<typename S::near_scalar*>(memory.near + slot * map.near_sequence());
    return base + head * map.near_rows() * map_type::token_channels + of_side(side, map.near_rows(), near_index(position));
  }
  CELLAR_HD i64 near_index(i64 position) const { return position < map.sinks ? position : map.sinks + (position - map.sinks) % map.tail_rows; }
  /// The outlier blocks of a KV head, ascending unless the rule evicts.
  CELLAR_HD row_view<logical_block> outliers(int head) const {
    if constexpr (!S::outliers::keeps_outliers) return {};
    auto* const ids = reinterpret_cast<logical_block*>(outlier_record(head));
    i64 n = 0, end = map.outliers;  // ids come first
    while (n < end) {
      i64 const middle = n + (end - n) / 2;
      if (number(ids[middle]) >= 0)
        n = middle + 1;
      else
        end = middle;
    }
    return {ids, n};
  }
  /// The exact key (0) or value (1) of a token of the i-th outlier.
  CELLAR_HD typename S::near_scalar* outlier_row(int head, int side, i64 i, i64 token) const {
    auto* const rows = reinterpret_cast<typename S::near_scalar*>(outlier_record(head) + map.outlier_ids() + map.outlier_attention());
    return rows + of_side(side, map.outliers * map_type::block_tokens, i * map_type::block_tokens + token);
  }
  CELLAR_HD cellar::kept_attention attention_of(int head) const {
    std::byte* const at = outlier_record(head) + map.outlier_ids();
    auto* const sums = reinterpret_cast<float*>(at + 16);
    float* const pending = sums + map.outliers + map.near_rows();
    return {reinterpret_cast<i64*>(at), sums, sums + map.outliers, pending, pending + map.outliers * map_type::block_tokens};
  }
  CELLAR_HD std::byte* outlier_record(int head) const { return memory.outliers + slot * map.outlier_sequence() + head * map.outlier_head(); }

  // What policies learnt.
  CELLAR_HD std::byte* summary_state(int head) const { return states(map_type::template is_shared<typename S::summary>, head); }
  CELLAR_HD std::byte* key_state(int head) const {
    constexpr bool shared = map_type::template is_shared<typename S::key_codec>;
    return states(shared, head) + map.template state<typename S::summary>(shared);
  }
  CELLAR_HD std::byte* value_state(int head) const {
    constexpr bool shared = map_type::template is_shared<typename S::value_codec>;
    return states(shared, head) + map.template state<typename S::summary>(shared) + map.template state<typename S::key_codec>(shared);
  }

  /// The mean of the prompt's far values, or of those of a class, [value_dim], where the scheme estimates a remainder. NaN: there are none.
  CELLAR_HD float* mean_value(int head, int of_class = 0) const {
    return reinterpret_cast<float*>(states(false, head) + map.states(false) - map.mean_values()) + i64{of_class} * map_type::value_dim;
  }

  // Policies, bound to what they need: their head, rotary embedding, learnt state, position of their first row.
  CELLAR_HD typename S::summary summary(int head, i64 position) const { return bound(typename S::summary{}, head, summary_state(head), position); }
  CELLAR_HD typename S::key_codec key_codec(int head, i64 position) const { return bound(typename S::key_codec{}, head, key_state(head), position); }
  CELLAR_HD codec_of_values<S> value_codec(int head, i64 position) const {
    if constexpr (map_type::values_in_keys)
      return key_codec(head, position);
    else
      return bound(typename S::value_codec{}, head, value_state(head), position);
  }
  /// Position of a far block's first token.
  CELLAR_HD i64 position(i64 block) const { return map.sinks + block * map_type::block_tokens; }

 private:
  /// Element of a head's rows, [side][rows][channel], where a side's row begins.
  CELLAR_HD static i64 of_side(int side, i64 rows, i64 row) {
    if (side == 1) side = map_type::value_side;
    i64 const before = (side > 0 ? map_type::side_dim(0) : 0) + (side > 1 ? map_type::side_dim(1) : 0);
    return rows * before + row * map_type::side_dim(side);
  }
  CELLAR_HD std::byte* states(bool shared, int head) const {
    return memory.state + slot * map.state_sequence() + (shared ? map.shape.kv_heads : head) * map.states(false);
  }
  template <class Policy>
  CELLAR_HD Policy bound(Policy p, int head, std::byte const* state, i64 position) const {
    if constexpr (of_all_heads<Policy>) p = p.of_head(head < map.shape.kv_heads ? head : 0, map.shape.kv_heads);
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

/// Queries that are scored for each query token and KV head of a model of that many query heads for each.
template <offloading_scheme S>
CELLAR_HD constexpr i64 scored_queries(int group) {
  if constexpr (memory_map<S>::is_indexed)
    return S::summary::index_heads;
  else
    return group;
}
/// Logits that a block gets for each query token and KV head.
template <offloading_scheme S>
CELLAR_HD constexpr i64 scores_of_token(int group) {
  return memory_map<S>::is_indexed ? 1 : group;
}

/// True where a policy of the scheme needs model_shape::rotary.
template <offloading_scheme S>
inline constexpr bool needs_rotary = rotary_aware<typename S::summary> || rotary_aware<typename S::key_codec> || rotary_aware<typename S::value_codec>;

}  // namespace cellar
