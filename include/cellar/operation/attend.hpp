#pragma once
#include "cellar/attention/softmax_state.hpp"
#include "cellar/core/vector.hpp"
#include "cellar/operation/sample.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Keys and values are taken this many tokens at a time, counted from the first attended one of a part.
inline constexpr i64 attend_tokens = 64;

/// Far blocks of one part of an attention: 1024 tokens. Parts are fixed by the list of blocks, whoever works on them, and merged in ascending order: the split
/// that makes results independent of threads and batch.
template <offloading_scheme S>
inline constexpr i64 part_blocks = S::block_tokens < 1024 ? 1024 / S::block_tokens : 1;
template <offloading_scheme S>
CELLAR_HD constexpr i64 attend_parts(i64 blocks) {
  return blocks > part_blocks<S> ? ceil_div(blocks, part_blocks<S>) : 1;
}

/// Whether a scheme's far rows are read where they lie: both codecs store scalars plainly, in memory. Else rows are decoded to f32.
template <offloading_scheme S>
inline constexpr bool attends_in_place = S::tier::is_directly_readable&& plain_codec<typename S::key_codec>&& plain_codec<codec_of_values<S>>;

/// Whether far rows of a codec are attended to as they are coded, before the rotation is undone.
template <offloading_scheme S, class Codec>
inline constexpr bool attends_rotated = rotating_codec<Codec, S::head_dim>;

/// Channels that values are summed in: value_dim; all of a key's where the sums of values in rotated keys are yet to be turned back.
template <offloading_scheme S>
inline constexpr int summed_channels = memory_map<S>::values_in_keys&& attends_rotated<S, typename S::key_codec> ? S::head_dim : S::value_dim;

/// What attention to a part gives: a softmax state and an unnormalised sum of values for each query row.
template <offloading_scheme S>
struct attend_partial {
  attention::softmax_state* states = nullptr;  ///< [rows]
  float* sums = nullptr;                       ///< [rows, summed_channels]

  CELLAR_HD static constexpr i64 bytes(i64 rows) { return round_up(rows * (summed_channels<S> + 2) * i64(sizeof(float)), 16); }
  CELLAR_HD static attend_partial at(std::byte* memory, i64 rows) {
    auto* const states = reinterpret_cast<attention::softmax_state*>(memory);
    return {states, reinterpret_cast<float*>(states + rows)};
  }
  /// From that row on, of what there is.
  CELLAR_HD attend_partial from_row(i64 row) const { return {states ? states + row : nullptr, sums ? sums + row * summed_channels<S> : nullptr}; }
};

/// Whether the far blocks that are not chosen are weighed by their summaries: for what stands for them, or to say how much attention they had.
template <offloading_scheme S>
inline constexpr bool weighs_rest = S::remainder::estimates || S::estimates_missed;

/// What a step says of the far blocks that were not chosen.
template <offloading_scheme S>
struct attend_rest {
  attend_partial<S> part;   ///< As estimate_remainder writes it; nothing where the rest is not weighed.
  float* missed = nullptr;  ///< [rows], written by attention: the share of a query row's attention that the rest would have; null: not asked for.

  CELLAR_HD attend_rest from_row(i64 row) const { return {part.from_row(row), missed ? missed + row : nullptr}; }
};

namespace detail {

/// What attention meets of rows stored by a codec: f32 where they are decoded. Plain rows keep their scale to themselves wherever they lie, so that no tier
/// changes a bit.
template <bool InPlace, class Codec>
struct met_rows {
  using scalar = float;
  using scale = void;
};
template <bool InPlace, plain_codec Codec>
struct met_rows<InPlace, Codec> {
  using scalar = std::conditional_t<InPlace, typename Codec::plain_scalar, float>;
  using scale = typename Codec::plain_scale;
};

/// Whether a codec's plain rows are of another type than near ones, or have scales.
template <class Codec, class Near>
inline constexpr bool is_other_than = false;
template <plain_codec Codec, class Near>
inline constexpr bool is_other_than<Codec, Near> = !std::is_same_v<typename Codec::plain_scalar, Near> || !std::is_void_v<typename Codec::plain_scale>;

}  // namespace detail

