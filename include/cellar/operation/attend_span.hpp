#pragma once
#include "cellar/operation/attend.hpp"

/// Attention for teams of many members: what operation/attend.hpp computes, with the keys of a query group split into spans, each one team's work, and rows
/// decoded by all members into shared memory. The generic body there is its specification.
///
///   keys of a KV head    | sinks, outliers, tail | far rows, in the order of the list | late ones |      cut into chunks, chunks dealt out to spans in order
///   a chunk              pointers -> decoded rows -> logits -> weights -> sums
///
/// Spans are fixed by the lists alone, so results do not depend on the batch. Late blocks, at the list's end, are those that are not near yet when the others
/// are attended to: their chunks are their own, and so are the spans of these.
namespace cellar::inline CELLAR_ABI::operation {

/// Spans of a KV head's keys, at most.
inline constexpr int most_spans = 64;

/// Sizes of attend_span, in shared memory. Rows: query rows that one team serves.
template <offloading_scheme S, int Rows>
struct span_sizes {
  static constexpr int D = S::head_dim, V = S::value_dim, W = summed_channels<S>;
  static constexpr bool in_keys = memory_map<S>::values_in_keys;
  static constexpr int key_group = S::key_codec::token_group, value_group = S::value_codec::token_group;
  static constexpr int both_groups = [] {  // least common multiple
    int a = key_group, b = value_group;
    while (b != 0) {
      int const rest = a % b;
      a = b;
      b = rest;
    }
    return key_group / a * value_group;
  }();
  static constexpr int most = D > 256 ? 16 : 32;                                                    ///< Of wide rows, as many as a block has memory for.
  static constexpr int chunk = both_groups > most ? both_groups : most / both_groups* both_groups;  ///< Tokens, whole token groups.
  static constexpr int stride = D + 4, value_stride = in_keys ? stride : V + 4;                     ///< Floats of a decoded row: neighbours lie in other banks.
  static constexpr int shares = D % 32 == 0 ? D > 256 ? 8 : 4 : D % 16 == 0 ? 2 : 1;                ///< Of a dot product, among members.
  static constexpr bool rotates_keys = attends_rotated<S, typename S::key_codec>, rotates_values = attends_rotated<S, codec_of_values<S>>;
  static constexpr int decoded = chunk * (stride + (in_keys ? 0 : value_stride));
  static constexpr int queries = (rotates_keys ? 2 : 1) * Rows * D;
  static constexpr int sums = (rotates_values ? 2 : 1) * Rows * W;
  static constexpr i64 shared_bytes = round_up(i64{decoded} * 4, 16) + round_up(i64{shares} * Rows * chunk * 4, 16) + round_up(i64{Rows} * chunk * 4, 16) +
                                      round_up(i64{queries} * 4, 16) + round_up(i64{sums} * 4, 16) + 64 + 3 * round_up(i64{Rows} * 4, 16) +
                                      4 * round_up(i64{chunk} * 8, 16) + round_up(i64{2} * chunk * 8, 16) +
                                      (is_sampled<S> ? round_up(i64{2} * chunk * 4, 16) + round_up(i64{Rows} * i64(sizeof(sampling_row)), 16) : 0);
};

/// What spans give: [rows][spans] states, then [rows][spans][summed_channels] sums of near and, where values are attended to rotated, of far ones.
template <offloading_scheme S>
struct span_partials {
  static constexpr int copies = attends_rotated<S, codec_of_values<S>> ? 2 : 1;
  attention::softmax_state* states = nullptr;
  float* sums = nullptr;
  i64 rows = 0;
  int spans = 0;

  CELLAR_HD static constexpr i64 bytes(i64 rows, int spans) { return round_up(rows * spans * i64(sizeof(float)) * (2 + copies * summed_channels<S>), 16); }
  CELLAR_HD static span_partials at(std::byte* memory, i64 rows, int spans) {
    auto* const states = reinterpret_cast<attention::softmax_state*>(memory);
    return {states, reinterpret_cast<float*>(states + rows * spans), rows, spans};
  }
  CELLAR_HD attention::softmax_state& state(i64 row, int span) const { return states[row * spans + span]; }
  CELLAR_HD float* sum(i64 row, int span, int copy) const { return sums + ((row * spans + span) * copies + copy) * summed_channels<S>; }
};

/// A span of the early keys, or of those of the last `late_blocks` of the list.
struct span_choice {
  int span = 0;
  i64 late_blocks = 0;
  bool is_late = false;
};

/// The keys of one KV head and step as a list of chunks.
template <offloading_scheme S, int Chunk>
struct key_list {
  i64 sinks = 0, outliers = 0, tail = 0, tail_begin = 0, far = 0, late = 0;  // tokens

