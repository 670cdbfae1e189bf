#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cellar/core/statistics.hpp"
#include "cellar/operation/workspace.hpp"

namespace cellar::inline CELLAR_ABI::host {
class executor;
}

namespace cellar::inline CELLAR_ABI {

/// Exact keys and values of a prompt while it is being filled, in memory of the caller's: [layers, capacity, kv_heads, head_dim], packed.
/// The engine's own dense prefill attends to them. The first `filled` tokens are already there.
template <storage_scalar T>
struct prompt_staging {
  T* keys = nullptr;
  T* values = nullptr;
  i64 capacity = 0;
  i64 filled = 0;
};

/// One sequence of a batch.
struct batch_entry {
  sequence_id sequence;
  i64 new_tokens = 1;
};

/// Bytes of one sequence in one layer, counted from what is stored.
struct memory_usage {
  i64 summary = 0;      ///< Near: tiles and learnt state.
  i64 always_near = 0;  ///< Near: sinks and window.
  i64 generated = 0;    ///< Near: tokens after the prompt, without those that the window holds where they seal as they leave it.
  i64 pool = 0;         ///< Near slot pool; none where the tier is read in place.
  i64 far = 0;          ///< Planes of sealed blocks.
};

/// Keys and values of many sequences in all layers, offloaded by Scheme, executed by Executor.
///
///     prompt   begin_prompt, append_chunk per layer (in any chunks), finish_prompt
///     decode   plan once a step, then append and attend per layer
///
/// A step counts once all layers are appended; until then discard takes it back, whatever part of it was appended.
///
/// Owns far memory (the scheme's tier), summaries, near memory and block tables; all of it is allocated here, decode allocates nothing.
/// Not thread-safe: one call at a time. Errors leave the cache as it was.
///
/// Requires  shape.rotary where a policy of the scheme turns keys; a budget above zero where the scheme selects by score;
///           executors of later calls with no more workers than the one given here
/// Errors    precondition_error, naming the mismatch; std::bad_alloc at construction
template <offloading_scheme Scheme, class Executor = host::executor>
class cache {
 public:
  using map_type = memory_map<Scheme>;

  cache(Executor const& on, model_shape const& shape, cellar::limits const& limits, cellar::budget const& budget = Scheme::published)
      : limits_(checked(shape, limits, budget)),
        budget_(within(limits_, budget)),
        map_{shape, budget_.sinks, tail_rows(limits_, budget_)},
        pages_(limits_.far_tokens > 0 ? ceil_div(limits_.far_tokens, map_type::page_tokens) : limits_.sequences * pages_per_sequence()),
        layout_{map_.geometry(), pages_ * map_type::page_blocks},
        tier_(shape.layers, layout_.bytes()),
        sizes_(operation::workspace_for<Scheme>(shape, limits_, budget_)),
        summaries_(std::size_t(i64{shape.layers} * pages_ * map_.summary_page())),
        near_(std::size_t(i64{shape.layers} * limits_.sequences * map_.near_sequence())),
        state_(std::size_t(i64{shape.layers} * limits_.sequences * map_.state_sequence()) + 16),
        page_table_(std::size_t(i64{limits_.sequences} * pages_per_sequence())),
        sequences_(std::size_t(limits_.sequences)),
        ids_(std::size_t(limits_.step_sequences * shape.kv_heads * sizes_.selected)),
        counts_(std::size_t(limits_.step_sequences * shape.kv_heads)),
        workspace_(std::size_t(operation::workspace_bytes<Scheme>(shape, limits_, budget_, on.workers())) + 64),
        worker_statistics_(std::size_t(on.workers())),
        is_appended_(std::size_t(shape.layers)) {
    steps_.reserve(std::size_t(limits_.step_sequences));
    for (i64 p = pages_; p-- > 0;) free_pages_.push_back(page_id(p));
  }

  // Prompts.

