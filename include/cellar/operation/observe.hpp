#pragma once
#include "cellar/attention/softmax_state.hpp"
#include "cellar/core/vector.hpp"
#include "cellar/operation/memory.hpp"

/// The attention that keys have from some queries: sum over the queries of softmax(q . k), for policies that learn or choose by it. In two passes over the
/// keys, for up to observed_rows queries at a time: their softmax states, then the sums.
namespace cellar::inline CELLAR_ABI::operation {

inline constexpr i64 observed_rows = 16;  ///< Query rows at a time.
inline constexpr i64 observed_keys = 64;  ///< Keys at a time.

/// A key's stored row, and its position.
struct observed_key {
  std::byte const* row;
  i64 position;
};

/// Scratch of both passes, shared by a team.
struct observation {
  std::byte const** rows = nullptr;            // [observed_keys]
  i64* positions = nullptr;                    // [observed_keys]
  float* logits = nullptr;                     // [observed_rows, observed_keys]
  attention::softmax_state* states = nullptr;  // [observed_rows]

  static constexpr i64 bytes = observed_keys * i64(sizeof(std::byte const*) + sizeof(i64)) + observed_rows * observed_keys * 4 + observed_rows * 8;
  /// 16-byte aligned memory of that size.
  CELLAR_HD static observation at(std::byte* memory) {
    auto* const rows = reinterpret_cast<std::byte const**>(memory);
    auto* const positions = reinterpret_cast<i64*>(rows + observed_keys);
    auto* const logits = reinterpret_cast<float*>(positions + observed_keys);
    return {rows, positions, logits, reinterpret_cast<attention::softmax_state*>(logits + observed_rows * observed_keys)};
  }
};

/// The queries that observe: rows [first, first + rows.count) of a group's, row = token * group + head.
template <int HeadDim>
struct observing_queries {
  matrix_view<float const, HeadDim> rows;  ///< At most observed_rows, times the softmax scale.
  i64 first = 0, group = 1;
  i64 first_position = 0;  ///< Of row 0.
  i64 reach = any_distance;

  CELLAR_HD i64 position(i64 row) const { return first_position + (first + row) / group; }
};

namespace detail {

/// Logits of keys [begin, begin + count), as the variant bends them; -infinity where a query does not see the key, or it is out of reach.
CELLAR_CALLS_HOST
template <class Scalar, class Variant, int D, team Team, class KeyAt>
CELLAR_HD void observe_logits(Team& t, i64 begin, i64 count, KeyAt const& key_at, observing_queries<D> const& queries, observation const& s) {
  t.sync();
  for (i64 i = t.rank(); i < count; i += t.size()) {
    observed_key const key = key_at(begin + i);
    s.rows[i] = key.row;
    s.positions[i] = key.position;
  }
  t.sync();
  if (cellar::detail::kernels_of(t)) {
    dot_rows<Scalar>(t, queries.rows, row_pointers{s.rows, count}, s.logits, observed_keys);
  } else {
    for (i64 i = t.rank(); i < queries.rows.rows * count; i += t.size()) {
      float sum = 0;
      for (int c = 0; c < D; ++c) sum += queries.rows(i / count, c) * cellar::detail::load_float<Scalar>(s.rows[i % count] + c * int(sizeof(Scalar)));
      s.logits[i / count * observed_keys + i % count] = sum;
    }
  }
  t.sync();
  Variant const variant{};
  for (i64 i = t.rank(); i < queries.rows.rows * count; i += t.size()) {
    float& x = s.logits[i / count * observed_keys + i % count];
    i64 const q = queries.position(i / count), k = s.positions[i % count];
    x = variant.visible(q, k) && q - k < queries.reach ? variant.logit(x, q, k) : -infinity;
  }
  t.sync();
}

}  // namespace detail

/// The softmax states of the queries over keys [0, keys).
///
/// Requires    key_at(i) gives an observed_key, of a row of Scalar
/// Effects     a body over a team; writes s.states
/// Complexity  O(rows * keys * head_dim)
CELLAR_CALLS_HOST
template <class Scalar, class Variant, int D, team Team, class KeyAt>
CELLAR_HD void observe_states(Team& t, i64 keys, KeyAt const& key_at, observing_queries<D> const& queries, observation const& s) {
  for (i64 r = t.rank(); r < queries.rows.rows; r += t.size()) s.states[r] = {};
  for (i64 begin = 0; begin < keys; begin += observed_keys) {
    i64 const count = keys - begin < observed_keys ? keys - begin : observed_keys;
    detail::observe_logits<Scalar, Variant>(t, begin, count, key_at, queries, s);
    for (i64 r = t.rank(); r < queries.rows.rows; r += t.size()) {
      float const* const row = s.logits + r * observed_keys;
      auto const alone = cellar::detail::alone_in(t);
      float const top = maximum{}(s.states[r].m, largest_of(alone, row, count));
      if (top == -infinity) continue;
      s.states[r] = {top, s.states[r].l * exponential(s.states[r].m - top) + sum_of_exponentials(alone, row, count, top)};
    }
  }
  t.sync();
}

/// Adds the queries' attention to each of the keys [first, last): add(i, weight), by one member for a key, in the same order for every team.
///
/// Requires    s.states as observe_states wrote them, of all keys. The rest as there
CELLAR_CALLS_HOST
template <class Scalar, class Variant, int D, team Team, class KeyAt, class Add>
CELLAR_HD void add_attention(Team& t, i64 first, i64 last, KeyAt const& key_at, observing_queries<D> const& queries, observation const& s, Add const& add) {
  for (i64 begin = first; begin < last; begin += observed_keys) {
    i64 const count = last - begin < observed_keys ? last - begin : observed_keys;
    detail::observe_logits<Scalar, Variant>(t, begin, count, key_at, queries, s);
    for (i64 i = t.rank(); i < count; i += t.size()) {
      float sum = 0;
      for (i64 r = 0; r < queries.rows.rows; ++r)
        if (s.states[r].l > 0) sum += exponential(s.logits[r * observed_keys + i] - s.states[r].m) / s.states[r].l;
      add(begin + i, sum);
    }
  }
  t.sync();
}

/// The keys that every step attends to, in the order of sinks, outliers, tail: key_at of the functions above.
template <offloading_scheme S>
struct near_keys {
  sequence_view<S> from;
  int head;
  row_view<logical_block const> outliers;
  i64 sinks, kept, begin, count;  ///< Of them, tokens of outliers, the tail's first position, all.