  /// Of `far_blocks`, the last `late_blocks` are late.
  CELLAR_HD static key_list of(sequence_view<S> const& from, int head, sequence_step const& step, i64 far_blocks, i64 late_blocks = 0) {
    key_list k;
    k.sinks = step.length < from.map.sinks ? step.length : from.map.sinks;
    k.outliers = from.outliers(head).count * S::block_tokens;
    i64 const begin = from.position(step.sealed);
    k.tail_begin = begin < from.map.sinks ? from.map.sinks : begin;
    k.tail = step.length > k.tail_begin ? step.length - k.tail_begin : 0;
    k.far = (far_blocks - late_blocks) * S::block_tokens;
    k.late = late_blocks * S::block_tokens;
    return k;
  }
  CELLAR_HD i64 near() const { return sinks + outliers + tail; }
  CELLAR_HD i64 near_chunks() const { return ceil_div(near(), Chunk); }
  CELLAR_HD i64 early_chunks() const { return near_chunks() + ceil_div(far, Chunk); }
  CELLAR_HD i64 chunks() const { return early_chunks() + ceil_div(late, Chunk); }
  /// Chunks of a span, of `spans` of them: one is spare where early and late ones each have a last span that is not full.
  CELLAR_HD i64 chunks_of_span(int spans) const { return ceil_div(chunks(), late > 0 ? spans - 1 : spans); }
  CELLAR_HD int early_spans(int spans) const {
    i64 const each = chunks_of_span(spans);
    return each == 0 ? 0 : int(ceil_div(early_chunks(), each));
  }
  /// Spans that have chunks.
  CELLAR_HD int filled_spans(int spans) const {
    i64 const each = chunks_of_span(spans);
    return each == 0 ? 0 : early_spans(spans) + int(ceil_div(chunks() - early_chunks(), each));
  }

