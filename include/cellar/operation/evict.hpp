#pragma once
#include "cellar/operation/observe.hpp"

/// Eviction while decoding: blocks that leave the window stay near in place of those that were attended to least.
///
///   append    what the step before observed is counted; all but budget::outliers of the kept blocks go, the least attended first; blocks that leave the
///             window are kept too, until the next step
///   attend    the step's attention to what is near is observed
///
/// A step that is taken back, or appended again, changes neither sums nor what is kept.
namespace cellar::inline CELLAR_ABI::operation {

/// What a prompt's queries have attended to, of what stays near: kept blocks and tail.
///
/// Shapes      attention [step.length]
/// Requires    the kept blocks are chosen
/// Effects     a body over a team
template <team Team, offloading_scheme S>
CELLAR_HD void begin_eviction(Team&& t, sequence_view<S> const& to, int head, sequence_step const& step, float const* attention) {
  if (to.map.outliers == 0) return;
  auto const sums = to.attention_of(head);
  auto const kept = to.outliers(head);
  for (i64 i = t.rank(); i < kept.count; i += t.size()) {
    float sum = 0;
    for (i64 k = 0; k < S::block_tokens; ++k) sum += attention[to.position(number(kept[i])) + k];
    sums.kept[i] = sum;
  }
  for (i64 p = to.position(step.sealed) + t.rank(); p < step.length; p += t.size()) sums.near[to.near_index(p)] = attention[p];
  if (t.rank() == 0) *sums.length = -1;
  t.sync();
}

/// Keeps the blocks that leave the window, and evicts others. After the step's rows are near.
///
/// Effects     a body over a team
/// Complexity  O(kept) for each block that leaves
template <team Team, offloading_scheme S>
CELLAR_HD void evict(Team& t, sequence_view<S> const& to, int head, sequence_step const& step) {
  using map = memory_map<S>;
  if (step.new_tokens == 0 || to.map.outliers == 0) return;
  auto const sums = to.attention_of(head);
  auto* const ids = reinterpret_cast<logical_block*>(to.outlier_record(head));
  i64 const before = step.length - step.new_tokens, tail = to.position(step.sealed_before);
  i64 count = to.outliers(head).count;
  bool const counts = *sums.length == before;
  t.sync();
  if (counts) {
    for (i64 i = t.rank(); i < count; i += t.size())
      for (i64 k = 0; k < S::block_tokens; ++k) sums.kept[i] += sums.pending_kept[i * S::block_tokens + k];
    for (i64 p = tail + t.rank(); p < before; p += t.size()) sums.near[to.near_index(p)] += sums.pending_near[to.near_index(p)];
  }
  if (t.rank() == 0) *sums.length = -1;
  t.sync();
  auto const drop = [&](i64 i) {  // the last one takes its place
    --count;
    for (int side = 0; i < count && side < map::sides; ++side)
      for (i64 c = t.rank(); c < S::block_tokens * map::side_dim(side); c += t.size())
        to.outlier_row(head, side, i, 0)[c] = to.outlier_row(head, side, count, 0)[c];
    if (t.rank() == 0) {
      ids[i] = ids[count];
      sums.kept[i] = sums.kept[count];
      ids[count] = logical_block{-1};
    }
    t.sync();
  };
  for (i64 i = count; i-- > 0;) {  // brought by a step that was taken back
    bool const goes = number(ids[i]) >= step.sealed_before;
    t.sync();  // before the id is written
    if (goes) drop(i);
  }
  i64 const budget = to.map.outliers - to.map.spare_outliers, room = to.map.outliers - (step.sealed - step.sealed_before);
  for (i64 left = count; left > 0 && (left > budget || left > room); --left) {  // drop counts, too
    float least = infinity;
    for (i64 i = t.rank(); i < count; i += t.size()) least = sums.kept[i] < least ? sums.kept[i] : least;
    least = -t.reduce(-least, maximum{});
    i64 latest = -1;
    for (i64 i = t.rank(); i < count; i += t.size())
      if (sums.kept[i] == least) latest = maximum{}(latest, number(ids[i]));
    latest = t.reduce(latest, maximum{});
    i64 place = latest < 0 ? count - 1 : -1;  // sums that are no numbers
    for (i64 i = t.rank(); i < count; i += t.size())
      if (number(ids[i]) == latest) place = i;
    drop(t.reduce(place, maximum{}));
  }
  for (i64 b = step.sealed_before; b < step.sealed; ++b, ++count) {
    for (int side = 0; side < map::sides; ++side)
      for (i64 c = t.rank(); c < S::block_tokens * map::side_dim(side); c += t.size()) {
        i64 const token = c / map::side_dim(side), channel = c % map::side_dim(side);
        to.outlier_row(head, side, count, token)[channel] = to.near_row(head, side, to.position(b) + token)[channel];
      }
    if (t.rank() == 0) {
      float sum = 0;
      for (i64 i = 0; i < S::block_tokens; ++i) sum += sums.near[to.near_index(to.position(b) + i)];
      ids[count] = logical_block(b);
      sums.kept[count] = sum;
    }
  }
  t.sync();
  for (i64 p = before + t.rank(); p < step.length; p += t.size()) sums.near[to.near_index(p)] = 0;
  t.sync();
}

/// What the step's queries attend to, of all that is near.
///
/// Shapes      queries [step.new_tokens * group, head_dim] f32, times the softmax scale
/// Requires    observation::bytes of scratch, 16-byte aligned
/// Effects     a body over a team
/// Complexity  O(query rows * near tokens * head_dim)
template <team Team, offloading_scheme S>
CELLAR_HD void observe_step(Team& t, sequence_view<S> const& to, int head, sequence_step const& step, matrix_view<float const, S::head_dim> queries, i64 group,
                            std::byte* scratch) {
  if (step.new_tokens == 0 || to.map.outliers == 0) return;
  auto const sums = to.attention_of(head);
  auto const keys = near_keys<S>::of(to, head, step);
  for (i64 i = t.rank(); i < to.map.outliers * S::block_tokens; i += t.size()) sums.pending_kept[i] = 0;
  for (i64 i = t.rank(); i < to.map.near_rows(); i += t.size()) sums.pending_near[i] = 0;
  t.sync();
  auto const s = observation::at(scratch);
  for (i64 r = 0; r < queries.rows; r += observed_rows) {
    i64 const rows = queries.rows - r < observed_rows ? queries.rows - r : observed_rows;
    observing_queries<S::head_dim> const some{{queries.row(r), rows, queries.stride}, r, group, step.length - step.new_tokens};
    observe_states<typename S::near_scalar, typename S::attention>(t, keys.count, keys, some, s);
    add_attention<typename S::near_scalar, typename S::attention>(t, keys.sinks, keys.count, keys, some, s, [&](i64 i, float x) {
      i64 const k = i - keys.sinks;
      (k < keys.kept ? sums.pending_kept[k] : sums.pending_near[to.near_index(keys.begin + k - keys.kept)]) += x;
    });
  }
  if (t.rank() == 0) *sums.length = step.length;
  t.sync();
}

}  // namespace cellar::operation