  /// Takes a sequence for a prompt whose exact keys and values the caller holds in `staging` until finish_prompt or free.
  ///
  /// Shapes   staging.keys, staging.values [layers, capacity, kv_heads, head_dim]
  /// Effects  host bookkeeping only; allocates a count for each layer
  /// Errors   precondition_error where the staging is not possible, or all of limits.sequences are in use
  template <storage_scalar T>
  sequence_id begin_prompt(prompt_staging<T> staging) {
    expects(staging.keys && staging.values, "begin_prompt: staging needs memory for keys and values");
    expects(staging.filled >= 0 && staging.filled <= staging.capacity, "begin_prompt: staging holds more tokens than its capacity");
    expects(staging.filled <= limits_.tokens, "begin_prompt: the prompt is longer than limits.tokens");
    auto const slot = std::find_if(sequences_.begin(), sequences_.end(), [](sequence const& s) { return s.phase == phase::free; });
    expects(slot != sequences_.end(), "begin_prompt: capacity exceeded: all of limits.sequences are in use; free one first");
    slot->filled.assign(std::size_t(map_.shape.layers), staging.filled);
    slot->staging = {staging.keys, staging.values, staging.capacity, type_of<T>};
    slot->phase = phase::prompt;
    return sequence_id(slot - sequences_.begin());
  }

  /// Copies the next tokens of a prompt into its staging, one layer. finish_prompt checks what they hold.
  ///
  /// Shapes  k, v [tokens, kv_heads, head_dim]
  template <storage_scalar T>
  void append_chunk(Executor const& on, sequence_id id, int layer, heads_view<T const> k, heads_view<T const> v) {
    sequence& s = at(id, phase::prompt, "append_chunk: the sequence is not filling a prompt");
    check_layer(layer);
    check_rows(k, map_.shape.kv_heads, k.tokens, "append_chunk: keys must be [tokens, kv_heads, head_dim]");
    check_rows(v, map_.shape.kv_heads, k.tokens, "append_chunk: values must be [tokens, kv_heads, head_dim], as many tokens as keys");
    expects(s.staging.type == type_of<T>, "append_chunk: keys and values must have the type of the staging memory");
    i64& filled = s.filled[std::size_t(layer)];
    expects(filled + k.tokens <= s.staging.capacity, "append_chunk: capacity exceeded: the staging memory is full");
    expects(filled + k.tokens <= limits_.tokens, "append_chunk: capacity exceeded: the prompt is longer than limits.tokens");
    auto const to = staged(staging_of<T>(s), layer, filled + k.tokens);
    copy_rows<T>(on, k, to[0], filled);
    copy_rows<T>(on, v, to[1], filled);
    filled += k.tokens;
  }

  /// Trains what learns, seals all blocks but the window, keeps sinks and window near. The staging memory is the caller's again.
  ///
  /// Effects  runs layers and KV heads in parallel; allocates prompt_scratch_bytes for each worker; returns when done (host)
  void finish_prompt(Executor const& on, sequence_id id) {
    sequence& s = at(id, phase::prompt, "finish_prompt: the sequence is not filling a prompt");
    i64 const tokens = s.filled[0];
    expects(tokens > 0, "finish_prompt: the prompt has no tokens");
    expects(std::all_of(s.filled.begin(), s.filled.end(), [&](i64 n) { return n == tokens; }), "finish_prompt: layers hold different numbers of tokens");
    check_workers(on);
    i64 const sealed = sealable_blocks(tokens, 0), needed = ceil_div(sealed, map_type::page_blocks);
    expects(needed <= i64(free_pages_.size()), "finish_prompt: capacity exceeded: far memory (limits.far_tokens) is full; free a sequence first");
    if (s.staging.type == scalar_type::f32) seal_staged(on, s, number(id), sealed, staging_of<float>(s));
    if (s.staging.type == scalar_type::f16) seal_staged(on, s, number(id), sealed, staging_of<f16>(s));
    if (s.staging.type == scalar_type::bf16) seal_staged(on, s, number(id), sealed, staging_of<bf16>(s));
    s.prompt_tokens = s.length = tokens;
    s.sealed = sealed;
    s.selected_blocks = operation::budget_blocks<Scheme>(budget_, tokens);
    s.phase = phase::decode;
    s.staging = {};
  }