/// Scratch of `attend` for one KV head, in bytes.
template <offloading_scheme S>
struct attend_workspace {
  i64 rows = 0;  ///< Query rows of a group, at most.

  static constexpr i64 chunk_rows = round_up(attend_tokens, S::block_tokens) + S::block_tokens;
  static constexpr i64 chunks = attends_in_place<S> ? 2 : 1;  ///< One is attended to while the next one's rows are prefetched.
  static constexpr i64 sample_bytes = is_sampled<S> ? sizeof(std::int32_t) + sizeof(float) : 0;  ///< Of a token.
  static constexpr i64 chunk_bytes = chunk_rows * (sizeof(i64) + 2 * sizeof(std::byte const*) + 2 * sizeof(float) + sample_bytes);
  static constexpr i64 rotated = (attends_rotated<S, typename S::key_codec> ? S::head_dim : 0) +  ///< Channels of a query row: of the query, of a sum.
                                 (attends_rotated<S, codec_of_values<S>> ? summed_channels<S> : 0);
  CELLAR_HD i64 floats() const { return (attends_in_place<S> ? 0 : chunk_rows * memory_map<S>::token_channels) + rows * chunk_rows + rows * rotated; }
  CELLAR_HD i64 part_bytes() const { return round_up(floats() * i64(sizeof(float)), 16) + round_up(chunks * chunk_bytes, 16); }
  i64 bytes() const { return part_bytes() + 2 * attend_partial<S>::bytes(rows); }
};

/// Far blocks that a step attends to.
template <offloading_scheme S>
CELLAR_HD i64 attended_blocks(sequence_view<S> const& from, sequence_step const& step, row_view<logical_block const> blocks, bool every) {
  return every && !from.map.discards_far ? step.sealed : blocks.count;
}