  struct place {
    bool is_far;
    i64 first;  // token, of the near or of the far ones
    int count;
  };
  CELLAR_HD place place_of(i64 chunk) const {
    bool const is_far = chunk >= near_chunks(), is_late = chunk >= early_chunks();
    i64 const first = is_late ? far + (chunk - early_chunks()) * Chunk : is_far ? (chunk - near_chunks()) * Chunk : chunk * Chunk;
    i64 const left = (is_late ? far + late : is_far ? far : near()) - first;
    return {is_far, first, int(left < Chunk ? left : Chunk)};
  }
};

/// Attention of some of a group's query rows to one span of its keys.
///
/// Shapes      query(row, channel) of `rows` rows, at most Rows, times the softmax scale, from row first_row of the step's on; written: their partials of
///             this span, late ones after the early ones
/// Requires    as attend_part, without a limit on what `far` returns, and blocks in any order: `far` is called by any member; span_sizes::shared_bytes of
///             shared memory; two spans or more where blocks are late; samples: of the list's blocks, by place, where the scheme samples
/// Effects     a body over a team; nothing is written for a span without chunks (key_list::filled_spans)
/// Complexity  O(rows * tokens of the span * (head_dim + value_dim))
template <int Rows, team Team, offloading_scheme S, class Query, class Far>
CELLAR_HD void attend_span(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, row_view<logical_block const> blocks, bool every,
                           span_choice const& choice, Query const& query, i64 first_row, int rows, i64 group, span_partials<S> const& to, Far const& far,
                           [[maybe_unused]] row_samples const& samples = {}) {
  using sizes = span_sizes<S, Rows>;
  using near_scalar = typename S::near_scalar;
  using variant_type = typename S::attention;
  constexpr int D = S::head_dim, V = S::value_dim, W = sizes::W, chunk = sizes::chunk, stride = sizes::stride, value_stride = sizes::value_stride;
  constexpr int shares = sizes::shares;
  constexpr bool in_keys = sizes::in_keys;
  constexpr bool rotates_keys = sizes::rotates_keys, rotates_values = sizes::rotates_values;
  auto const list = key_list<S, chunk>::of(from, head, step, attended_blocks(from, step, blocks, every), choice.late_blocks);
  int const span = choice.is_late ? list.early_spans(to.spans) + choice.span : choice.span;
  i64 const each = list.chunks_of_span(to.spans), begin = choice.span * each + (choice.is_late ? list.early_chunks() : 0);
  i64 const limit = choice.is_late ? list.chunks() : list.early_chunks(), end = begin + each < limit ? begin + each : limit;
  if (begin >= end) return;  // the same on every member
  variant_type const variant{};

  float* const keys = shared_array<float>(t, sizes::decoded);  // (token, channel)
  float* const values = in_keys ? keys : keys + chunk * stride;
  float* const products = shared_array<float>(t, i64{shares} * Rows * chunk);  // (share, row, token)
  float* const weights = shared_array<float>(t, i64{Rows} * chunk);            // (token, row)
  float* const near_queries = shared_array<float>(t, sizes::queries);          // (row, channel)
  float* const far_queries = rotates_keys ? near_queries + Rows * D : near_queries;
  float* const near_sums = shared_array<float>(t, sizes::sums);  // (row, channel)
  float* const far_sums = rotates_values ? near_sums + Rows * W : near_sums;
  float* const tops = shared_array<float>(t, Rows);                   // largest logit so far
  float* const totals = shared_array<float>(t, Rows);                 // sum of weights
  float* const shrinks = shared_array<float>(t, Rows);                // of what was summed before this chunk
  auto** const key_codes = shared_array<std::byte const*>(t, chunk);  // of each token group
  auto** const key_scales = shared_array<std::byte const*>(t, chunk);
  auto** const value_codes = shared_array<std::byte const*>(t, chunk);
  auto** const value_scales = shared_array<std::byte const*>(t, chunk);
  i64* const all_positions = shared_array<i64>(t, 2 * chunk);  // of this chunk and of the next; -1: attended elsewhere

  for (int i = int(t.rank()); i < Rows * D; i += int(t.size())) {
    float const q = i / D < rows ? query(i / D, i % D) : 0.0f;
    near_queries[i] = q;
    if constexpr (rotates_keys) far_queries[i] = q;
  }
  for (int i = int(t.rank()); i < sizes::sums; i += int(t.size())) near_sums[i] = 0;
  for (int r = int(t.rank()); r < Rows; r += int(t.size())) tops[r] = -infinity, totals[r] = 0;
  if constexpr (rotates_keys) from.key_codec(head, 0).rotate(t, matrix_view<float, D>{far_queries, Rows});
  t.sync();
  [[maybe_unused]] float* all_lengths = nullptr;           // of this chunk's far keys and of the next one's
  [[maybe_unused]] sampling_row* sampling_rows = nullptr;  // (row)
  if constexpr (is_sampled<S>) {
    all_lengths = shared_array<float>(t, 2 * chunk);
    sampling_rows = shared_array<sampling_row>(t, Rows);
    for (int r = int(t.rank()); r < Rows; r += int(t.size())) sampling_rows[r] = from.summary(head, 0).template row_of<D>(near_queries + r * D);
  }

  auto const outliers = from.outliers(head);
  using chunk_place = typename key_list<S, chunk>::place;
  // Where a chunk's rows lie.
  auto const locate = [&](chunk_place const& at_chunk, int which) {  // of the two chunks that are known
    i64* const positions = all_positions + which * chunk;
    bool const is_far = at_chunk.is_far;
    i64 const first = at_chunk.first;
    int const n = at_chunk.count;
    if (is_far) {
      auto const locate = [&](int token_group, std::byte const** codes, std::byte const** scales, bool is_key) {
        for (int g = int(t.rank()); g * token_group < n; g += int(t.size())) {
          i64 const token = first + i64{g} * token_group, i = token / S::block_tokens, row = token % S::block_tokens / token_group;
          block_parts<std::byte const> const parts = far(i, every ? logical_block(i) : blocks[i]);
          auto const& mine = is_key ? parts.keys : parts.values;
          codes[g] = mine.codes + row * mine.code_stride;
          scales[g] = mine.scales + row * mine.scale_stride;
        }
      };
      locate(sizes::key_group, key_codes, key_scales, true);
      if constexpr (!in_keys) locate(sizes::value_group, value_codes, value_scales, false);
      for (int i = int(t.rank()); i < n; i += int(t.size())) {
        i64 const token = first + i, at = token / S::block_tokens;
        auto const block = every ? logical_block(at) : blocks[at];
        i64 below = 0;  // outliers before it: they ascend where anything is far
        for (i64 end = outliers.count; below < end;) {
          i64 const middle = below + (end - below) / 2;
          if (outliers[middle] < block)
            below = middle + 1;
          else
            end = middle;
        }
        positions[i] = below < outliers.count && outliers[below] == block ? -1 : from.position(number(block)) + token % S::block_tokens;
        if constexpr (is_sampled<S>)
          all_lengths[which * chunk + i] = from.summary(head, 0).length_of(from.tile(number(block), head), int(number(block) % S::summary::tile_blocks));
      }
    } else {
      for (int i = int(t.rank()); i < n; i += int(t.size())) {
        i64 const token = first + i;
        if (i64 const o = token - list.sinks; o >= 0 && o < list.outliers) {
          key_codes[i] = reinterpret_cast<std::byte const*>(from.outlier_row(head, 0, o / S::block_tokens, o % S::block_tokens));
          if constexpr (!in_keys) value_codes[i] = reinterpret_cast<std::byte const*>(from.outlier_row(head, 1, o / S::block_tokens, o % S::block_tokens));
          positions[i] = from.position(number(outliers[o / S::block_tokens])) + o % S::block_tokens;
        } else {
          i64 const position = o < 0 ? token : list.tail_begin + (o - list.outliers);
          key_codes[i] = reinterpret_cast<std::byte const*>(from.near_row(head, 0, position));
          if constexpr (!in_keys) value_codes[i] = reinterpret_cast<std::byte const*>(from.near_row(head, 1, position));
          positions[i] = position;
        }
      }
    }
  };
  // Rows as they are stored, by eight channels: a member reads its pieces of the next chunk before it works on this one.
  constexpr int sides = in_keys ? 1 : 2, key_pieces = D / 8, value_pieces = in_keys ? 0 : V / 8, ahead = in_keys ? 8 : 4;
  constexpr int pieces = key_pieces > value_pieces ? key_pieces : value_pieces;
  using value_codec_type = codec_of_values<S>;
  constexpr bool reads_pieces = piecewise_codec<typename S::key_codec> && piecewise_codec<value_codec_type>;
  cellar::detail::plain_pieces<near_scalar, void> const near_codec;
  auto const key_codec = from.key_codec(head, 0);
  auto const value_codec = from.value_codec(head, 0);
  constexpr int most_words = [] {
    int most = cellar::detail::plain_pieces<near_scalar, void>::piece_words;
    if constexpr (reads_pieces) {
      most = S::key_codec::piece_words > most ? S::key_codec::piece_words : most;
      most = value_codec_type::piece_words > most ? value_codec_type::piece_words : most;
    }
    return most;
  }();
  struct held_piece {
    std::uint32_t words[sides][most_words];  // of the key and of the value
  };
  auto const read_piece = [&](bool is_far, int i, held_piece& to_piece) {
    int const token = i / pieces, piece = i % pieces, channel = piece * 8;
    if constexpr (reads_pieces)
      if (is_far) {
        if (piece < key_pieces) key_codec.read_piece(key_codes[token], key_scales[token], D, channel, to_piece.words[0]);
        if constexpr (!in_keys)
          if (piece < value_pieces) value_codec.read_piece(value_codes[token], value_scales[token], V, channel, to_piece.words[1]);
      }
    if (!is_far) {
      if (piece < key_pieces) near_codec.read_piece(key_codes[token], nullptr, D, channel, to_piece.words[0]);
      if constexpr (!in_keys)
        if (piece < value_pieces) near_codec.read_piece(value_codes[token], nullptr, V, channel, to_piece.words[1]);
    }
  };
  auto const decode_piece = [&](bool is_far, int i, held_piece const& some) {
    for (int side = 0; side < sides; ++side) {
      int const piece = i % pieces;
      if (piece >= (side == 0 ? key_pieces : value_pieces)) continue;
      float x[8];
      if constexpr (reads_pieces)
        if (is_far) {
          if (side == 0)
            key_codec.decode_piece(some.words[0], D, piece * 8, x);
          else if constexpr (!in_keys)
            value_codec.decode_piece(some.words[1], V, piece * 8, x);
        }
      if (!is_far) near_codec.decode_piece(some.words[side], D, piece * 8, x);
      float* const at = (side == 0 ? keys + i / pieces * stride : values + i / pieces * value_stride) + piece * 8;
      store_four(at, x[0], x[1], x[2], x[3]);
      store_four(at + 4, x[4], x[5], x[6], x[7]);
    }
  };
  held_piece held[ahead];
  auto const read_ahead = [&](chunk_place const& p) {
    if (p.is_far && !reads_pieces) return;
    for (int k = 0; k < ahead; ++k)
      if (int const i = int(t.rank()) + k * int(t.size()); i < p.count * pieces) read_piece(p.is_far, i, held[k]);
  };

  locate(list.place_of(begin), 0);
  t.sync();
  read_ahead(list.place_of(begin));
  t.sync();  // before the next chunk's places are written over these; within the loop other barriers see to that
  for (i64 c = begin; c < end; ++c) {
    auto const place = list.place_of(c);
    bool const is_far = place.is_far;
    i64 const first = place.first;
    int const n = place.count;
    int const which = int((c - begin) % 2);
    i64 const* const positions = all_positions + which * chunk;
    bool const reads_now = (is_far && !reads_pieces) || n * pieces > ahead * int(t.size());  // the same on every member

    // Rows in f32.
    if (!is_far || reads_pieces) {
      for (int k = 0; k < ahead; ++k)
        if (int const i = int(t.rank()) + k * int(t.size()); i < n * pieces) decode_piece(is_far, i, held[k]);
      for (int i = int(t.rank()) + ahead * int(t.size()); i < n * pieces; i += int(t.size())) {
        held_piece now;
        read_piece(is_far, i, now);
        decode_piece(is_far, i, now);
      }
    } else {  // a member takes a token group
      auto const decode = [&]<int C>(auto const& codec_at, std::byte const* const* codes, std::byte const* const* scales, matrix_view<float, C> rows_of) {
        using codec_type = std::remove_cvref_t<decltype(codec_at(i64{0}))>;
        constexpr int token_group = codec_type::token_group;
        for (int g = int(t.rank()); g * token_group < n; g += int(t.size())) {
          auto alone = cellar::detail::alone_in(t);
          i64 const token = first + i64{g} * token_group, at = token / S::block_tokens;
          auto const block = every ? logical_block(at) : blocks[at];
          auto const codec = codec_at(from.position(number(block)) + token % S::block_tokens);
          row_parts<std::byte const> const row{codes[g], scales[g], 0, 0};
          matrix_view<float, C> const decoded{rows_of.row(i64{g} * token_group), token_group, rows_of.stride, C};
          if constexpr (attends_rotated<S, codec_type>)
            codec.decode_rotated(alone, row, decoded);
          else
            codec.decode(alone, row, decoded);
        }
      };
      decode([&](i64 position) { return from.key_codec(head, position); }, key_codes, key_scales, matrix_view<float, D>{keys, chunk, stride, D});
      if constexpr (!in_keys)
        decode([&](i64 position) { return from.value_codec(head, position); }, value_codes, value_scales,
               matrix_view<float, V>{values, chunk, value_stride, V});
    }
    if (reads_now) t.sync();  // before the next chunk's places are written over this one's
    if (c + 1 < end) locate(list.place_of(c + 1), 1 - which);
    t.sync();
    if (c + 1 < end) read_ahead(list.place_of(c + 1));

    // Logits: a member takes a share of one token's channels, for all rows.
    float const* const q = is_far ? far_queries : near_queries;
    for (int i = int(t.rank()); i < chunk * shares; i += int(t.size())) {
      int const token = i % chunk, share = i / chunk;
      if (token >= n) continue;
      float s[Rows] = {};
      for (int channel = share * (D / shares); channel < (share + 1) * (D / shares); channel += 4) {
        auto const k = load_aligned<16>(keys + token * stride + channel);
        for (int r = 0; r < Rows; ++r) {
          auto const x = load_aligned<16>(q + r * D + channel);
          for (int j = 0; j < 4; ++j) s[r] += scalar_of<float>(x, j) * scalar_of<float>(k, j);
        }
      }
      for (int r = 0; r < Rows; ++r) products[(share * Rows + r) * chunk + token] = s[r];
    }
    t.sync();

    // Weights: a warp takes a row.
    auto w = t.warp();
    constexpr int width = int(decltype(w)::width);
    for (int r = int(w.index()); r < Rows; r += int(w.count())) {
      i64 const q_position = step.length - step.new_tokens + (int(first_row) + r) / int(group);
      float mine[ceil_div(chunk, width)];
      float top = -infinity;
      for (int k = 0; k < int(ceil_div(chunk, width)); ++k) {
        int const token = k * width + int(w.lane());
        float x = -infinity;
        if (token < n && r < rows && positions[token] >= 0 && variant.visible(q_position, positions[token])) {
          x = 0;
          for (int share = 0; share < shares; ++share) x += products[(share * Rows + r) * chunk + token];
          float const product = x;
          x = variant.logit(x, q_position, positions[token]);
          if constexpr (is_sampled<S>)
            if (is_far && samples.bits)
              x = samples.has(first_row + r, first + token) ? sampled_logit<S>(x, product, sampling_rows[r], all_lengths[which * chunk + token]) : -infinity;
        }
        mine[k] = x;
        top = maximum{}(top, x);
      }
      top = w.reduce(top, maximum{});
      float const before = tops[r], reference = maximum{}(before, top);
      float sum = 0;
      for (int k = 0; k < int(ceil_div(chunk, width)); ++k) {
        float const x = mine[k] == -infinity ? 0.0f : exponential(mine[k] - reference);
        int const token = k * width + int(w.lane());
        if (token < chunk) weights[token * Rows + r] = x;
        sum += x;
      }
      sum = w.reduce(sum, plus{});
      w.sync();
      if (w.lane() == 0) {
        float const shrink = reference == -infinity ? 1.0f : exponential(before - reference);
        shrinks[r] = shrink;
        totals[r] = totals[r] * shrink + sum;
        tops[r] = reference;
      }
    }
    t.sync();

    // Sums: a member takes a channel, for all rows.
    float* const here = is_far ? far_sums : near_sums;
    for (int channel = int(t.rank()); channel < W; channel += int(t.size())) {
      float s[Rows] = {};
      for (int token = 0; token < n; ++token) {
        float const v = values[token * value_stride + channel];
        auto const w4 = load_aligned<4 * Rows>(weights + token * Rows);
        for (int r = 0; r < Rows; ++r) s[r] += scalar_of<float>(w4, r) * v;
      }
      for (int r = 0; r < Rows; ++r) {
        if constexpr (rotates_values) {
          near_sums[r * W + channel] *= shrinks[r];
          far_sums[r * W + channel] *= shrinks[r];
          here[r * W + channel] += s[r];
        } else {
          here[r * W + channel] = here[r * W + channel] * shrinks[r] + s[r];
        }
      }
    }
    t.sync();
  }

  for (int i = int(t.rank()); i < rows * W; i += int(t.size())) {
    to.sum(first_row + i / W, span, 0)[i % W] = near_sums[i];
    if constexpr (rotates_values) to.sum(first_row + i / W, span, 1)[i % W] = far_sums[i];
  }
  for (int r = int(t.rank()); r < rows; r += int(t.size())) to.state(first_row + r, span) = {tops[r], totals[r]};
}

/// Shared memory of finish_spans.
template <offloading_scheme S, int Rows>
inline constexpr i64 finish_bytes = round_up(i64{span_partials<S>::copies} * Rows * summed_channels<S> * 4, 16) +
                                    round_up(i64{Rows} * (most_spans + 1) * 4, 16);

/// Merges the spans of some query rows in ascending order, and the remainder, and writes the output; and what was missed.
///
/// Shapes    rows first_row, ..., first_row + rows - 1 of the partials, at most Rows; not_chosen of these rows
/// Requires  finish_bytes of shared memory
/// Effects   a body over a team; write(row, channel, value) is called once for each element
template <int Rows, team Team, offloading_scheme S, class Write>
CELLAR_HD void finish_spans(Team& t, sequence_view<S> const& from, int head, span_partials<S> const& partials, int filled, i64 first_row, int rows,
                            attend_rest<S> const& not_chosen, Write const& write) {
  constexpr int V = S::value_dim, W = summed_channels<S>;
  constexpr bool is_by_class = remainder_by_class<typename S::remainder>;
  using all = span_partials<S>;
  auto const& remainder = not_chosen.part;
  float* const sums = shared_array<float>(t, i64{all::copies} * Rows * W);
  float* const weights = shared_array<float>(t, Rows * (most_spans + 1));  // of spans, and of the remainder's value; over the whole
  auto w = t.warp();
  for (int r = int(w.index()); r < Rows; r += int(w.count())) {  // a warp takes a row
    attention::softmax_state rest;
    if constexpr (S::remainder::estimates)
      if (remainder.states && r < rows && (is_by_class || is_finite(from.mean_value(head)[0])) && remainder.states[r].l > 0) rest = remainder.states[r];
    float top = rest.m;
    if (r < rows)
      for (int s = int(w.lane()); s < filled; s += int(w.width)) top = maximum{}(top, partials.state(first_row + r, s).m);
    top = w.reduce(top, maximum{});
    float total = 0;
    for (int s = int(w.lane()); s < filled; s += int(w.width)) {
      attention::softmax_state const state = r < rows ? partials.state(first_row + r, s) : attention::softmax_state{};
      float const weight = state.l > 0 ? exponential(state.m - top) : 0.0f;
      weights[r * (most_spans + 1) + s] = weight;
      total += weight * state.l;
    }
    float const rest_weight = rest.l > 0 ? exponential(rest.m - top) : 0.0f;
    total = w.reduce(total, plus{});
    if constexpr (S::estimates_missed)
      if (remainder.states && not_chosen.missed && r < rows && w.lane() == 0) not_chosen.missed[r] = attention::share_of(remainder.states[r], {top, total});
    total += rest_weight * rest.l;
    float const scale = total > 0 ? 1.0f / total : 0.0f;
    w.sync();
    for (int s = int(w.lane()); s < filled; s += int(w.width)) weights[r * (most_spans + 1) + s] *= scale;
    if (w.lane() == 0) weights[r * (most_spans + 1) + most_spans] = rest_weight * (is_by_class ? 1.0f : rest.l) * scale;
  }
  t.sync();
  for (int i = int(t.rank()); i < all::copies * Rows * W; i += int(t.size())) {
    int const copy = i / (Rows * W), r = i / W % Rows, c = i % W;
    float sum = 0;
    if (r < rows) {
      constexpr int ahead = 8;  // loads that do not wait for each other
      float const* const weight = weights + r * (most_spans + 1);
      for (int s = 0; s < filled; s += ahead) {
        float x[ahead];
        for (int j = 0; j < ahead; ++j) x[j] = s + j < filled ? partials.sum(first_row + r, s + j, copy)[c] : 0.0f;
        for (int j = 0; j < ahead; ++j) sum += s + j < filled ? weight[s + j] * x[j] : 0.0f;
      }
      if constexpr (S::remainder::estimates)
        if (copy == 0 && weight[most_spans] > 0 && c < V) sum += weight[most_spans] * (is_by_class ? remainder.sums[r * W + c] : from.mean_value(head)[c]);
    }
    sums[i] = sum;
  }
  if constexpr (all::copies == 2) from.value_codec(head, 0).rotate_back(t, matrix_view<float, W>{sums + Rows * W, Rows});
  t.sync();
  for (int i = int(t.rank()); i < rows * V; i += int(t.size())) {
    int const at = i / V * W + i % V;
    write(first_row + i / V, i % V, all::copies == 2 ? sums[at] + sums[Rows * W + at] : sums[at]);
  }
}

}  // namespace cellar::operation