  // Decoding.

  /// Prepares a step: checks capacities, takes pages, fixes lengths. Host bookkeeping only.
  ///
  /// Requires  every sequence at most once; the step before was appended in all layers, or discarded
  void plan(Executor const& on, row_view<batch_entry const> batch) {
    expects(batch.count > 0, "plan: the batch is empty");
    expects(batch.count <= limits_.step_sequences, "plan: capacity exceeded: more sequences than limits.step_sequences");
    check_workers(on);
    expects(!is_open(), "plan: the step before was not appended in all layers; append it there, or discard it");
    i64 needed = 0;
    for (i64 i = 0; i < batch.count; ++i) {
      sequence const& s = at(batch[i].sequence, phase::decode, "plan: a sequence has no finished prompt");
      for (i64 j = 0; j < i; ++j) expects(batch[j].sequence != batch[i].sequence, "plan: a sequence appears twice in the batch");
      i64 const n = batch[i].new_tokens, length = s.length + n;
      expects(n > 0, "plan: new_tokens must be positive");
      expects(n <= limits_.step_tokens, "plan: capacity exceeded: more new tokens than limits.step_tokens");
      expects(length <= limits_.tokens, "plan: capacity exceeded: the sequence would be longer than limits.tokens");
      if constexpr (Scheme::keeps_generated)
        expects(length - s.prompt_tokens <= limits_.generated_tokens, "plan: capacity exceeded: more generated tokens than limits.generated_tokens");
      needed += ceil_div(sealed_after(s, length, n), map_type::page_blocks) - s.pages;
    }
    expects(needed <= i64(free_pages_.size()), "plan: capacity exceeded: far memory (limits.far_tokens) is full; free a sequence first");

    steps_.clear();
    i64 row = 0;
    for (batch_entry const& entry : batch) {
      i64 const slot = number(entry.sequence);
      sequence& s = sequences_[std::size_t(slot)];
      i64 const length = s.length + entry.new_tokens, sealed = sealed_after(s, length, entry.new_tokens);
      take_pages(s, slot, ceil_div(sealed, map_type::page_blocks) - s.pages);
      steps_.push_back({slot, pages(slot), s.sealed, sealed, length, entry.new_tokens, row, s.selected_blocks});
      s.length = length;
      s.sealed = sealed;
      row += entry.new_tokens;
    }
    step_tokens_ = row;
    forget_layers();
  }

  /// Takes the planned step back, unless it is complete: lengths and pages are as before plan. Nothing where no step is planned.
  ///
  /// For an engine that gives up in the middle of a step: the tokens may be planned again.
  void discard() {
    if (is_open())
      for (sequence_step const& step : steps_) {
        sequence& s = sequences_[std::size_t(step.slot)];
        s.length = step.length - step.new_tokens;
        s.sealed = step.sealed_before;
        give_pages(s, step.slot, ceil_div(s.sealed, map_type::page_blocks));
      }
    end_step();
  }

  /// Adds the planned step's keys and values of a layer, and seals the blocks that leave the window.
  ///
  /// Shapes    k, v [step tokens, kv_heads, head_dim], ragged rows in the order of the batch
  /// Requires  each layer once a step, in any order
  template <storage_scalar T>
  void append(Executor const& on, int layer, heads_view<T const> k, heads_view<T const> v) {
    expects(step_tokens_ > 0, "append: plan a step first");
    check_layer(layer);
    check_rows(k, map_.shape.kv_heads, step_tokens_, "append: keys must be [step tokens, kv_heads, head_dim]");
    check_rows(v, map_.shape.kv_heads, step_tokens_, "append: values must be [step tokens, kv_heads, head_dim]");
    check_workers(on);
    expects(!is_appended_[std::size_t(layer)], "append: this layer has the step's keys and values already");
    expects(are_storable<T>(on, k, largest_key), "append: a key is NaN or infinite, or too large for the scheme's storage types");
    expects(are_storable<T>(on, v, largest_value), "append: a value is NaN or infinite, or too large for the scheme's storage types");
    append_tokens<Scheme, T>(on, map_, memory(layer), row_view<sequence_step const>{steps_.data(), i64(steps_.size())}, k, v, workspace());
    is_appended_[std::size_t(layer)] = true;
    ++appended_layers_;
  }

