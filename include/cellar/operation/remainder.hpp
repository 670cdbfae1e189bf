#pragma once
#include "cellar/operation/attend.hpp"

namespace cellar::inline CELLAR_ABI::operation {

/// Scratch of a remainder by class for one KV head; nothing for other schemes.
template <offloading_scheme S>
struct class_workspace {
  static constexpr bool is_needed = remainder_by_class<typename S::remainder>;
  static constexpr int classes = is_needed ? memory_map<S>::value_classes() : 0;
  static constexpr int rows = 4;    ///< Query rows that read the means together.
  static constexpr int slices = 8;  ///< Runs of classes, summed apart and added in ascending order whatever the team's size.

  std::uint32_t* counts = nullptr;  ///< [class], blocks that are not chosen
  std::int32_t* blocks = nullptr;   ///< [class], one of them
  float* weights = nullptr;         ///< [class, row]
  float* sums = nullptr;            ///< [slice, row, channel]

  CELLAR_HD static constexpr i64 bytes() { return is_needed ? 4 * (round_up(i64{2 + rows} * classes, 4) + i64{slices} * rows * S::value_dim) : 0; }
  CELLAR_HD static class_workspace at(std::byte* memory) {
    auto* const weights = reinterpret_cast<float*>(memory);  // 16-byte aligned
    auto* const sums = weights + round_up(i64{2 + rows} * classes, 4);
    auto* const counts = reinterpret_cast<std::uint32_t*>(weights + i64{rows} * classes);
    return {counts, reinterpret_cast<std::int32_t*>(counts + classes), weights, sums};
  }
  /// Words of learn_class_values's scratch.
  static constexpr i64 words_to_learn(i64 blocks) { return is_needed ? classes + blocks : 0; }
};

namespace detail {

/// Calls f(block) for the far blocks that are neither chosen nor outliers, those of a member in ascending order.
template <team Team, offloading_scheme S, class F>
CELLAR_HD void for_rest(Team& t, sequence_view<S> const& from, int head, i64 blocks, row_view<logical_block const> chosen, F const& f) {
  auto const outliers = from.outliers(head);
  i64 next_chosen = 0, next_outlier = 0;
  for (i64 b = t.rank(); b < blocks; b += t.size()) {
    while (next_chosen < chosen.count && number(chosen[next_chosen]) < b) ++next_chosen;
    while (next_outlier < outliers.count && number(outliers[next_outlier]) < b) ++next_outlier;
    bool const is_chosen = next_chosen < chosen.count && number(chosen[next_chosen]) == b;
    bool const is_outlier = next_outlier < outliers.count && number(outliers[next_outlier]) == b;
    if (!is_chosen && !is_outlier) f(b);
  }
}

template <offloading_scheme S>
CELLAR_HD int class_of(sequence_view<S> const& from, int head, i64 block) {
  return typename S::summary{}.class_of(from.tile(block, head), int(block % memory_map<S>::tile_blocks));
}

/// A weight for each class, and the weighted sum of the classes' mean values.
template <team Team, offloading_scheme S>
CELLAR_HD void estimate_by_class(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, matrix_view<float const> logits,
                                 row_view<logical_block const> chosen, attend_partial<S> const& to, class_workspace<S> const& space) {
  using sizes = class_workspace<S>;
  constexpr int D = S::value_dim, W = summed_channels<S>, run = 4, tile = sizes::rows;
  typename S::attention const variant{};
  i64 const group = logits.rows / step.new_tokens;
  for (int c = int(t.rank()); c < sizes::classes; c += int(t.size())) space.counts[c] = 0;
  t.sync();
  for_rest(t, from, head, step.sealed, chosen, [&](i64 b) {
    int const c = class_of(from, head, b);
    if (t.atomic_add(space.counts + c, std::uint32_t(1)) == 0) space.blocks[c] = std::int32_t(b);
  });
  t.sync();
  for (i64 first = 0; first < logits.rows; first += tile) {
    int const rows = int(logits.rows - first < tile ? logits.rows - first : i64{tile});
    for (int r = 0; r < tile; ++r) {
      attention::softmax_state rest;
      i64 const q_position = step.length - step.new_tokens + (first + r) / group;
      for (int c = int(t.rank()); c < sizes::classes; c += int(t.size())) {
        float x = -infinity;
        if (r < rows && space.counts[c] > 0 && is_finite(from.mean_value(head, c)[0]))
          if (float const logit = logits(first + r, space.blocks[c]); is_finite(logit)) x = variant.logit(logit, q_position, from.position(space.blocks[c]));
        space.weights[c * tile + r] = x;
        rest.m = maximum{}(rest.m, x);
      }
      rest.m = t.reduce(rest.m, maximum{});
      for (int c = int(t.rank()); c < sizes::classes; c += int(t.size())) {
        float& weight = space.weights[c * tile + r];
        weight = weight == -infinity ? 0.0f : float(space.counts[c]) * float(S::block_tokens) * exponential(weight - rest.m);
        rest.l += weight;
      }
      rest.l = t.reduce(rest.l, plus{});
      if (t.rank() == 0 && r < rows) to.states[first + r] = rest;
    }
    t.sync();
    // Each slice's sums in the order of its classes, by one member for all channels or by several for a few each.
    auto const sum = [&](int slice, int channel, [[maybe_unused]] auto width) {
      constexpr int channels = decltype(width)::value;
      float s[tile][channels] = {};
      int const last = int(i64{sizes::classes} * (slice + 1) / sizes::slices);
      for (int c = int(i64{sizes::classes} * slice / sizes::slices); c < last; ++c) {
        auto const w = load_aligned<4 * tile>(space.weights + c * tile);
        float weight[tile];
        bool has_weight = false;
        for (int r = 0; r < tile; ++r) {
          weight[r] = scalar_of<float>(w, r);
          has_weight |= weight[r] > 0;
        }
        if (!has_weight) continue;  // its mean may not be known
        float const* const value = from.mean_value(head, c) + channel;
        for (int r = 0; r < tile; ++r)
          for (int i = 0; i < channels; ++i) s[r][i] += weight[r] * value[i];
      }
      for (int r = 0; r < tile; ++r)
        for (int i = 0; i < channels; ++i) space.sums[(slice * tile + r) * D + channel + i] = s[r][i];
    };
    if (t.size() == 1)
      for (int slice = 0; slice < sizes::slices; ++slice) sum(slice, 0, std::integral_constant<int, D>{});
    else
      for (int i = int(t.rank()); i < sizes::slices * (D / run); i += int(t.size()))
        sum(i / (D / run), i % (D / run) * run, std::integral_constant<int, run>{});
    t.sync();
    for (int i = int(t.rank()); i < rows * W; i += int(t.size())) {
      float s = 0;
      for (int slice = 0; slice < sizes::slices && i % W < D; ++slice) s += space.sums[(slice * tile + i / W) * D + i % W];
      to.sums[first * W + i] = s;
    }
    t.sync();
  }
}

}  // namespace detail

/// The softmax state of the far blocks that are neither chosen nor outliers, by their summaries' logits, for every query row; and the weighted sum of values
/// that stands for them, where the remainder has more than one.
///
/// Shapes   logits [rows, blocks]; chosen ascending; to [rows], its sums only for a remainder by class
/// Requires workspace of class_workspace::bytes(), 16-byte aligned; logits as reduce_scores left them: outliers have none
/// Effects  a body over a team; may write over the logits
template <team Team, offloading_scheme S>
CELLAR_HD void estimate_remainder(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, matrix_view<float> logits,
                                  row_view<logical_block const> chosen, attend_partial<S> const& to, [[maybe_unused]] std::byte* workspace) {
  if constexpr (class_workspace<S>::is_needed) {
    detail::estimate_by_class(t, from, head, step, logits, chosen, to, class_workspace<S>::at(workspace));
  } else {
    typename S::attention const variant{};
    i64 const group = logits.rows / step.new_tokens;
    for (i64 r = 0; r < logits.rows; ++r) {
      float* const row = logits.row(r);
      if constexpr (plain_past<typename S::attention>) {  // all but what was chosen, as vectors
        for (i64 i = t.rank(); i < chosen.count; i += t.size()) row[number(chosen[i])] = -infinity;
        t.sync();
        float const top = t.reduce(largest_of(t, row, step.sealed), maximum{});
        if (is_finite(top)) {
          float const sum = t.reduce(sum_of_exponentials(t, row, step.sealed, top), plus{});
          if (t.rank() == 0) to.states[r] = {top, float(S::block_tokens) * sum};
          continue;
        }
      }
      i64 const q_position = step.length - step.new_tokens + r / group;
      auto const for_rest = [&](auto const& f) {
        detail::for_rest(t, from, head, step.sealed, chosen, [&](i64 b) {
          if (is_finite(row[b])) f(variant.logit(row[b], q_position, from.position(b)));
        });
      };
      attention::softmax_state rest;
      for_rest([&](float x) { rest.m = maximum{}(rest.m, x); });
      rest.m = t.reduce(rest.m, maximum{});
      for_rest([&](float x) { rest.l += float(S::block_tokens) * exponential(x - rest.m); });
      rest.l = t.reduce(rest.l, plus{});
      if (t.rank() == 0) to.states[r] = rest;
    }
    t.sync();
  }
}

/// The mean value of each class of a prompt's far blocks; NaN where a class has none.
///
/// Requires  the blocks' summaries are built; value_of(position, channel); scratch of words_to_learn(sealed); an int of shared memory for each member
/// Effects   writes the means; a body over a team, the same at every size: blocks are sorted by class, in ascending order, and summed in double
/// Complexity O(sealed * (head_dim + size) / size)
CELLAR_CALLS_HOST
template <team Team, offloading_scheme S, class Value>
CELLAR_HD void learn_class_values(Team& t, sequence_view<S> const& to, int head, i64 sealed, Value const& value_of, std::uint32_t* scratch) {
  constexpr int D = S::value_dim, classes = class_workspace<S>::classes;
  std::uint32_t *const next = scratch, *const order = scratch + classes;  // next: where a class's next block goes, and at the end where its blocks end
  int const rank = int(t.rank()), size = int(t.size());
  for (int c = rank; c < classes; c += size) next[c] = 0;
  t.sync();
  for (i64 b = rank; b < sealed; b += size) t.atomic_add(next + detail::class_of(to, head, b), std::uint32_t(1));
  t.sync();
  std::uint32_t before = 0;
  for (int first = 0; first < classes; first += size) {
    int const c = first + rank;
    std::uint32_t const n = c < classes ? next[c] : 0;
    std::uint32_t all = 0;
    std::uint32_t const at = t.scan(n, all);
    if (c < classes) next[c] = before + at;
    before += all;
  }
  int* const round = shared_array<int>(t, size);  // the classes of blocks that are placed together
  for (i64 first = 0; first < sealed; first += size) {
    i64 const b = first + rank;
    int const mine = b < sealed ? detail::class_of(to, head, b) : -1;
    round[rank] = mine;
    t.sync();
    int ahead = 0;
    bool is_last = true;
    for (int i = 0; i < size; ++i)
      if (round[i] == mine) {
        ahead += i < rank;
        is_last = is_last && i <= rank;
      }
    std::uint32_t const place = mine >= 0 ? next[mine] + std::uint32_t(ahead) : 0;
    t.sync();
    if (mine >= 0) {
      order[place] = std::uint32_t(b);
      if (is_last) next[mine] = place + 1;
    }
  }
  t.sync();
  for (i64 i = rank; i < i64{classes} * D; i += size) {
    int const c = int(i / D);
    std::uint32_t const begin = c > 0 ? next[c - 1] : 0, end = next[c];
    double sum = 0;
    for (std::uint32_t j = begin; j < end; ++j)
      for (int token = 0; token < S::block_tokens; ++token) sum += double(value_of(to.position(order[j]) + token, int(i % D)));
    to.mean_value(head, c)[i % D] = end > begin ? float(sum / double(i64(end - begin) * S::block_tokens)) : undefined;
  }
  t.sync();
}

}  // namespace cellar::operation
