#pragma once
#include <algorithm>
#include <vector>

#include "cellar/host/attend.hpp"

namespace cellar::inline CELLAR_ABI::host {

/// Ids that serve several layers or steps: those of each selecting layer and sequence, and the sequence's step that they were selected for.
template <offloading_scheme S>
class kept_selections {
 public:
  kept_selections(executor const&, memory_map<S> const& map, limits const& l, budget const& b, operation::decode_workspace<S> const& sizes) {
    if (!operation::keeps_selections<S>) return;
    sequences_ = l.sequences;
    heads_ = map.shape.kv_heads;
    each_ = heads_ * sizes.selected;
    dense_layers_ = b.dense_layers;
    i64 const slots = operation::selecting_layers<S>(map.shape, b) * l.sequences;
    ids_.resize(std::size_t(slots * each_));
    counts_.resize(std::size_t(slots * heads_));
    made_in_.resize(std::size_t(slots));
    selecting_.reserve(std::size_t(l.step_sequences));
  }

  /// Whatever was selected for a sequence.
  void forget(i64 slot) {
    for (std::size_t i = std::size_t(slot); i < made_in_.size(); i += std::size_t(sequences_)) made_in_[i] = 0;
  }
  void begin_step(executor const&) {}
  /// Ids of blocks from `sealed` on: what seals there again is another block.
  void drop(executor const&, i64 slot, i64 sealed) {
    for (i64 kept = slot; kept < i64(made_in_.size()); kept += sequences_)
      for (i64 item = kept * heads_; item < (kept + 1) * heads_; ++item) {
        auto const* const ids = ids_.data() + item * (each_ / heads_);
        i64& n = counts_[std::size_t(item)];
        while (n > 0 && number(ids[n - 1]) >= sealed) --n;
      }
  }

  /// The selection of a layer's step: anew where it is due, else the one that is kept.
  ///
  /// Errors  precondition_error where another layer is to select first
  template <storage_scalar T>
  void select(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, scoring_queries<S, T> const& q,
              operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics* per_worker) {
    int const among = memory.layer - dense_layers_;
    i64 const source = among / S::reuse::layers;
    auto const is_due = [&](sequence_step const& step) { return operation::is_selection_due<S>(made_in_[std::size_t(slot_of(source, step))], step.number); };
    selecting_.clear();
    for (sequence_step const& step : steps)
      if (is_due(step)) {
        expects(among % S::reuse::layers == 0, "attend: this layer shares the selection of an earlier one, which is to be attended first");
        selecting_.push_back(step);
      }
    select_and_keep<T>(on, map, memory, source, q, sizes, workspace, ids, counts, per_worker);
    for (i64 i = 0; i < steps.count; ++i)
      for (i64 head = 0; head < heads_; ++head) {
        i64 const item = i * heads_ + head, from = slot_of(source, steps[i]) * heads_ + head, n = counts_[std::size_t(from)];
        std::copy_n(ids_.data() + from * sizes.selected, n, ids + item * sizes.selected);
        std::fill_n(ids + item * sizes.selected + n, sizes.selected - n, logical_block{-1});
        counts[item] = n;
      }
  }

  /// A new selection for every sequence of the step, in ids and counts too.
  template <storage_scalar T>
  void select_ahead(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, bool is_appended,
                    scoring_queries<S, T> const& q, operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts,
                    statistics* per_worker) {
    selecting_.clear();
    for (sequence_step step : steps) {
      if (!is_appended) step.sealed = step.sealed_before;
      selecting_.push_back(step);
    }
    select_and_keep<T>(on, map, memory, (memory.layer - dense_layers_) / S::reuse::layers, q, sizes, workspace, ids, counts, per_worker);
  }

 private:
  i64 slot_of(i64 source, sequence_step const& step) const { return source * sequences_ + step.slot; }
  template <class T>
  void select_and_keep(executor const& on, memory_map<S> const& map, layer_memory<S> const& memory, i64 source, scoring_queries<S, T> const& q,
                       operation::decode_workspace<S> const& sizes, std::byte* workspace, logical_block* ids, i64* counts, statistics* per_worker) {
    if (selecting_.empty()) return;
    select_blocks<S, T>(on, map, memory, row_view<sequence_step const>{selecting_.data(), i64(selecting_.size())}, q, sizes, workspace, ids, counts,
                        per_worker);
    for (std::size_t i = 0; i < selecting_.size(); ++i) {
      i64 const to = slot_of(source, selecting_[i]);
      std::copy_n(ids + i64(i) * each_, each_, ids_.begin() + to * each_);
      std::copy_n(counts + i64(i) * heads_, heads_, counts_.begin() + to * heads_);
      made_in_[std::size_t(to)] = selecting_[i].number;
    }
  }

  std::vector<logical_block> ids_;
  std::vector<i64> counts_, made_in_;
  std::vector<sequence_step> selecting_;
  i64 sequences_ = 0, heads_ = 1, each_ = 0;
  int dense_layers_ = 0;
};

}  // namespace cellar::host