  /// Attention of the step's queries over what the scheme selects: out = softmax(scale * q . k) . v.
  ///
  /// Shapes    q, out [step tokens, query_heads, head_dim]; rows of out do not overlap
  /// Requires  the step is appended in this layer; q . k within f32: a row with a product beyond it (1e19 times 1e19) is NaN
  /// Effects   returns when done; allocates nothing. Complexity: operation::score, select and attend
  template <storage_scalar T>
  void attend(Executor const& on, int layer, heads_view<T const> q, heads_view<T> out) {
    expects(step_tokens_ > 0, "attend: plan a step first");
    check_layer(layer);
    check_rows(q, map_.shape.query_heads, step_tokens_, "attend: queries must be [step tokens, query_heads, head_dim]");
    check_rows(heads_view<T const>(out), map_.shape.query_heads, step_tokens_, "attend: out must be [step tokens, query_heads, head_dim]");
    check_workers(on);
    expects(are_storable<T>(on, q, largest<float>), "attend: a query is NaN or infinite");
    expects(is_appended_[std::size_t(layer)], "attend: append the step's keys and values to this layer first");
    row_view<sequence_step const> const steps{steps_.data(), i64(steps_.size())};
    statistics* const per_worker = observer_ ? worker_statistics_.data() : nullptr;
    attends_everything_ = operation::selects_everything<Scheme> || layer < budget_.dense_layers;
    if constexpr (!operation::selects_everything<Scheme>)
      if (!attends_everything_) select_blocks<Scheme, T>(on, map_, memory(layer), steps, q, sizes_, workspace(), ids_.data(), counts_.data(), per_worker);
    attend_blocks<Scheme, T>(on, map_, memory(layer), steps, q, out, sizes_, workspace(), ids_.data(), counts_.data(), attends_everything_, per_worker);
    if (observer_) collect();
  }

  /// Gives a sequence's memory back. Its id may be given out again. Ends a step that it was part of.
  ///
  /// Effects  host bookkeeping only; the sequence's bytes are not cleared
  /// Errors   precondition_error for an id that is not in use, or one of an open step
  void free(sequence_id id) {
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase != phase::free, "free: no such sequence");
    if (std::any_of(steps_.begin(), steps_.end(), [&](sequence_step const& step) { return step.slot == number(id); })) {
      expects(!is_open(), "free: the sequence is part of a step that is not appended in all layers; append it there, or discard it");
      end_step();
    }
    sequence& s = sequences_[std::size_t(number(id))];
    give_pages(s, number(id), 0);
    s = {};
  }

  // What happened, and what is held.

  /// Collects into `to` from now on; null stops. The object must outlive its use.
  void observe(statistics* to) { observer_ = to; }

  /// The blocks that the last attend read for a sequence of the batch and a KV head, ascending; nullopt: all of them. Valid until the next call.
  std::optional<row_view<logical_block const>> selected(i64 batch_index, int kv_head) const {
    expects(batch_index >= 0 && batch_index < i64(steps_.size()), "selected: the step has no such sequence");
    expects(kv_head >= 0 && kv_head < map_.shape.kv_heads, "selected: no such KV head");
    if (attends_everything_) return std::nullopt;
    i64 const item = batch_index * map_.shape.kv_heads + kv_head;
    return row_view<logical_block const>{ids_.data() + item * sizes_.selected, counts_[std::size_t(item)]};
  }
  // Of a sequence whose prompt is finished; else an error.