/// Attention of one KV head's query group to one part of its keys: far blocks [part * part_blocks, ...) of the list; sinks and outliers before the first
/// part's, the tail after the last one's. A far block is decoded as it is met, unless it is attended to in place. Outliers among the chosen blocks count once.
///
/// Shapes      queries [tokens * group, head_dim] f32, times the softmax scale, row = token * group + head; to [rows], written
/// Requires    blocks ascending, below sealed; `every` means all sealed blocks and ignores `blocks`; far(i, block) gives the planes of the i-th block to
///             visit, as block_parts valid until its next call, or until this returns where attends_in_place; scratch of sizes.part_bytes();
///             samples: of the list's blocks, by place, where the scheme samples
/// Effects     a body over a team; on_decode(begin) is called around decoding (statistics), and may be empty
/// Complexity  O(rows * attended tokens * (head_dim + value_dim))
CELLAR_CALLS_HOST
template <team Team, offloading_scheme S, class Far, class OnDecode>
CELLAR_HD void attend_part(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, row_view<logical_block const> blocks, bool every,
                           i64 part, matrix_view<float const, S::head_dim> queries, attend_partial<S> const& to, attend_workspace<S> const& sizes,
                           std::byte* workspace, Far&& far, OnDecode&& on_decode, [[maybe_unused]] row_samples const& samples = {}) {
  using map = memory_map<S>;
  using key_codec = typename S::key_codec;
  using value_codec = codec_of_values<S>;
  constexpr int D = S::head_dim, V = S::value_dim, W = summed_channels<S>;
  constexpr bool in_keys = map::values_in_keys;
  constexpr i64 chunk = attend_workspace<S>::chunk_rows;
  i64 const rows = queries.rows, group = rows / step.new_tokens, first_query = step.length - step.new_tokens;
  using variant_type = typename S::attention;
  variant_type const variant{};
  constexpr bool in_place = attends_in_place<S>;
  using near_scalar = typename S::near_scalar;
  using met_near = std::conditional_t<in_place, near_scalar, float>;
  using met_keys = detail::met_rows<in_place, key_codec>;
  using met_values = detail::met_rows<in_place, value_codec>;
  constexpr bool scales_keys = !std::is_void_v<typename met_keys::scale>, scales_values = !std::is_void_v<typename met_values::scale>;

  struct token_rows {
    i64* positions = nullptr;
    std::byte const **keys = nullptr, **values = nullptr;
    float *key_scales = nullptr, *value_scales = nullptr;
    std::int32_t* places = nullptr;  // in the list, of far tokens that may be sampled
    float* lengths = nullptr;        // of their keys
    i64 filled = 0, highest = 0;     // tokens; their largest position
    bool is_far = false;
  } chunks[2];
  for (i64 i = 0; i < 2; ++i) {
    std::byte* const mine = workspace + i % sizes.chunks * sizes.chunk_bytes;
    chunks[i].positions = reinterpret_cast<i64*>(mine);
    chunks[i].keys = reinterpret_cast<std::byte const**>(mine + chunk * sizeof(i64));
    chunks[i].values = in_keys ? chunks[i].keys : chunks[i].keys + chunk;
    chunks[i].key_scales = reinterpret_cast<float*>(chunks[i].keys + 2 * chunk);
    chunks[i].value_scales = in_keys ? chunks[i].key_scales : chunks[i].key_scales + chunk;
    if constexpr (is_sampled<S>) {
      chunks[i].places = reinterpret_cast<std::int32_t*>(chunks[i].key_scales + 2 * chunk);
      chunks[i].lengths = reinterpret_cast<float*>(chunks[i].places + chunk);
    }
  }
  auto* const weights = reinterpret_cast<float*>(workspace + round_up(sizes.chunks * sizes.chunk_bytes, 16));  // (row, token)
  float* const keys = weights + sizes.rows * chunk;                                                            // (token, channel), decoded
  float* const values = in_keys ? keys : keys + chunk * D;                                                     // (token, channel)
  [[maybe_unused]] float* const after_rows = keys + chunk * map::token_channels;
  auto* const states = to.states;
  float* const sums = to.sums;
  constexpr bool rotates_keys = attends_rotated<S, key_codec>, rotates_values = attends_rotated<S, value_codec>;
  constexpr bool is_far_alike = std::is_same_v<typename met_keys::scalar, met_near> && std::is_same_v<typename met_values::scalar, met_near>;
  // No chunk holds near and far rows: a fact of the codecs and of what is weighed, not of the tier.
  constexpr bool is_far_apart =
      is_sampled<S> || rotates_keys || rotates_values || detail::is_other_than<key_codec, near_scalar> || detail::is_other_than<value_codec, near_scalar>;
  float* const rotated_queries = in_place ? keys : after_rows;                        // (row, channel), what far keys meet
  float* const rotated_sums = rotated_queries + (rotates_keys ? sizes.rows * D : 0);  // (row, channel), of far values
  matrix_view<float const, D> const far_queries{rotates_keys ? rotated_queries : queries.data, rows, rotates_keys ? D : queries.stride};
  float* const far_sums = rotates_values ? rotated_sums : sums;

  for (i64 r = t.rank(); r < rows; r += t.size()) {
    states[r] = {};
    for (int c = 0; c < W; ++c) sums[r * W + c] = far_sums[r * W + c] = 0;
    if constexpr (rotates_keys)
      for (int c = 0; c < D; ++c) rotated_queries[r * D + c] = queries(r, c);
  }
  if constexpr (rotates_keys) from.key_codec(head, 0).rotate(t, matrix_view<float, D>{rotated_queries, rows});
  auto const attend_to = [&](token_rows const& some, token_rows const& next) {
    t.sync();
    i64 const key_bytes = D * i64(next.is_far ? sizeof(typename met_keys::scalar) : sizeof(met_near));
    i64 const value_bytes = V * i64(next.is_far ? sizeof(typename met_values::scalar) : sizeof(met_near));
    row_pointers const some_keys{some.keys, some.filled, next.keys, next.filled, key_bytes};
    row_pointers const some_values{some.values, some.filled, in_keys ? nullptr : next.values, in_keys ? 0 : next.filled, value_bytes};
    if (is_far_alike || !some.is_far)
      dot_rows<met_near>(t, some.is_far ? far_queries : queries, some_keys, weights, chunk);
    else
      dot_rows<typename met_keys::scalar>(t, far_queries, some_keys, weights, chunk);
    for (i64 r = t.rank(); r < rows; r += t.size()) {
      i64 const q_position = first_query + r / group;
      float* const weight = weights + r * chunk;
      if (scales_keys && some.is_far) multiply(t, weight, some.key_scales, some.filled);
      bool is_weighed = false;
      if constexpr (is_sampled<S>)
        if (some.is_far && samples.bits) {
          is_weighed = true;
          sampling_row const mine = from.summary(head, 0).template row_of<D>(queries.row(r));
          for (i64 i = 0; i < some.filled; ++i) {
            float const product = weight[i];
            bool const counts = samples.has(r, some.places[i]) && variant.visible(q_position, some.positions[i]);
            weight[i] = counts ? sampled_logit<S>(variant.logit(product, q_position, some.positions[i]), product, mine, some.lengths[i]) : -infinity;
          }
        }
      if (!is_weighed && !(plain_past<variant_type> && some.highest <= q_position))
        for (i64 i = 0; i < some.filled; ++i)
          weight[i] = variant.visible(q_position, some.positions[i]) ? variant.logit(weight[i], q_position, some.positions[i]) : -infinity;
      float const top = largest_of(cellar::detail::alone_in(t), weight, some.filled);
      if (top == -infinity && states[r].m == -infinity) {  // nothing was visible yet
        for (i64 i = 0; i < some.filled; ++i) weight[i] = 0;
        continue;
      }
      float const reference = rotates_values ? attention::raise_reference(states[r], top, sums + r * W, rotated_sums + r * W, W)
                                             : attention::raise_reference(states[r], top, sums + r * W, W);
      states[r].l += exponentials(t, weight, some.filled, reference);
      if (scales_values && some.is_far) multiply(t, weight, some.value_scales, some.filled);
    }
    if (is_far_alike || !some.is_far)
      add_weighted_rows<met_near>(t, weights, chunk, some_values, matrix_view<float, W>{some.is_far ? far_sums : sums, rows});
    else
      add_weighted_rows<typename met_values::scalar>(t, weights, chunk, some_values, matrix_view<float, W>{far_sums, rows});
    t.sync();
  };
  int filling = 0, waiting = -1;  // of the two chunks
  auto const flush = [&] {        // attends to the tokens gathered so far, or to those before them while these are prefetched
    if constexpr (in_place) {
      if (waiting >= 0) attend_to(chunks[waiting], chunks[filling]);
      waiting = filling;
      filling = 1 - filling;
    } else {
      attend_to(chunks[filling], token_rows{});
    }
    chunks[filling].filled = chunks[filling].highest = 0;
    chunks[filling].is_far = false;
  };
  // Adds a token by its rows, which are decoded to f32 where that is what is attended to.
  auto const add_near = [&](i64 position, i64 at, near_scalar const* k, near_scalar const* v) {
    auto& to = chunks[filling];
    to.positions[at] = position;
    if constexpr (in_place) {
      to.keys[at] = reinterpret_cast<std::byte const*>(k);
      if constexpr (!in_keys) to.values[at] = reinterpret_cast<std::byte const*>(v);
    } else {
      to.keys[at] = reinterpret_cast<std::byte const*>(keys + at * D);
      widen<near_scalar>(t, reinterpret_cast<std::byte const*>(k), D, keys + at * D);
      if constexpr (!in_keys) {
        to.values[at] = reinterpret_cast<std::byte const*>(values + at * V);
        widen<near_scalar>(t, reinterpret_cast<std::byte const*>(v), V, values + at * V);
      }
    }
  };
  auto const added = [&](i64 tokens, i64 last_position) {  // on every member alike
    auto& to = chunks[filling];
    to.filled += tokens;
    to.highest = maximum{}(to.highest, last_position);
  };
  auto const gather_near = [&](i64 begin, i64 end) {
    for (i64 p = begin; p < end;) {
      i64 const filled = chunks[filling].filled, n = end - p < attend_tokens - filled ? end - p : attend_tokens - filled;
      for (i64 i = t.rank(); i < n; i += t.size()) add_near(p + i, filled + i, from.near_row(head, 0, p + i), from.near_row(head, 1, p + i));
      added(n, p + n - 1);
      p += n;
      if (chunks[filling].filled >= attend_tokens) flush();
    }
  };

  i64 const count = attended_blocks(from, step, blocks, every), parts = attend_parts<S>(count);
  i64 const last = part + 1 < parts ? (part + 1) * part_blocks<S> : count;
  auto const outliers = from.outliers(head);
  if (part == 0) gather_near(0, step.length < from.map.sinks ? step.length : from.map.sinks);
  for (i64 o = 0; part == 0 && o < outliers.count; ++o) {
    i64 const position = from.position(number(outliers[o])), filled = chunks[filling].filled;
    for (i64 i = t.rank(); i < map::block_tokens; i += t.size())
      add_near(position + i, filled + i, from.outlier_row(head, 0, o, i), from.outlier_row(head, 1, o, i));
    added(map::block_tokens, position + map::block_tokens - 1);
    if (chunks[filling].filled >= attend_tokens) flush();
  }
  if (is_far_apart && chunks[filling].filled > 0) flush();
  i64 passed = 0;  // outliers before the block
  for (i64 i = part * part_blocks<S>; i < last;) {
    on_decode(true);
    chunks[filling].is_far = true;
    for (; i < last && chunks[filling].filled < attend_tokens; ++i) {
      auto const block = every ? logical_block(i) : blocks[i];
      while (passed < outliers.count && outliers[passed] < block) ++passed;
      if (passed < outliers.count && outliers[passed] == block) continue;  // attended already
      auto& to = chunks[filling];
      i64 const position = from.position(number(block)), filled = to.filled;
      block_parts<std::byte const> const rows = far(i, block);
      if constexpr (!in_place) {
        auto const decode = [&]<int C>(auto const& codec, row_parts<std::byte const> const& coded, matrix_view<float, C> decoded) {
          using codec_type = std::remove_cvref_t<decltype(codec)>;
          if constexpr (attends_rotated<S, codec_type>)
            codec.decode_rotated(t, coded, decoded);
          else if constexpr (plain_codec<codec_type>)
            for (i64 j = t.rank(); j < decoded.rows; j += t.size())
              widen<typename codec_type::plain_scalar>(t, coded.codes + j * coded.code_stride, C, decoded.row(j));
          else
            codec.decode(t, coded, decoded);
        };
        decode(from.key_codec(head, position), rows.keys, matrix_view<float, D>{keys + filled * D, map::block_tokens});
        if constexpr (!in_keys) decode(from.value_codec(head, position), rows.values, matrix_view<float, V>{values + filled * V, map::block_tokens});
      }
      for (i64 j = t.rank(); j < map::block_tokens; j += t.size()) {
        to.positions[filled + j] = position + j;
        if constexpr (is_sampled<S>) {
          to.places[filled + j] = std::int32_t(i);
          to.lengths[filled + j] = from.summary(head, 0).length_of(from.tile(number(block), head), int(number(block) % map::tile_blocks));
        }
        to.keys[filled + j] = in_place ? rows.keys.codes + j * rows.keys.code_stride : reinterpret_cast<std::byte const*>(keys + (filled + j) * D);
        if constexpr (!in_keys)
          to.values[filled + j] = in_place ? rows.values.codes + j * rows.values.code_stride : reinterpret_cast<std::byte const*>(values + (filled + j) * V);
        if constexpr (scales_keys)
          to.key_scales[filled + j] = cellar::detail::load_float<typename met_keys::scale>(rows.keys.scales + j * rows.keys.scale_stride);
        if constexpr (scales_values && !in_keys)
          to.value_scales[filled + j] = cellar::detail::load_float<typename met_values::scale>(rows.values.scales + j * rows.values.scale_stride);
      }
      added(map::block_tokens, position + map::block_tokens - 1);
    }
    on_decode(false);
    if (chunks[filling].filled >= attend_tokens) flush();
  }
  if (is_far_apart && chunks[filling].filled > 0) flush();
  chunks[filling].is_far = false;
  i64 const tail = from.position(step.sealed);
  if (part + 1 == parts) gather_near(tail < from.map.sinks ? from.map.sinks : tail, step.length);
  if (chunks[filling].filled > 0) flush();
  if (in_place && waiting >= 0) attend_to(chunks[waiting], token_rows{});
  if constexpr (rotates_values) {
    from.value_codec(head, 0).rotate_back(t, matrix_view<float, W>{rotated_sums, rows});
    t.sync();
    for (i64 r = t.rank(); r < rows; r += t.size())
      for (int c = 0; c < W; ++c) sums[r * W + c] += rotated_sums[r * W + c];
  }
  t.sync();
}