  CELLAR_HD static near_keys of(sequence_view<S> const& from, int head, sequence_step const& step) {
    auto const outliers = from.outliers(head);
    i64 const sinks = step.length < from.map.sinks ? step.length : from.map.sinks, kept = outliers.count * S::block_tokens;
    i64 const begin = from.position(step.sealed);
    return {from, head, outliers, sinks, kept, begin, sinks + kept + (step.length > begin ? step.length - begin : 0)};
  }
  CELLAR_HD observed_key operator()(i64 i) const {
    constexpr i64 B = S::block_tokens;
    if (i64 const k = i - sinks; k >= 0 && k < kept)
      return {reinterpret_cast<std::byte const*>(from.outlier_row(head, 0, k / B, k % B)), from.position(number(outliers[k / B])) + k % B};
    i64 const p = i < sinks ? i : begin + (i - sinks - kept);
    return {reinterpret_cast<std::byte const*>(from.near_row(head, 0, p)), p};
  }
};

/// log(sum of exp(logit)) of a step's query rows over what is near, -infinity where a row sees nothing of it.
///
/// Shapes      queries [step.new_tokens * group, head_dim] f32, times the softmax scale; returned [rows], in the scratch
/// Requires    the step's rows are near; near_sums_bytes(rows) of scratch, 16-byte aligned
/// Effects     a body over a team
/// Complexity  O(query rows * near tokens * head_dim)
template <team Team, offloading_scheme S>
CELLAR_HD float const* near_log_sums(Team& t, sequence_view<S> const& from, int head, sequence_step const& step, matrix_view<float const, S::head_dim> queries,
                                     i64 group, std::byte* scratch) {
  auto const keys = near_keys<S>::of(from, head, step);
  auto const s = observation::at(scratch);
  auto* const sums = reinterpret_cast<float*>(scratch + observation::bytes);
  for (i64 r = 0; r < queries.rows; r += observed_rows) {
    i64 const rows = queries.rows - r < observed_rows ? queries.rows - r : observed_rows;
    observing_queries<S::head_dim> const some{{queries.row(r), rows, queries.stride}, r, group, step.length - step.new_tokens};
    observe_states<typename S::near_scalar, typename S::attention>(t, keys.count, keys, some, s);
    for (i64 i = t.rank(); i < rows; i += t.size()) sums[r + i] = s.states[i].l > 0 ? s.states[i].m + std::log(s.states[i].l) : -infinity;
    t.sync();
  }
  return sums;
}
CELLAR_HD constexpr i64 near_sums_bytes(i64 rows) { return round_up(observation::bytes + rows * i64(sizeof(float)), 16); }

/// How far the queries of a prompt reach, for the policy of a scheme that observes them.
template <offloading_scheme S>
CELLAR_HD constexpr i64 observed_reach() {
  if constexpr (attention_outlier_rule<typename S::outliers>)
    return S::outliers::reach;
  else if constexpr (observing_summary<typename S::summary, S::head_dim>)
    return S::summary::reach;
  else
    return any_distance;
}

}  // namespace cellar::operation