  i64 length(sequence_id id) const { return at(id).length; }                    ///< Tokens, those of the planned step included.
  i64 sealed_blocks(sequence_id id) const { return at(id).sealed; }             ///< Far blocks.
  i64 selected_blocks(sequence_id id) const { return at(id).selected_blocks; }  ///< The budget of a step and KV head, in blocks.
  i64 sinks() const { return map_.sinks; }                                      ///< Tokens at the start of every sequence that are always near.
  /// Bytes that the sequence holds in one layer.
  memory_usage usage(sequence_id id) const {
    sequence const& s = at(id);
    i64 const token = map_.shape.kv_heads * 2 * i64(Scheme::head_dim) * i64(sizeof(typename Scheme::near_scalar));
    i64 const near = s.length - s.sealed * Scheme::block_tokens;
    // Where generated tokens seal, the last ones are the window; where they stay for good, the window is the prompt's.
    i64 const beyond_window = Scheme::keeps_generated ? near : std::max<i64>(0, near - map_.sinks - budget_.window);
    i64 const generated = std::min(beyond_window, s.length - s.prompt_tokens);
    return {.summary = map_.shape.kv_heads * ceil_div(s.sealed, map_type::tile_blocks) * map_.tile() + map_.state_sequence(),
            .always_near = (near - generated) * token,
            .generated = generated * token,
            .pool = 0,
            .far = s.sealed * map_.shape.kv_heads * map_.geometry().slice_bytes()};
  }
  map_type const& map() const { return map_; }  ///< Sizes of what the cache holds.
  /// Bytes that finish_prompt allocates for each worker, for a prompt staged in T.
  template <storage_scalar T>
  static constexpr i64 prompt_scratch_bytes(i64 tokens) {
    return operation::prompt_scratch_floats<Scheme, T>(tokens) * i64(sizeof(float));
  }

 private:
  enum class phase { free, prompt, decode };
  enum class scalar_type { f32, f16, bf16 };
  template <class T>
  static constexpr scalar_type type_of = std::is_same_v<T, float> ? scalar_type::f32
                                         : std::is_same_v<T, f16> ? scalar_type::f16
                                                                  : scalar_type::bf16;
  struct erased_staging {
    void* keys = nullptr;
    void* values = nullptr;
    i64 capacity = 0;
    scalar_type type{};
  };
  struct sequence {
    cache::phase phase = phase::free;
    i64 prompt_tokens = 0, length = 0, sealed = 0, selected_blocks = 0, pages = 0;
    erased_staging staging;
    std::vector<i64> filled;
  };