/// total becomes the whole of itself and a later part.
///
/// Shapes  [rows]
template <offloading_scheme S, team Team>
CELLAR_HD void merge_partial(Team& t, i64 rows, attend_partial<S> const& total, attend_partial<S> const& part) {
  constexpr int W = summed_channels<S>;
  for (i64 r = t.rank(); r < rows; r += t.size()) attention::merge(total.states[r], total.sums + r * W, part.states[r], part.sums + r * W, W);
  t.sync();
}

/// The output of an attention whose parts are merged, and the remainder; and what was missed.
///
/// Shapes  out [rows, value_dim]; rest [rows]
template <team Team, offloading_scheme S>
CELLAR_HD void finish_attend(Team& t, sequence_view<S> const& from, int head, attend_partial<S> const& total, attend_rest<S> const& rest,
                             matrix_view<float, S::value_dim> out) {
  constexpr int V = S::value_dim, W = summed_channels<S>;
  auto const& remainder = rest.part;
  if constexpr (S::estimates_missed)
    if (remainder.states && rest.missed)
      for (i64 r = t.rank(); r < out.rows; r += t.size()) rest.missed[r] = attention::share_of(remainder.states[r], total.states[r]);
  if constexpr (remainder_by_class<typename S::remainder>) {
    if (remainder.states)
      for (i64 r = t.rank(); r < out.rows; r += t.size()) attention::merge(total.states[r], total.sums + r * W, remainder.states[r], remainder.sums + r * W, W);
  } else if constexpr (S::remainder::estimates) {
    if (remainder.states && is_finite(from.mean_value(head)[0]))  // else the prompt had no far tokens, and nothing is known of values
      for (i64 r = t.rank(); r < out.rows; r += t.size()) {
        float part[W] = {};
        for (int c = 0; c < V; ++c) part[c] = remainder.states[r].l * from.mean_value(head)[c];
        attention::merge(total.states[r], total.sums + r * W, remainder.states[r], part, W);
      }
  }
  for (i64 r = t.rank(); r < out.rows; r += t.size()) {
    float const scale = total.states[r].l > 0 ? 1.0f / total.states[r].l : 0.0f;
    for (int c = 0; c < V; ++c) out(r, c) = total.sums[r * W + c] * scale;
  }
  t.sync();
}