  static cellar::limits checked(model_shape const& shape, cellar::limits l, cellar::budget const& b) {
    validate(shape);
    expects(shape.head_dim == Scheme::head_dim, "cache: the model's head_dim is not the scheme's");
    expects(!needs_rotary<Scheme> || shape.rotary.is_set(), "cache: the scheme turns keys, so model_shape::rotary must be set");
    expects(l.sequences > 0 && l.tokens > 0 && l.step_tokens > 0, "limits: sequences, tokens and step_tokens must be positive");
    expects(l.generated_tokens >= 0 && l.step_sequences >= 0 && l.far_tokens >= 0, "limits: capacities must not be negative");
    expects(b.share >= 0 && b.share <= 1, "budget: share must be within [0, 1]");
    expects(b.tokens >= 0 && b.sinks >= 0 && b.window >= 0 && b.dense_layers >= 0, "budget: counts must not be negative");
    expects(!Scheme::select::reads_scores || b.tokens > 0 || b.share > 0,
            "budget: the scheme selects by score, so tokens or share must be above zero; give the scheme a `published` budget or pass one");
    i64 const pages = std::max(l.far_tokens, l.tokens) / map_type::page_tokens;
    expects(std::max(l.tokens / Scheme::block_tokens, pages * (l.far_tokens > 0 ? 1 : l.sequences)) < i64{1} << 30,
            "limits: more far blocks or pages than their 32-bit ids can name; lower tokens, sequences or far_tokens");
    l.generated_tokens = l.generated_tokens == 0 ? l.tokens : std::min(l.generated_tokens, l.tokens);
    l.step_sequences = l.step_sequences == 0 ? l.sequences : std::min<i64>(l.step_sequences, l.sequences);
    l.step_tokens = std::min(l.step_tokens, l.tokens);
    return l;
  }
  /// What exceeds every sequence is as good as its whole length.
  static cellar::budget within(cellar::limits const& l, cellar::budget b) {
    b.sinks = std::min(b.sinks, l.tokens);
    b.window = std::min(b.window, l.tokens);
    return b;
  }
  static i64 tail_rows(cellar::limits const& l, cellar::budget const& b) {
    i64 const new_rows = Scheme::keeps_generated ? l.generated_tokens : l.step_tokens;
    return std::min(std::max<i64>(b.window, Scheme::keeps_generated ? 0 : l.step_tokens) + Scheme::block_tokens - 1 + new_rows, l.tokens);
  }
  i64 pages_per_sequence() const { return ceil_div(limits_.tokens, map_type::page_tokens); }
  /// Blocks that lie before the window and before the tokens of the step, which must stay visible to their own queries.
  i64 sealable_blocks(i64 length, i64 new_tokens) const {
    return std::max<i64>(0, length - std::max(budget_.window, new_tokens) - budget_.sinks) / Scheme::block_tokens;
  }
  i64 sealed_after(sequence const& s, i64 length, i64 new_tokens) const {
    return Scheme::keeps_generated ? s.sealed : std::max(s.sealed, sealable_blocks(length, new_tokens));
  }

  /// A step is planned and lacks layers.
  bool is_open() const { return step_tokens_ > 0 && appended_layers_ < map_.shape.layers; }
  void forget_layers() {
    std::fill(is_appended_.begin(), is_appended_.end(), char{0});
    appended_layers_ = 0;
  }
  void end_step() {
    steps_.clear();
    step_tokens_ = 0;
    forget_layers();
  }

  sequence const& at(sequence_id id) const {
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase == phase::decode,
            "no such sequence, or its prompt is not finished");
    return sequences_[std::size_t(number(id))];
  }
  sequence& at(sequence_id id, phase wanted, char const* message) {
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase == wanted, message);
    return sequences_[std::size_t(number(id))];
  }
  row_view<page_id const> pages(i64 slot) const { return {page_table_.data() + slot * pages_per_sequence(), sequences_[std::size_t(slot)].pages}; }
  void take_pages(sequence& s, i64 slot, i64 n) {
    for (; n > 0; --n) {
      page_table_[std::size_t(slot * pages_per_sequence() + s.pages++)] = free_pages_.back();
      free_pages_.pop_back();
    }
  }
  void give_pages(sequence& s, i64 slot, i64 kept) {
    while (s.pages > kept) free_pages_.push_back(page_table_[std::size_t(slot * pages_per_sequence() + --s.pages)]);
  }
  layer_memory<Scheme> memory(int layer) {
    return {layout_, tier_.data(layer), summaries_.data() + i64{layer} * pages_ * map_.summary_page(),
            near_.data() + i64{layer} * limits_.sequences * map_.near_sequence(), state_.data() + i64{layer} * limits_.sequences * map_.state_sequence()};
  }
  std::byte* workspace() { return reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(workspace_.data()), 64)); }

  void check_layer(int layer) const { expects(layer >= 0 && layer < map_.shape.layers, "no such layer"); }
  void check_workers(Executor const& on) const {
    expects(on.workers() <= int(worker_statistics_.size()), "the executor has more workers than the one that the cache was made for");
  }
  template <class T>
  static void check_rows(heads_view<T const> x, int heads, i64 tokens, char const* message) {
    expects(x.tokens == tokens && is_rows_of(x, heads, Scheme::head_dim), message);
  }
  static constexpr float largest_key = std::min({largest<typename Scheme::near_scalar>, largest_stored<typename Scheme::key_codec>(Scheme::head_dim),
                                                 largest_stored<typename Scheme::summary>(Scheme::head_dim)});
  static constexpr float largest_value = std::min(largest<typename Scheme::near_scalar>, largest_stored<typename Scheme::value_codec>(Scheme::head_dim));
  /// Checks and seals all layers; nothing of the sequence has changed when an error leaves.
  template <class T>
  void seal_staged(Executor const& on, sequence& s, i64 slot, i64 sealed, prompt_staging<T> staging) {
    i64 const tokens = s.filled[0];
    std::vector<prompt_layer<Scheme, T>> layers;
    for (int layer = 0; layer < map_.shape.layers; ++layer) {
      auto const [k, v] = staged(staging, layer, tokens);
      expects(are_storable<T>(on, k, largest_key) && are_storable<T>(on, v, largest_value),
              "finish_prompt: a staged key or value is NaN or infinite, or too large for the scheme's storage types");
      layers.push_back({memory(layer), k, v});
    }
    std::vector<float> scratch(std::size_t(on.workers() * operation::prompt_scratch_floats<Scheme, T>(tokens)));
    struct page_guard {  // gives the pages back where the executor's threads throw
      cache& of;
      sequence& s;
      i64 slot, kept;
      ~page_guard() { of.give_pages(s, slot, kept); }
    } guard{*this, s, slot, 0};
    take_pages(s, slot, ceil_div(sealed, map_type::page_blocks));
    sequence_step const step{.slot = slot, .pages = pages(slot), .sealed = sealed, .length = tokens};
    seal_prompt<Scheme, T>(on, map_, row_view<prompt_layer<Scheme, T> const>{layers.data(), i64(layers.size())}, step,
                           row_view<float>{scratch.data(), i64(scratch.size())});
    guard.kept = s.pages;
  }
  template <class T>
  std::array<heads_view<T>, 2> staged(prompt_staging<T> s, int layer, i64 tokens) const {
    i64 const first = layer * s.capacity * map_.shape.kv_heads * Scheme::head_dim;
    return {packed_heads(s.keys + first, tokens, map_.shape.kv_heads, Scheme::head_dim),
            packed_heads(s.values + first, tokens, map_.shape.kv_heads, Scheme::head_dim)};
  }
  template <class T>
  static prompt_staging<T> staging_of(sequence const& s) {
    return {static_cast<T*>(s.staging.keys), static_cast<T*>(s.staging.values), s.staging.capacity, 0};
  }
  void collect() {
    ++observer_->attends;
    for (statistics& s : worker_statistics_) {
      observer_->fetched_blocks += s.fetched_blocks;
      observer_->moved_bytes += s.moved_bytes;
      observer_->undefined_scores += s.undefined_scores;
      observer_->seconds.score += s.seconds.score;
      observer_->seconds.select += s.seconds.select;
      observer_->seconds.fetch += s.seconds.fetch;
      observer_->seconds.attend += s.seconds.attend;
      s = {};
    }
  }

  cellar::limits limits_;
  cellar::budget budget_;
  map_type map_;
  i64 pages_;
  typename Scheme::layout layout_;
  typename Scheme::tier tier_;
  operation::decode_workspace<Scheme> sizes_;
  std::vector<std::byte> summaries_, near_, state_;
  std::vector<page_id> page_table_, free_pages_;
  std::vector<sequence> sequences_;
  std::vector<logical_block> ids_;
  std::vector<i64> counts_;
  std::vector<std::byte> workspace_;
  std::vector<statistics> worker_statistics_;
  std::vector<sequence_step> steps_;
  std::vector<char> is_appended_;  // a layer
  i64 step_tokens_ = 0;
  int appended_layers_ = 0;
  bool attends_everything_ = false;
  statistics* observer_ = nullptr;
};

}  // namespace cellar