/// Exact attention of one KV head's query group over some of its keys: softmax(q . k) . v over sinks, outliers, chosen far blocks and the tail, part by part.
///
/// As attend_part and finish_attend; scratch of sizes.bytes(), 16-byte aligned.
CELLAR_CALLS_HOST
template <team Team, offloading_scheme S, class Far, class OnDecode>
CELLAR_HD void attend(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, row_view<logical_block const> blocks, bool every,
                      matrix_view<float const, S::head_dim> queries, matrix_view<float, S::value_dim> out, attend_workspace<S> const& sizes,
                      std::byte* workspace, Far&& far, attend_rest<S> const& rest, OnDecode&& on_decode, row_samples const& samples = {}) {
  using partial = attend_partial<S>;
  std::byte* const memory = workspace + sizes.part_bytes();
  auto const total = partial::at(memory, sizes.rows), next = partial::at(memory + partial::bytes(sizes.rows), sizes.rows);
  i64 const parts = attend_parts<S>(attended_blocks(from, step, blocks, every));
  for (i64 part = 0; part < parts; ++part) {
    attend_part(t, from, head, step, blocks, every, part, queries, part == 0 ? total : next, sizes, workspace, far, on_decode, samples);
    if (part > 0) merge_partial(t, queries.rows, total, next);
  }
  finish_attend(t, from, head, total, rest, out);
}

}  // namespace cellar::operation
