#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cellar/cache/slot_pool.hpp"
#include "cellar/core/rotary.hpp"
#include "cellar/core/statistics.hpp"
#include "cellar/operation/workspace.hpp"
#include "cellar/tier/posix_file.hpp"

namespace cellar::inline CELLAR_ABI::host {
class executor;
}

namespace cellar::inline CELLAR_ABI {

/// Exact keys and values of a prompt while it is being filled, in memory of the caller's: [layers, capacity, kv_heads, head_dim or value_dim], packed; and
/// index keys, of index_dim. What the scheme does not store is null: values that are in its keys, index keys of other summaries. The engine's own dense prefill
/// attends to them. The first `filled` tokens are already there.
template <storage_scalar T>
struct prompt_staging {
  T* keys = nullptr;
  T* values = nullptr;
  i64 capacity = 0;
  i64 filled = 0;
  T* index_keys = nullptr;
};

/// What a prompt's last tokens asked, in all layers, in memory of the caller's: [layers, tokens, query_heads, head_dim], packed, as attended.
template <storage_scalar T>
struct prompt_queries {
  T const* data = nullptr;
  i64 tokens = 0;
};

/// One sequence of a batch.
struct batch_entry {
  sequence_id sequence;
  i64 new_tokens = 1;
};

/// Bytes of one sequence in one layer, counted from what is stored.
struct memory_usage {
  i64 summary = 0;      ///< Near: tiles and learnt state.
  i64 always_near = 0;  ///< Near: sinks, window and outliers (those of the first layer).
  i64 generated = 0;    ///< Near: tokens after the prompt, without those that the window holds where they seal as they leave it.
  i64 pool = 0;         ///< An equal share of the near slot pool; none where the tier is read in place.
  i64 far = 0;          ///< Planes of sealed blocks.
};

/// Keys and values of many sequences in all layers, offloaded by Scheme, executed by Executor.
///
///     prompt   begin_prompt, append_chunk per layer (in any chunks), finish_prompt
///     decode   plan once a step, then append and attend per layer
///
/// A step counts once all layers are appended; until then discard takes it back, whatever part of it was appended.
///
/// Owns far memory (the scheme's tier), summaries, near memory and block tables, allocated at construction. Decoding allocates nothing but what
/// docs/integration.md lists, call by call.
/// Not thread-safe: one call at a time. Errors leave the cache as it was.
///
/// Requires  shape.rotary where a policy of the scheme turns keys; a budget above zero where the scheme selects by score;
///           executors of later calls with no more workers than the one given here. Executor: host::executor, whose drivers (append_tokens, ...) are
///           found by its namespace; include cellar/cellar.hpp, which has both
/// Errors    precondition_error, naming the mismatch; capacity_error, which is one, where there is no room; std::bad_alloc from calls that allocate; those of
///           the tier from calls that reach it. Every call may raise them; its own comment says what is special
template <offloading_scheme Scheme, class Executor = host::executor>
class cache {
  static_assert(Executor::is_host || Scheme::tier::is_directly_readable,
                "cellar: a device attends to far memory in place: use a tier that is read so, such as tier::host_memory, or host::executor");

 public:
  using map_type = memory_map<Scheme>;

  /// tier_options: what a tier that is not read in place needs to know, such as a path; nothing else has any.
  cache(Executor const& on, model_shape const& shape, cellar::limits const& limits, cellar::budget const& budget = Scheme::published,
        tier_options_of<typename Scheme::tier> const& tier_options = {})
      : limits_(checked(shape, limits, budget)),
        budget_(within(limits_, budget)),
        turns_(make_turns(on, shape, limits_)),
        frequencies_(make_frequencies(on, shape)),
        map_{turned(shape, turns_, frequencies_),
             budget_.sinks,
             operation::tail_rows<Scheme>(limits_, budget_),
             budget_.outliers + operation::spare_outliers<Scheme>(limits_, budget_),
             operation::selects_nothing<Scheme> && budget_.dense_layers == 0,
             operation::spare_outliers<Scheme>(limits_, budget_)},
        pages_(map_.discards_far        ? 0
               : limits_.far_tokens > 0 ? ceil_div(limits_.far_tokens, map_type::page_tokens)
                                        : limits_.sequences * pages_per_sequence()),
        layout_{map_.geometry(), pages_ * map_type::page_blocks},
        tier_(make_tier(map_, layout_, pages_ * map_type::page_blocks, tier_options)),
        reached_(on, tier_, shape.layers),
        sizes_(operation::workspace_for<Scheme>(shape, limits_, budget_)),
        summaries_(on.template allocate<std::byte>(i64{shape.layers} * pages_ * map_.summary_page())),
        near_(on.template allocate<std::byte>(i64{shape.layers} * limits_.sequences * map_.near_sequence())),
        state_(on.template allocate<std::byte>(i64{shape.layers} * limits_.sequences * map_.state_sequence() + 16)),
        outliers_(on.template allocate<std::byte>(i64{shape.layers} * limits_.sequences * map_.outlier_sequence())),
        page_table_(std::size_t(i64{limits_.sequences} * pages_per_sequence())),
        page_users_(std::size_t(pages_)),
        sequences_(std::size_t(limits_.sequences)),
        ids_(on.template allocate<logical_block>(limits_.step_sequences * shape.kv_heads * sizes_.selected)),
        counts_(on.template allocate<i64>(limits_.step_sequences * shape.kv_heads)),
        pool_(make_pool()),
        rest_states_(
            on.template allocate<attention::softmax_state>(operation::weighs_rest<Scheme> ? limits_.step_sequences * shape.kv_heads * sizes_.rows : 0)),
        missed_(on.template allocate<float>(Scheme::estimates_missed ? i64(rest_states_.size()) : 0)),
        samples_(on.template allocate<std::uint32_t>(limits_.step_sequences * shape.kv_heads * sizes_.sample_words())),
        remainder_sums_(on.template allocate<float>(
            remainder_by_class<typename Scheme::remainder> ? rest_states_.size() * std::size_t(operation::summed_channels<Scheme>) : 0)),
        workspace_(on.template allocate<std::byte>(step_workspace_bytes<Scheme>(on, shape, limits_, budget_) + 64)),
        run_pools_(on, map_, limits_, sizes_),
        kept_(on, map_, limits_, budget_, sizes_),
        published_(on, limits_.sequences, limits_.step_sequences, pages_per_sequence()),
        worker_statistics_(std::size_t(on.workers())),
        is_appended_(std::size_t(shape.layers)) {
    steps_.reserve(std::size_t(limits_.step_sequences));
    if constexpr (!Scheme::tier::is_directly_readable) {
      resident_.resize(ids_.size());
      misses_.reserve(2 * ids_.size());
    }
    for (i64 p = pages_; p-- > 0;) free_pages_.push_back(page_id(p));
  }

  // Prompts.

  /// Takes a sequence for a prompt whose exact keys and values the caller holds in `staging` until finish_prompt or free.
  ///
  /// Shapes   staging.keys, staging.values [layers, capacity, kv_heads, head_dim or value_dim], staging.index_keys [layers, capacity, kv_heads, index_dim]
  /// Effects  host bookkeeping only; allocates a count for each layer
  /// Errors   precondition_error where the staging is not possible; capacity_error where the prompt is too long or all of limits.sequences are in use
  template <storage_scalar T>
  sequence_id begin_prompt(prompt_staging<T> staging) {
    expects(staging.keys && (map_type::values_in_keys || staging.values), "begin_prompt: staging needs memory for keys and values");
    expects(!map_type::values_in_keys || !staging.values, "begin_prompt: the scheme's values are channels of its keys: leave staging.values null");
    expects(map_type::is_indexed == (staging.index_keys != nullptr),
            "begin_prompt: staging.index_keys is memory for index keys, of a scheme whose summary is of these; null of any other");
    expects(staging.filled >= 0 && staging.filled <= staging.capacity, "begin_prompt: staging holds more tokens than its capacity");
    expects<capacity_error>(staging.filled <= limits_.tokens, "begin_prompt: capacity exceeded: the prompt is longer than limits.tokens");
    auto const slot = free_slot("begin_prompt");
    slot->filled.assign(std::size_t(map_.shape.layers), staging.filled);
    slot->staging = {staging.keys, staging.values, staging.index_keys, staging.capacity, type_of<T>};
    slot->phase = life::prompt;
    return sequence_id(slot - sequences_.begin());
  }

  /// Copies the next tokens of a prompt into its staging, one layer. finish_prompt checks what they hold.
  ///
  /// Shapes  k, v [tokens, kv_heads, head_dim or value_dim]
  template <class T>
    requires storage_scalar<std::remove_const_t<T>>
  void append_chunk(Executor const& on, sequence_id id, int layer, heads_view<T> k, std::type_identity_t<heads_view<T const>> v) {
    static_assert(!map_type::values_in_keys && !map_type::is_indexed, "cellar: the scheme stores other rows than keys and values: give them as token_rows");
    append_chunk(on, id, layer, token_rows<std::remove_const_t<T>>{k, v});
  }
  /// The same of all that a scheme stores of its tokens: of any scheme.
  template <storage_scalar T>
  void append_chunk(Executor const& on, sequence_id id, int layer, token_rows<T> const& rows) {
    sequence& s = at(id, life::prompt, "append_chunk: the sequence is not filling a prompt");
    check_layer(layer);
    i64 const tokens = rows.keys.tokens;
    check_rows(rows.keys, Scheme::head_dim, tokens, "append_chunk: keys must be [tokens, kv_heads, head_dim]");
    if constexpr (!map_type::values_in_keys)
      check_rows(rows.values, Scheme::value_dim, tokens, "append_chunk: values must be [tokens, kv_heads, value_dim], as many tokens as keys");
    if constexpr (map_type::is_indexed)
      check_rows(rows.index_keys, map_type::scored_dim, tokens, "append_chunk: index keys must be [tokens, kv_heads, index_dim], as many tokens as keys");
    check_unstored(rows);
    expects(s.staging.type == type_of<T>, "append_chunk: keys and values must have the type of the staging memory");
    i64& filled = s.filled[std::size_t(layer)];
    expects<capacity_error>(filled + tokens <= s.staging.capacity, "append_chunk: capacity exceeded: the staging memory is full");
    expects<capacity_error>(filled + tokens <= limits_.tokens, "append_chunk: capacity exceeded: the prompt is longer than limits.tokens");
    auto const to = staged(staging_of<T>(s), layer, filled + tokens);
    for (int side = 0; side < map_type::sides; ++side)
      if (map_type::has_side(side)) copy_rows<T>(on, rows.rows(side), to[std::size_t(side)], filled);
    filled += tokens;
  }

  /// Trains what learns, seals all blocks but the window, keeps sinks and window near. The staging memory is the caller's again.
  ///
  /// Effects  runs layers and KV heads in parallel; allocates prompt_scratch_bytes for each worker; returns when done (host)
  /// Errors   capacity_error where far memory is full, precondition_error for a staged number that cannot be stored; the prompt is then still staged
  void finish_prompt(Executor const& on, sequence_id id) {
    static_assert(!observes_queries<Scheme>, "cellar: the scheme learns from a prompt's queries: give finish_prompt those of its last tokens");
    finish(on, id, prompt_queries<float>{});
  }
  /// The same, with the queries of the prompt's last tokens: as many as the scheme observes, or as the engine has kept. A scheme that does not learn from them,
  /// or from fewer, does not read the others.
  ///
  /// Errors   precondition_error where there are none, or more than the prompt has tokens, or one is NaN or infinite
  template <storage_scalar T>
  void finish_prompt(Executor const& on, sequence_id id, prompt_queries<T> queries) {
    expects(queries.data && queries.tokens > 0, "finish_prompt: there are no queries: give those of the prompt's last tokens");
    finish(on, id, queries);
  }

 private:
  template <storage_scalar T>
  void finish(Executor const& on, sequence_id id, prompt_queries<T> queries) {
    sequence& s = at(id, life::prompt, "finish_prompt: the sequence is not filling a prompt");
    i64 const tokens = s.filled[0];
    expects(tokens > 0, "finish_prompt: the prompt has no tokens");
    expects(std::all_of(s.filled.begin(), s.filled.end(), [&](i64 n) { return n == tokens; }), "finish_prompt: layers hold different numbers of tokens");
    expects(queries.tokens <= tokens, "finish_prompt: there are queries of more tokens than the prompt has");
    check_workers(on);
    i64 const sealed = sealable_blocks(tokens, 0), needed = pages_for(sealed);
    expects<capacity_error>(needed <= i64(free_pages_.size()),
                            "finish_prompt: capacity exceeded: far memory (limits.far_tokens) is full; free a sequence first");
    seal_staged(on, s, number(id), sealed, queries);
    s.prompt_tokens = s.length = tokens;
    s.sealed = sealed;
    s.selected_blocks = operation::budget_blocks<Scheme>(budget_, tokens);
    s.phase = life::decode;
    s.staging = {};
    run_pools_.forget(on, number(id), 0);
  }

 public:
  // Decoding.

  /// Prepares a step: checks capacities, takes pages, fixes lengths. Host bookkeeping, but where a step seals into a page that a fork shares: it
  /// is copied then.
  ///
  /// Requires  every sequence at most once; the step before was appended in all layers, or discarded
  /// Effects   allocates a list of layers where it copies a page, and a run where the tier is not read in place
  /// Errors    capacity_error where the step does not fit limits or far memory, and then no sequence of the batch has taken anything
  void plan(Executor const& on, row_view<batch_entry const> batch) {
    expects(batch.count > 0, "plan: the batch is empty");
    expects<capacity_error>(batch.count <= limits_.step_sequences, "plan: capacity exceeded: more sequences than limits.step_sequences");
    check_workers(on);
    expects(!is_open(), "plan: the step before was not appended in all layers; append it there, or discard it");
    i64 needed = 0;
    for (i64 i = 0; i < batch.count; ++i) {
      sequence const& s = at(batch[i].sequence, life::decode, "plan: a sequence has no finished prompt");
      for (i64 j = 0; j < i; ++j) expects(batch[j].sequence != batch[i].sequence, "plan: a sequence appears twice in the batch");
      i64 const n = batch[i].new_tokens, length = s.length + n;
      expects(n > 0, "plan: new_tokens must be positive");
      expects<capacity_error>(n <= limits_.step_tokens, "plan: capacity exceeded: more new tokens than limits.step_tokens");
      expects<capacity_error>(length <= limits_.tokens, "plan: capacity exceeded: the sequence would be longer than limits.tokens");
      if constexpr (Scheme::keeps_generated)
        expects<capacity_error>(length - s.prompt_tokens <= limits_.generated_tokens,
                                "plan: capacity exceeded: more generated tokens than limits.generated_tokens");
      expects<capacity_error>(
          length - map_.sinks - s.sealed * Scheme::block_tokens <= map_.tail_rows,
          "plan: capacity exceeded: more tokens near than this cache keeps (limits, budget.window), of a sequence restored from one that keeps more");
      needed += std::max<i64>(0, pages_for(sealed_after(s, length, n)) - s.pages) + copies_page(batch, i);
    }
    expects<capacity_error>(needed <= i64(free_pages_.size()), "plan: capacity exceeded: far memory (limits.far_tokens) is full; free a sequence first");

    i64 copied = 0;
    for (i64 i = 0; i < batch.count; ++i)  // what may fail, first: no page is taken yet
      if (copies_page(batch, i)) copy_last_page(on, number(batch[i].sequence), free_pages_[free_pages_.size() - std::size_t(++copied)]);
    for (batch_entry const& entry : batch) {
      sequence const& s = sequences_[std::size_t(number(entry.sequence))];
      own_last_page(number(entry.sequence), sealed_after(s, s.length + entry.new_tokens, entry.new_tokens));
    }
    steps_.clear();
    i64 row = 0;
    for (batch_entry const& entry : batch) {
      i64 const slot = number(entry.sequence);
      sequence& s = sequences_[std::size_t(slot)];
      i64 const length = s.length + entry.new_tokens, sealed = sealed_after(s, length, entry.new_tokens);
      take_pages(s, slot, pages_for(sealed) - s.pages);
      steps_.push_back({slot, pages(slot), s.sealed, sealed, length, entry.new_tokens, row, s.selected_blocks, s.kept_tokens, ++s.steps});
      s.length = length;
      if (sealed > s.sealed) s.kept_tokens = 0;
      s.sealed = sealed;
      row += entry.new_tokens;
    }
    step_tokens_ = row;
    forget_layers();
    kept_.begin_step(on);
    current_ = published_.publish(on, row_view<sequence_step const>{steps_.data(), i64(steps_.size())});
  }

  /// The planned step was appended in all layers by replaying a captured graph: it counts as if append had been called in each.
  ///
  /// Requires  plan, before the replay and on its stream
  void complete() requires(!Executor::is_host) {
    expects(step_tokens_ > 0, "complete: plan a step first");
    std::fill(is_appended_.begin(), is_appended_.end(), char{1});
    appended_layers_ = map_.shape.layers;
  }

  /// Takes the planned step back, unless it is complete: lengths and pages are as before plan, but that a page which it copied stays
  /// copied. Nothing where no step is planned.
  ///
  /// For an engine that gives up in the middle of a step: the tokens may be planned again.
  void discard() {
    if (is_open())
      for (sequence_step const& step : steps_) {
        sequence& s = sequences_[std::size_t(step.slot)];
        s.length = step.length - step.new_tokens;
        s.sealed = step.sealed_before;
        s.kept_tokens = step.kept_tokens;
        kept_.forget(step.slot);
        give_pages(s, step.slot, used_pages(s));
      }
    end_step();
  }

  /// Adds the planned step's keys and values of a layer, and seals the blocks that leave the window.
  ///
  /// Shapes    k, v [step tokens, kv_heads, head_dim or value_dim], ragged rows in the order of the batch
  /// Requires  each layer once a step, in any order
  /// Errors    precondition_error for a number that cannot be stored; those of the tier, after which the same call may be made again, but for a run with
  ///           kept codes (of a block that truncate cut) that a failed store has damaged: truncate before its block
  template <class T>
    requires storage_scalar<std::remove_const_t<T>>
  void append(Executor const& on, int layer, heads_view<T> k, std::type_identity_t<heads_view<T const>> v) {
    static_assert(!map_type::values_in_keys && !map_type::is_indexed, "cellar: the scheme stores other rows than keys and values: give them as token_rows");
    append(on, layer, token_rows<std::remove_const_t<T>>{k, v});
  }
  /// The same of all that a scheme stores of its tokens: of any scheme.
  template <storage_scalar T>
  void append(Executor const& on, int layer, token_rows<T> const& rows) {
    expects(step_tokens_ > 0, "append: plan a step first");
    check_layer(layer);
    check_step_rows(rows.keys, map_.shape.kv_heads, Scheme::head_dim, "append: keys must be [step tokens, kv_heads, head_dim]");
    if constexpr (!map_type::values_in_keys)
      check_step_rows(rows.values, map_.shape.kv_heads, Scheme::value_dim, "append: values must be [step tokens, kv_heads, value_dim]");
    if constexpr (map_type::is_indexed)
      check_step_rows(rows.index_keys, map_.shape.kv_heads, map_type::scored_dim, "append: index keys must be [step tokens, kv_heads, index_dim]");
    check_unstored(rows);
    check_workers(on);
    expects(!is_appended_[std::size_t(layer)], "append: this layer has the step's keys and values already");
    expects(!Executor::is_host || are_storable<T>(on, rows.keys, largest_of_side(0)),
            "append: a key is NaN or infinite, or too large for the scheme's storage types");
    if constexpr (!map_type::values_in_keys)
      expects(!Executor::is_host || are_storable<T>(on, rows.values, largest_of_side(1)),
              "append: a value is NaN or infinite, or too large for the scheme's storage types");
    if constexpr (map_type::is_indexed)
      expects(!Executor::is_host || are_storable<T>(on, rows.index_keys, largest_of_side(2)),
              "append: an index key is NaN or infinite, or too large for the scheme's storage types");
    for (sequence_step const& step : steps_) forget_runs(layer, step.pages, step.sealed_before, step.sealed);
    append_tokens<Scheme, T>(on, map_, memory(layer), current_, rows, workspace());
    is_appended_[std::size_t(layer)] = true;
    ++appended_layers_;
  }

  /// Attention of the step's queries over what the scheme selects: out = softmax(scale * q . k) . v. Where one selection serves several layers, the first
  /// of them comes before the others.
  ///
  /// Shapes    q, out [step tokens, query_heads, head_dim or value_dim]; rows of out do not overlap
  /// Requires  the step is appended in this layer; q . k within f32: of a row with a product beyond it (1e19 times 1e19) out is not defined
  /// Effects   returns when done. Complexity: operation::score, select and attend
  /// Errors    those of the tier: `out` holds anything then, and the same call may be made again
  template <storage_scalar T>
  void attend(Executor const& on, int layer, std::type_identity_t<heads_view<T const>> q, heads_view<T> out) {
    static_assert(!map_type::is_indexed, "cellar: the scheme selects by index queries: give them to attend and select as index_queries");
    attend_by<T>(on, layer, q, out, q);
  }
  /// The same of a scheme that selects by index queries.
  ///
  /// Shapes    index.queries [step tokens, kv_heads * index_heads, index_dim], index.weights [step tokens, kv_heads * index_heads]
  template <storage_scalar T>
  void attend(Executor const& on, int layer, std::type_identity_t<heads_view<T const>> q, heads_view<T> out,
              std::type_identity_t<index_queries<T>> const& index) {
    static_assert(map_type::is_indexed, "cellar: the scheme selects by queries: it takes no index queries");
    check_index(on, index, "attend: an index query or its weight is NaN or infinite");
    attend_by<T>(on, layer, q, out, index);
  }

  /// Selects ahead of attend, by queries that came before: the next attend of this layer, in the planned step or in the one after it, takes this selection,
  /// and finds its blocks near. For an engine that hides scoring and fetching behind other work: after attend by the step's own queries, for the next step;
  /// before attend by an estimate, such as the layer's projection of what the layer before it read.
  ///
  /// On a device it may run on a stream beside attend calls of other layers: it comes after the step's append and attend of this layer, where they are called
  /// before it, and ends before the next attend of this layer, the next call of select, the next plan and the cache; cuda::completion orders streams.
  ///
  /// Shapes    q [step tokens, query_heads, head_dim]
  /// Requires  a scheme whose selections serve more than one layer or step: select::reuse_ids<1, 2> keeps one for the step after its own. Of layers that
  ///           share a selection, the first
  /// Effects   as those of attend. Blocks that the step seals in this layer are among the choice where it is appended. Nothing in dense layers
  /// Errors    those of the tier: the selection stands, and attend fetches what is missing
  /// Source    FreeKV (arXiv:2505.13109) selects by the step before, InfiniGen (arXiv:2406.19707) by the layer before
  template <class T>
    requires storage_scalar<std::remove_const_t<T>>
  void select(Executor const& on, int layer, heads_view<T> q) {
    using Scalar = std::remove_const_t<T>;
    static_assert(!map_type::is_indexed, "cellar: the scheme selects by index queries: give them to attend and select as index_queries");
    expects(step_tokens_ > 0, "select: plan a step first");
    check_step_rows(q, map_.shape.query_heads, Scheme::head_dim, "select: queries must be [step tokens, query_heads, head_dim]");
    expects(!Executor::is_host || are_storable<Scalar>(on, heads_view<Scalar const>(q), largest<float>), "select: a query is NaN or infinite");
    select_by<Scalar>(on, layer, q);
  }
  /// The same of a scheme that selects by index queries.
  template <storage_scalar T>
  void select(Executor const& on, int layer, index_queries<T> const& index) {
    static_assert(map_type::is_indexed, "cellar: the scheme selects by queries: it takes no index queries");
    expects(step_tokens_ > 0, "select: plan a step first");
    check_index(on, index, "select: an index query or its weight is NaN or infinite");
    select_by<T>(on, layer, index);
  }

  /// Brings far blocks of a sequence into the near pool of a layer, for an engine that knows what comes next. Blocks for which all of the pool is in use
  /// are left out. Nothing where the tier is read in place: on a host, or in the device's own memory.
  ///
  /// Effects  attend finds these blocks, unless others replace them before. On a host: returns when done; allocates a list beyond twice what a full step
  ///          selects. On a device: enqueues, and `blocks` may go at once. On another stream than the step's a completion (cuda::completion) orders it as
  ///          `select`: after attention of what is before it, and before the layer's next attend, the next plan and the next prefetch. Waits where four plans
  ///          or prefetches are ahead of the device; the first call allocates
  /// Errors   precondition_error for blocks that are not sealed in this layer yet; those of the tier, and then none of the missing blocks is in the pool
  void prefetch(Executor const& on, int layer, sequence_id id, int kv_head, row_view<logical_block const> blocks) {
    sequence const& s = at(id);
    check_layer(layer);
    expects(kv_head >= 0 && kv_head < map_.shape.kv_heads, "prefetch: no such KV head");
    i64 sealed = map_.discards_far ? 0 : s.sealed;
    for (sequence_step const& step : steps_)
      if (!map_.discards_far && step.slot == number(id) && !is_appended_[std::size_t(layer)])
        sealed = step.sealed_before;  // what the step seals is not there yet
    for (logical_block const b : blocks) expects(number(b) >= 0 && number(b) < sealed, "prefetch: a block is not among the sealed ones");
    if constexpr (!Scheme::tier::is_directly_readable) {
      auto const g = map_.geometry();
      misses_.clear();
      misses_.reserve(std::size_t(2 * blocks.count));  // before a slot is taken
      pool_.begin_step();
      for (logical_block const b : blocks) {
        if (g.slice_bytes() > 0) resolve(layer, physical(pages(number(id)), number(b)), kv_head);
        if (g.shared_bytes() > 0) resolve(layer, physical(pages(number(id)), number(b)), g.heads);
      }
      fetch_misses(on, layer);
    } else if constexpr (!Executor::is_host) {
      sequence_step step{};
      step.slot = number(id);
      step.pages = published_.pages(on, number(id), pages(number(id)));
      step.new_tokens = 1;
      step.number = s.steps;
      run_pools_.prefetch(on, memory(layer), step, kv_head, blocks);
    }
  }

  /// Forgets the tokens of a sequence from `length` on, as after rejected speculation. What is left reads as before.
  ///
  /// A block that is cut is reopened: its tokens' keys and values are near again, as decoded, and their codes are kept for when it seals anew (whole
  /// token groups; its summary is then built from the decoded keys). Sealed blocks stay sealed, so the window may be shorter until it fills again.
  /// Truncating a prompt leaves the budget that it had. Ends a step that the sequence was part of.
  ///
  /// Effects     where a block is cut: decodes it in all layers, allocates its rows; a list of layers there and where the scheme keeps outliers; else
  ///             host bookkeeping only
  /// Errors      precondition_error for a length that is not within [1, length], or an open step; those of the tier. Nothing has changed then
  void truncate(Executor const& on, sequence_id id, i64 length) {
    static_assert(!evicts_by<typename Scheme::outliers>,
                  "cellar: the scheme has evicted tokens by the attention of what would be taken back: fork a sequence before it speculates");
    sequence& s = at(id, life::decode, "truncate: no such sequence, or its prompt is not finished");
    expects(!map_.discards_far || length >= std::min(s.length, map_.sinks + s.sealed * Scheme::block_tokens),
            "truncate: the scheme has discarded the tokens before its window; give it a window as long as what may be taken back");
    expects(length >= 1 && length <= s.length, "truncate: the length must be at least 1 and at most the sequence's");
    i64 const far = std::max<i64>(0, length - map_.sinks), sealed = std::min(s.sealed, far / Scheme::block_tokens);
    expects(!loses_keys(map_.shape, budget_) || sealed == 0 || !sees_lost(length, map_.sinks + sealed * Scheme::block_tokens - 1),
            "truncate: the next query would see tokens that the scheme has discarded; make budget.window longer by what may be taken back");
    check_workers(on);
    expects(!(is_open() && is_in_step(id)), "truncate: the sequence is part of a step that is not appended in all layers; append it there, or discard it");
    bool const is_cut = sealed < s.sealed;
    i64 const cut = far - sealed * Scheme::block_tokens, kept = is_cut ? cut : std::min(s.kept_tokens, cut);
    std::vector<layer_memory<Scheme>> layers;
    if (Scheme::outliers::keeps_outliers || (is_cut && kept > 0)) layers = all_layers();
    row_view<layer_memory<Scheme> const> const view{layers.data(), i64(layers.size())};
    if (is_cut) {
      if (kept > 0) {
        i64 const rows = i64{map_.shape.layers} * map_.shape.kv_heads * Scheme::block_tokens;
        auto keys = on.template allocate<float>(rows * Scheme::head_dim),
             values = on.template allocate<float>(map_type::values_in_keys ? 0 : rows * Scheme::value_dim);
        decode_block<Scheme>(on, map_, view, number(id), published_.pages(on, number(id), pages(number(id))), logical_block(sealed), keys.data(),
                             values.data());
        restore_near<Scheme>(on, map_, view, number(id), logical_block(sealed), kept, keys.data(), values.data());
      }
    }
    if (is_in_step(id)) end_step();
    run_pools_.forget(on, number(id), sealed);
    s.length = length;
    s.sealed = sealed;
    s.kept_tokens = kept;
    s.prompt_tokens = std::min(s.prompt_tokens, length);
    if constexpr (Scheme::outliers::keeps_outliers) drop_outliers<Scheme>(on, map_, view, number(id), sealed);
    if constexpr (keeps_selections) kept_.drop(on, number(id), sealed);
    give_pages(s, number(id), used_pages(s));
  }

  /// A second sequence that continues from the same tokens. Sealed blocks are shared, near memory is copied; a shared page is copied when one of both
  /// seals into it.
  ///
  /// Effects  copies near memory in all layers; allocates a list of them
  /// Errors   capacity_error where all of limits.sequences are in use, precondition_error where the sequence is part of an open step
  sequence_id fork(Executor const& on, sequence_id id) {
    sequence const& s = at(id, life::decode, "fork: no such sequence, or its prompt is not finished");
    check_workers(on);
    expects(!(is_open() && is_in_step(id)), "fork: the sequence is part of a step that is not appended in all layers; append it there, or discard it");
    auto const other = free_slot("fork");
    i64 const from = number(id), to = other - sequences_.begin();
    auto const layers = all_layers();
    sequence copy = s;  // allocates: nothing is taken yet
    copy_slot<Scheme>(on, map_, row_view<layer_memory<Scheme> const>{layers.data(), i64(layers.size())}, from, to);
    run_pools_.forget(on, to, 0);
    *other = std::move(copy);
    for (i64 p = 0; p < s.pages; ++p) {
      page_id const shared = pages(from)[p];
      page_table_[std::size_t(to * pages_per_sequence() + p)] = shared;
      ++page_users_[std::size_t(number(shared))];
    }
    return sequence_id(to);
  }

  /// Writes a sequence to a file, for restore in this or another cache of the scheme, also after a restart. A file of that name is replaced as a whole: a
  /// process that stops in between leaves the old one.
  ///
  /// Effects  writes `path` + ".partial", waits until it is on the disk, renames it; allocates 256 KB and lists of layers. The sequence goes on. On a device
  ///          it waits for the stream, and copies piece by piece
  /// Errors   precondition_error for a sequence of an open step; io_error, and then the old file is there (or the new one, if only the folder's sync failed)
  template <class File = tier::posix_file>
  void save(Executor const& on, sequence_id id, std::string const& path) {
    sequence const& s = at(id, life::decode, "save: no such sequence, or its prompt is not finished");
    expects(!(is_open() && is_in_step(id)), "save: the sequence is part of a step that is not appended in all layers; append it there, or discard it");
    auto const layers = all_layers();
    write_snapshot<File, Scheme>(on, map_, row_view<layer_memory<Scheme> const>{layers.data(), i64(layers.size())}, number(id), pages(number(id)),
                                 {s.prompt_tokens, s.length, s.sealed, s.kept_tokens, s.selected_blocks}, path);
  }

  /// A sequence from a file that save wrote. Limits and executor may be others than those of the cache that saved it, host or device; what is stored must be
  /// the same. A scheme that evicts keeps sums for each near row: there the limits and the window must be the same, too.
  ///
  /// Effects  takes pages and a sequence; allocates 256 KB and lists of layers
  /// Errors   precondition_error where the file is of another scheme, model or rotary embedding, naming what differs; capacity_error where it does not fit;
  ///          io_error where it is damaged. Nothing has changed then
  template <class File = tier::posix_file>
  sequence_id restore(Executor const& on, std::string const& path) {
    auto const slot = free_slot("restore");
    i64 const id = slot - sequences_.begin();
    auto reader = open_snapshot<File, Scheme>(on, map_, path);
    snapshot_record const& r = reader.record;
    sequence s;
    s.phase = life::decode;
    s.prompt_tokens = r.prompt_tokens;
    s.length = r.length;
    s.sealed = r.sealed;
    s.kept_tokens = r.kept_tokens;
    s.selected_blocks = r.selected_blocks;
    i64 const needed = used_pages(s);
    expects<capacity_error>(r.length <= limits_.tokens, "restore: capacity exceeded: the sequence is longer than limits.tokens");
    i64 const next = Scheme::keeps_generated || r.length == limits_.tokens ? 0 : 1;  // a step must be possible
    expects<capacity_error>(
        r.length - std::min(r.length, map_.sinks + r.sealed * Scheme::block_tokens) + next <= map_.tail_rows,
        "restore: capacity exceeded: the cache keeps fewer tokens near (limits.generated_tokens, budget.window) than the sequence has there");
    expects(operation::selects_everything<Scheme> || typename Scheme::select{}.with_budget(r.selected_blocks).max_selected(sizes_.blocks) <= sizes_.selected,
            "restore: the sequence selects more blocks a step than this cache's budget allows");
    expects<capacity_error>(needed <= i64(free_pages_.size()), "restore: capacity exceeded: far memory (limits.far_tokens) is full; free a sequence first");
    page_guard guard{*this, s, id, 0};
    take_pages(s, id, needed);
    row_view<page_id const> const table{page_table_.data() + id * pages_per_sequence(), needed};
    for (int layer = 0; layer < map_.shape.layers; ++layer) forget_runs(layer, table, 0, r.sealed + (r.kept_tokens > 0));
    run_pools_.forget(on, id, 0);
    auto const layers = all_layers();
    reader.read(on, row_view<layer_memory<Scheme> const>{layers.data(), i64(layers.size())}, id, table);
    guard.kept = s.pages;
    *slot = std::move(s);
    return sequence_id(id);
  }

  /// Gives a sequence's memory back. Its id may be given out again. Ends a step that it was part of.
  ///
  /// Effects  host bookkeeping only; the sequence's bytes are not cleared
  /// Errors   precondition_error for an id that is not in use, or one of an open step
  void free(sequence_id id) {
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase != life::free, "free: no such sequence");
    if (is_in_step(id)) {
      expects(!is_open(), "free: the sequence is part of a step that is not appended in all layers; append it there, or discard it");
      end_step();
    }
    sequence& s = sequences_[std::size_t(number(id))];
    give_pages(s, number(id), 0);
    kept_.forget(number(id));
    s = {};
  }

  // What happened, and what is held.

  /// Collects into `to` from now on; null stops. The object must outlive its use.
  void observe(statistics* to) requires(Executor::is_host) { observer_ = to; }

  /// The blocks that the last attend read, or a select after it chose, for a sequence of the batch and a KV head, ascending; nullopt: all of them. Valid until
  /// the next call.
  std::optional<row_view<logical_block const>> selected(i64 batch_index, int kv_head) const requires(Executor::is_host) {
    check_item(batch_index, kv_head);
    if (attends_everything_) return std::nullopt;
    i64 const item = batch_index * map_.shape.kv_heads + kv_head;
    return row_view<logical_block const>{ids_.data() + item * sizes_.selected, counts_[std::size_t(item)]};
  }
  /// Of a device, by the last attend, copied. Waits.
  std::optional<std::vector<logical_block>> selected(Executor const& on, i64 batch_index, int kv_head) const requires(!Executor::is_host) {
    check_item(batch_index, kv_head);
    if (attends_everything_) return std::nullopt;
    return downloaded(on, ids_.data() + (batch_index * map_.shape.kv_heads + kv_head) * sizes_.selected, sizes_.selected);
  }
  /// The same in the executor's memory, [sequences of a step, kv_heads, selected], ascending, rest -1: of the last attend that selected.
  row_view<logical_block const> selection() const { return {ids_.data(), i64(ids_.size())}; }
  /// The share of its attention that each query of the last attend would have had on blocks that it did not read, by their summaries' logits, for a sequence
  /// of the batch and a KV head: [new_tokens * group], row = token * group + head of the group, in [0, 1]; nullopt: all blocks were read. What was read weighs
  /// exactly. By a summary that bounds logits from above it is at least the share that was missed; by means of several keys it is on average below. Valid
  /// until the next call.
  std::optional<row_view<float const>> missed(i64 batch_index, int kv_head) const requires(Executor::is_host&& Scheme::estimates_missed) {
    check_item(batch_index, kv_head);
    if (attends_everything_) return std::nullopt;
    return row_view<float const>{missed_.data() + first_missed(batch_index, kv_head), missed_rows(batch_index)};
  }
  /// The same of a device, copied. Waits.
  std::optional<std::vector<float>> missed(Executor const& on, i64 batch_index, int kv_head) const requires(!Executor::is_host && Scheme::estimates_missed) {
    check_item(batch_index, kv_head);
    if (attends_everything_) return std::nullopt;
    std::vector<float> all(std::size_t(missed_rows(batch_index)));
    on.download(all.data(), missed_.data() + first_missed(batch_index, kv_head), i64(all.size() * sizeof(float)));
    return all;
  }
  /// The same in the executor's memory, [sequences of a step, kv_heads, rows], of the last attend that selected; a KV head has rows for the most query tokens
  /// that a step may have.
  row_view<float const> all_missed() const requires(Scheme::estimates_missed) { return {missed_.data(), i64(missed_.size())}; }
  /// Selected runs that the near pools had and did not have, since the cache was made; prefetched ones are counted as well. Waits.
  std::pair<i64, i64> pool_hits_and_misses(Executor const& on) const requires(!Executor::is_host) {
    std::pair<i64, i64> both;
    run_pools_.count(on, both.first, both.second);
    return both;
  }
  /// The blocks that stay near in a layer and KV head, ascending unless the scheme evicts; they are attended beside the selected ones. Valid until the next
  /// call. Of a scheme that evicts, after discard, also blocks that the step brought, until the next append.
  row_view<logical_block const> outliers(int layer, sequence_id id, int kv_head) const requires(Executor::is_host) {
    check_outliers(layer, id, kv_head);
    return outliers_of(layer, number(id), kv_head);
  }
  /// The same of a device, copied. Waits.
  std::vector<logical_block> outliers(Executor const& on, int layer, sequence_id id, int kv_head) const requires(!Executor::is_host) {
    check_outliers(layer, id, kv_head);
    if constexpr (!Scheme::outliers::keeps_outliers) return {};
    return downloaded(on, reinterpret_cast<logical_block const*>(outliers_.data() + outlier_record(layer, number(id), kv_head)), map_.outliers);
  }
  // Of a sequence whose prompt is finished; else an error.

  i64 length(sequence_id id) const { return at(id).length; }                    ///< Tokens, those of the planned step included.
  i64 sealed_blocks(sequence_id id) const { return at(id).sealed; }             ///< Far blocks.
  i64 selected_blocks(sequence_id id) const { return at(id).selected_blocks; }  ///< The budget of a step and KV head, in blocks.
  i64 sinks() const { return map_.sinks; }                                      ///< Tokens at the start of every sequence that are always near.
  /// Bytes that the sequence holds in one layer.
  memory_usage usage(sequence_id id) const {
    sequence const& s = at(id);
    i64 const token = map_.shape.kv_heads * map_.near_token();
    i64 const near = s.length - s.sealed * Scheme::block_tokens;
    // Where generated tokens seal, the last ones are the window; where they stay for good, the window is the prompt's.
    i64 const beyond_window = Scheme::keeps_generated ? near : std::max<i64>(0, near - map_.sinks - budget_.window);
    i64 const generated = std::min(beyond_window, s.length - s.prompt_tokens);
    return {.summary = (map_.discards_far ? 0 : map_.tile_copies() * ceil_div(s.sealed, map_type::tile_blocks) * map_.tile()) + map_.state_sequence(),
            .always_near = (near - generated) * token + outlier_bytes(number(id)),
            .generated = generated * token,
            .pool = (pool_.bytes() + run_pools_.bytes()) / (map_.shape.layers * limits_.sequences),
            .far = map_.discards_far ? 0 : s.sealed * map_.geometry().block_bytes()};
  }
  map_type const& map() const { return map_; }  ///< Sizes of what the cache holds.
  /// Bytes that finish_prompt allocates for each worker of a host, for a prompt staged in T and queries of `observed` tokens.
  template <storage_scalar T>
  i64 prompt_scratch_bytes(i64 tokens, i64 observed = 0) const {
    return operation::prompt_scratch_floats<Scheme>(map_.shape, tokens, type_of<T>, observed) * i64(sizeof(float));
  }

 private:
  enum class life { free, prompt, decode };
  struct erased_staging {
    void* keys = nullptr;
    void* values = nullptr;
    void* index_keys = nullptr;
    i64 capacity = 0;
    scalar_type type{};
  };
  struct sequence {
    life phase = life::free;
    i64 prompt_tokens = 0, length = 0, sealed = 0, selected_blocks = 0, pages = 0;
    i64 steps = 0;        // planned
    i64 kept_tokens = 0;  // of the block after the sealed ones: its codes are there from before it was reopened
    erased_staging staging;
    std::vector<i64> filled;
  };

  struct page_guard {  // gives pages back where something throws
    cache& of;
    sequence& s;
    i64 slot, kept;
    ~page_guard() { of.give_pages(s, slot, kept); }
  };
  struct miss {
    i64 slot;
    physical_block block;
    int head;
  };

  static cellar::limits checked(model_shape const& shape, cellar::limits l, cellar::budget const& b) {
    validate(shape);
    expects(shape.head_dim == Scheme::head_dim, "cache: the model's head_dim is not the scheme's");
    expects(!needs_rotary<Scheme> || shape.rotary.is_set(), "cache: the scheme turns keys, so model_shape::rotary must be set");
    expects(!map_type::has_shared || i64{shape.kv_heads} * shape.head_dim <= max_row_channels,
            "cache: a policy over all heads holds at most 4096 channels (kv_heads * head_dim); use one of one head");
    expects(l.sequences > 0 && l.tokens > 0 && l.step_tokens > 0, "limits: sequences, tokens and step_tokens must be positive");
    expects(l.generated_tokens >= 0 && l.step_sequences >= 0 && l.far_tokens >= 0, "limits: capacities must not be negative");
    expects(b.share >= 0 && b.share <= 1, "budget: share must be within [0, 1]");
    expects(b.tokens >= 0 && b.sinks >= 0 && b.window >= 0 && b.dense_layers >= 0 && b.outliers >= 0, "budget: counts must not be negative");
    expects(!Scheme::select::reads_scores || b.tokens > 0 || b.share > 0,
            "budget: the scheme selects by score, so tokens or share must be above zero; give the scheme a `published` budget or pass one");
    expects(!evicts_by<typename Scheme::outliers> || b.dense_layers == 0, "budget: a scheme that evicts keeps nothing far, so no layer can be dense");
    expects(b.outliers == 0 || Scheme::outliers::keeps_outliers, "budget: the scheme has no rule for outliers, so their number must be 0");
    i64 const step = std::min(l.step_tokens, l.tokens), near = std::max(std::min(b.window, l.tokens), step);
    expects(!loses_keys(shape, b) || !sees_lost(l.tokens - step, l.tokens - near - 1),
            "budget: window must hold the attention's sliding window and limits.step_tokens, since the scheme discards what lies before it");
    i64 const pages = std::max(l.far_tokens, l.tokens) / map_type::page_tokens;
    expects(std::max(l.tokens / Scheme::block_tokens, pages * (l.far_tokens > 0 ? 1 : l.sequences)) < i64{1} << 30,
            "limits: more far blocks or pages than their 32-bit ids can name; lower tokens, sequences or far_tokens");
    l.generated_tokens = l.generated_tokens == 0 ? l.tokens : std::min(l.generated_tokens, l.tokens);
    l.step_sequences = l.step_sequences == 0 ? l.sequences : std::min<i64>(l.step_sequences, l.sequences);
    l.step_tokens = std::min(l.step_tokens, l.tokens);
    if constexpr (!Executor::is_host)  // four query rows and a KV head on one side of a grid, sequences on another
      expects(std::max(l.step_sequences, ceil_div(shape.group() * l.step_tokens, 4) * shape.kv_heads) <= Executor::grid_side,
              "limits: a device's launch holds 65535 sequences, and kv_heads * ceil(group * step_tokens / 4) up to 65535; lower step_sequences or step_tokens");
    return l;
  }
  /// Whether some layer never reads far blocks.
  static bool loses_keys(model_shape const& shape, cellar::budget const& b) { return operation::selects_nothing<Scheme> && b.dense_layers < shape.layers; }
  /// Whether a query would see a key that is lost, though its attention has a window to see whole: without one, losing keys is the scheme's intent.
  static bool sees_lost(i64 q_position, i64 k_position) {
    typename Scheme::attention const variant{};
    bool const has_window = !variant.visible(i64{1} << 60, 0);
    return has_window && k_position >= 0 && variant.visible(q_position, k_position);
  }
  /// What exceeds every sequence is as good as its whole length.
  static cellar::budget within(cellar::limits const& l, cellar::budget b) {
    b.sinks = std::min(b.sinks, l.tokens);
    b.window = std::min(b.window, l.tokens);
    b.outliers = std::min(b.outliers, l.tokens / Scheme::block_tokens);
    return b;
  }
  i64 pages_per_sequence() const { return map_.discards_far ? 0 : ceil_div(limits_.tokens, map_type::page_tokens); }
  i64 pages_for(i64 blocks) const { return map_.discards_far ? 0 : ceil_div(blocks, map_type::page_blocks); }
  i64 used_pages(sequence const& s) const { return pages_for(s.sealed + (s.kept_tokens > 0)); }
  i64 sealable_blocks(i64 length, i64 new_tokens) const { return operation::sealable_blocks<Scheme>(budget_, length, new_tokens); }
  i64 sealed_after(sequence const& s, i64 length, i64 new_tokens) const {
    return Scheme::keeps_generated ? s.sealed : std::max(s.sealed, sealable_blocks(length, new_tokens));
  }

  auto free_slot(char const* caller) {
    auto const slot = std::find_if(sequences_.begin(), sequences_.end(), [](sequence const& s) { return s.phase == life::free; });
    if (slot == sequences_.end())
      detail::raise(capacity_error(std::string(caller) + ": capacity exceeded: all of limits.sequences are in use; free one first"));
    return slot;
  }
  bool is_in_step(sequence_id id) const {
    return std::any_of(steps_.begin(), steps_.end(), [&](sequence_step const& step) { return step.slot == number(id); });
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
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase == life::decode,
            "no such sequence, or its prompt is not finished");
    return sequences_[std::size_t(number(id))];
  }
  sequence& at(sequence_id id, life wanted, char const* message) {
    expects(number(id) >= 0 && number(id) < limits_.sequences && sequences_[std::size_t(number(id))].phase == wanted, message);
    return sequences_[std::size_t(number(id))];
  }
  row_view<page_id const> pages(i64 slot) const { return {page_table_.data() + slot * pages_per_sequence(), sequences_[std::size_t(slot)].pages}; }
  page_id take_page() {
    page_id const page = free_pages_.back();
    free_pages_.pop_back();
    page_users_[std::size_t(number(page))] = 1;
    return page;
  }
  void give_page(page_id page) {
    if (--page_users_[std::size_t(number(page))] == 0) free_pages_.push_back(page);
  }
  void take_pages(sequence& s, i64 slot, i64 n) {
    for (; n > 0; --n) page_table_[std::size_t(slot * pages_per_sequence() + s.pages++)] = take_page();
  }
  void give_pages(sequence& s, i64 slot, i64 kept) {
    while (s.pages > kept) give_page(page_table_[std::size_t(slot * pages_per_sequence() + --s.pages)]);
  }
  /// Whether the first block that a step seals lies in a page that is there: the last one.
  bool seals_into_page(sequence const& s, i64 sealed) const { return sealed > s.sealed && s.sealed / map_type::page_blocks < s.pages; }
  page_id& last_page(i64 slot) { return page_table_[std::size_t(slot * pages_per_sequence() + sequences_[std::size_t(slot)].pages - 1)]; }
  page_id last_page(i64 slot) const { return pages(slot)[sequences_[std::size_t(slot)].pages - 1]; }
  /// Whether an entry of a batch seals into a page that it shares, also once the entries before it have copied theirs.
  bool copies_page(row_view<batch_entry const> batch, i64 i) const {
    auto const seals = [&](batch_entry const& entry) {
      sequence const& s = sequences_[std::size_t(number(entry.sequence))];
      return seals_into_page(s, sealed_after(s, s.length + entry.new_tokens, entry.new_tokens));
    };
    if (!seals(batch[i])) return false;
    page_id const page = last_page(number(batch[i].sequence));
    i64 others = 0;
    for (i64 j = 0; j < i; ++j) others += seals(batch[j]) && last_page(number(batch[j].sequence)) == page;
    return page_users_[std::size_t(number(page))] - others > 1;
  }
  /// Copies what the sequence has of its last page.
  void copy_last_page(Executor const& on, i64 slot, page_id to) {
    sequence const& s = sequences_[std::size_t(slot)];
    auto const layers = all_layers();
    copy_page<Scheme>(on, map_, row_view<layer_memory<Scheme> const>{layers.data(), i64(layers.size())}, last_page(slot), to,
                      s.sealed % map_type::page_blocks + (s.kept_tokens > 0));
  }
  /// Takes the copy in place of that page where it is shared, so that the sequence may seal into its own.
  void own_last_page(i64 slot, i64 sealed) {
    sequence const& s = sequences_[std::size_t(slot)];
    if (!seals_into_page(s, sealed) || page_users_[std::size_t(number(last_page(slot)))] == 1) return;
    page_id const shared = last_page(slot);
    last_page(slot) = take_page();
    give_page(shared);
    for (int layer = 0; layer < map_.shape.layers; ++layer)
      forget_runs(layer, pages(slot), s.sealed / map_type::page_blocks * map_type::page_blocks, s.sealed + (s.kept_tokens > 0));
  }
  slot_pool make_pool() const {
    if constexpr (Scheme::tier::is_directly_readable) return {};
    auto const g = map_.geometry();
    i64 const selected = i64(ids_.size()) * (map_type::has_shared ? 2 : 1);
    return {limits_.pool_runs > 0 ? limits_.pool_runs : selected, std::max(g.slice_bytes(), g.shared_bytes())};
  }
  i64 run_key(int layer, physical_block block, int head) const {
    return ((layer * pages_ * map_type::page_blocks) + number(block)) * (map_.shape.kv_heads + 1) + head;
  }
  static physical_block physical(row_view<page_id const> table, i64 block) {
    return layout::paged<typename Scheme::layout>{{}, table, map_type::page_blocks}.resolve(logical_block(block));
  }
  /// The pool's copies of blocks are about to be outdated.
  void forget_runs(int layer, row_view<page_id const> table, i64 first, i64 last) {
    if (pool_.slots() == 0 || map_.discards_far) return;
    for (i64 b = first; b < last; ++b)
      for (int head = 0; head <= map_.shape.kv_heads; ++head) pool_.forget(run_key(layer, physical(table, b), head));
  }
  /// Where a run is in the pool, or will be once the misses are fetched; null where all of the pool is in use.
  std::byte const* resolve(int layer, physical_block block, int head) {
    i64 const key = run_key(layer, block, head);
    i64 slot = pool_.find(key);
    bool const is_hit = slot != slot_pool::none;
    if (observer_) ++(is_hit ? observer_->pool_hits : observer_->pool_misses);
    if (!is_hit) {
      slot = pool_.take(key);
      if (slot == slot_pool::none) return nullptr;
      misses_.push_back({slot, block, head});
    }
    return pool_.data(slot);
  }
  void fetch_misses(Executor const& on, int layer) requires(Executor::is_host) {
    auto const g = map_.geometry();
    auto const bytes_of = [&](miss const& m) { return m.head < g.heads ? g.slice_bytes() : g.shared_bytes(); };
    struct guard_type {  // what was not fetched is not there
      cache& of;
      int layer;
      bool is_done;
      ~guard_type() {
        if (!is_done)
          for (miss const& m : of.misses_) of.pool_.forget(of.run_key(layer, m.block, m.head));
      }
    } guard{*this, layer, false};
    on.for_each(i64(misses_.size()), [&](i64 i, int) {
      miss const& m = misses_[std::size_t(i)];
      if constexpr (!Scheme::tier::is_directly_readable) tier_.fetch(layer, m.block, m.head, {pool_.data(m.slot), bytes_of(m)});
    });
    guard.is_done = true;
    if (observer_)
      for (miss const& m : misses_) observer_->moved_bytes += bytes_of(m);
  }
  /// Brings the selected blocks of the step into the pool, as far as they fit.
  void make_resident(Executor const& on, int layer) requires(Executor::is_host) {
    auto const g = map_.geometry();
    pool_.begin_step();
    misses_.clear();
    for (std::size_t i = 0; i < steps_.size(); ++i)
      for (int head = 0; head < g.heads; ++head) {
        i64 const item = i64(i) * g.heads + head;
        for (i64 j = 0; j < counts_[std::size_t(item)]; ++j) {
          auto const at = std::size_t(item * sizes_.selected + j);
          auto const block = physical(steps_[i].pages, number(ids_[at]));
          resident_[at] = {g.slice_bytes() > 0 ? resolve(layer, block, head) : nullptr, g.shared_bytes() > 0 ? resolve(layer, block, g.heads) : nullptr};
        }
      }
    fetch_misses(on, layer);
  }
  std::vector<layer_memory<Scheme>> all_layers() {
    std::vector<layer_memory<Scheme>> layers;
    layers.reserve(std::size_t(map_.shape.layers));
    for (int layer = 0; layer < map_.shape.layers; ++layer) layers.push_back(memory(layer));
    return layers;
  }
  layer_memory<Scheme> memory(int layer) {
    std::byte* far = nullptr;
    if constexpr (Scheme::tier::is_directly_readable) far = tier_.data(layer);
    return {layout_,
            far,
            summaries_.data() + i64{layer} * pages_ * map_.summary_page(),
            near_.data() + i64{layer} * limits_.sequences * map_.near_sequence(),
            state_.data() + i64{layer} * limits_.sequences * map_.state_sequence(),
            outliers_.data() + i64{layer} * limits_.sequences * map_.outlier_sequence(),
            &tier_,
            layer};
  }
  static typename Executor::template buffer<float> make_turns(Executor const& on, model_shape const& shape, cellar::limits const& limits) {
    std::vector<float> turns;
    if constexpr (needs_rotary<Scheme>) {
      turns.resize(std::size_t(turn_floats(shape.rotary, limits.tokens)));
      fill_turns(shape.rotary, limits.tokens, turns.data());
    }
    return on.upload(std::move(turns));
  }
  static typename Executor::template buffer<double> make_frequencies(Executor const& on, model_shape const& shape) {
    std::vector<double> copy;
    if (!Executor::is_host && shape.rotary.is_set()) copy.assign(shape.rotary.inverse_frequencies.begin(), shape.rotary.inverse_frequencies.end());
    return on.upload(std::move(copy));
  }
  template <class Turns, class Frequencies>
  static model_shape turned(model_shape shape, Turns const& turns, Frequencies const& frequencies) {
    shape.rotary.turns = {turns.data(), i64(turns.size())};
    if (!Executor::is_host && shape.rotary.is_set()) shape.rotary.inverse_frequencies.data = frequencies.data();
    return shape;
  }
  static typename Scheme::tier make_tier(map_type const& map, typename Scheme::layout const& layout, i64 blocks,
                                         tier_options_of<typename Scheme::tier> const& options) {
    if constexpr (Scheme::tier::is_directly_readable)
      return typename Scheme::tier(map.shape.layers, layout.bytes());
    else
      return typename Scheme::tier(map.shape.layers, map.geometry(), blocks, options);
  }
  std::byte* workspace() { return reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(workspace_.data()), 64)); }

  row_view<logical_block const> outliers_of(int layer, i64 slot, int head) const {
    if constexpr (!Scheme::outliers::keeps_outliers) return {};
    auto const* const ids = reinterpret_cast<logical_block const*>(outliers_.data() + outlier_record(layer, slot, head));
    return {ids, std::find(ids, ids + map_.outliers, logical_block{-1}) - ids};
  }
  i64 outlier_record(int layer, i64 slot, int head) const {
    return (i64{layer} * limits_.sequences + slot) * map_.outlier_sequence() + head * map_.outlier_head();
  }
  /// Ids in a device's memory, up to the first -1.
  static std::vector<logical_block> downloaded(Executor const& on, logical_block const* ids, i64 count) requires(!Executor::is_host) {
    std::vector<logical_block> all(static_cast<std::size_t>(count));
    on.download(all.data(), ids, count * i64(sizeof(logical_block)));
    all.erase(std::find(all.begin(), all.end(), logical_block{-1}), all.end());
    return all;
  }
  i64 first_missed(i64 batch_index, int kv_head) const { return (batch_index * map_.shape.kv_heads + kv_head) * sizes_.rows; }
  i64 missed_rows(i64 batch_index) const { return steps_[std::size_t(batch_index)].new_tokens * map_.shape.group(); }
  void check_item(i64 batch_index, int kv_head) const {
    expects(batch_index >= 0 && batch_index < i64(steps_.size()), "selected: the step has no such sequence");
    expects(kv_head >= 0 && kv_head < map_.shape.kv_heads, "selected: no such KV head");
  }
  void check_outliers(int layer, sequence_id id, int kv_head) const {
    static_cast<void>(at(id));
    check_layer(layer);
    expects(kv_head >= 0 && kv_head < map_.shape.kv_heads, "outliers: no such KV head");
  }
  i64 outlier_bytes(i64 slot) const {
    if constexpr (!Executor::is_host) return map_.outlier_sequence();  // what is reserved: the ids are not the host's to read
    i64 n = 0;
    for (int head = 0; head < map_.shape.kv_heads; ++head) n += outliers_of(0, slot, head).count;
    return n * (i64(sizeof(logical_block)) + Scheme::block_tokens * map_.near_token()) + map_.shape.kv_heads * map_.outlier_attention();
  }
  void check_layer(int layer) const { expects(layer >= 0 && layer < map_.shape.layers, "no such layer"); }
  void check_workers(Executor const& on) const {
    expects(on.workers() <= int(worker_statistics_.size()), "the executor has more workers than the one that the cache was made for");
  }
  template <class T>
  void check_rows(heads_view<T> x, int dim, i64 tokens, char const* message) const {
    expects(x.tokens == tokens && is_rows_of(x, map_.shape.kv_heads, dim), message);
  }
  /// Rows that the scheme has no place for.
  template <class T>
  static void check_unstored(token_rows<T> const& rows) {
    expects(!map_type::values_in_keys || !rows.values.data, "token_rows: the scheme's values are channels of its keys: leave values empty");
    expects(map_type::is_indexed || !rows.index_keys.data, "token_rows: the scheme's summary is not of index keys: leave index_keys empty");
  }
  /// Rows of the step. Those of a captured call may be more, for later steps.
  template <class T>
  void check_step_rows(heads_view<T> const& x, int heads, int dim, char const* message) const {
    expects((Executor::is_host ? x.tokens == step_tokens_ : x.tokens >= step_tokens_) && is_rows_of(x, heads, dim), message);
  }
  /// Index queries of the step.
  template <class T>
  void check_index(Executor const& on, index_queries<T> const& index, char const* message) const {
    i64 const heads = map_.shape.kv_heads * scored_queries<Scheme>(0);
    check_step_rows(index.queries, int(heads), map_type::scored_dim, "index_queries: queries must be [step tokens, kv_heads * index_heads, index_dim]");
    expects(index.weights.data && index.weights.rows >= index.queries.tokens && index.weights.columns() == heads &&
                (index.weights.rows == 1 || index.weights.stride != 0),
            "index_queries: weights must be [step tokens, kv_heads * index_heads]");
    heads_view<float const> const weights{index.weights.data, index.queries.tokens, 1, int(heads), index.weights.stride, heads};
    expects(!Executor::is_host || (are_storable<T>(on, index.queries, largest<float>) && are_storable<float>(on, weights, largest<float>)), message);
  }
  /// What a policy stores, after it was rounded near: a near number below the policy's limit, so that no larger one rounds beyond it.
  template <class Policy>
  static float largest_near(int dim = Scheme::head_dim) {
    using near = typename Scheme::near_scalar;
    return std::min(largest<near>, to_float(rounded_down<near>(largest_stored<Policy>(dim))));
  }
  static float largest_of_side(int side) {
    float const of_summary = largest_near<typename Scheme::summary>(map_type::scored_dim);
    if (side == 0) return map_type::is_indexed ? largest_near<typename Scheme::key_codec>() : std::min(largest_near<typename Scheme::key_codec>(), of_summary);
    return side == 1 ? largest_near<typename Scheme::value_codec>(Scheme::value_dim) : of_summary;
  }
  template <storage_scalar T>
  void attend_by(Executor const& on, int layer, heads_view<T const> q, heads_view<T> out, [[maybe_unused]] scoring_queries<Scheme, T> const& scoring) {
    expects(step_tokens_ > 0, "attend: plan a step first");
    check_layer(layer);
    check_step_rows(q, map_.shape.query_heads, Scheme::head_dim, "attend: queries must be [step tokens, query_heads, head_dim]");
    check_step_rows(out, map_.shape.query_heads, Scheme::value_dim, "attend: out must be [step tokens, query_heads, value_dim]");
    check_workers(on);
    expects(!Executor::is_host || are_storable<T>(on, q, largest<float>), "attend: a query is NaN or infinite");
    expects(is_appended_[std::size_t(layer)], "attend: append the step's keys and values to this layer first");
    row_view<sequence_step const> const steps = current_;
    statistics* const per_worker = observer_ ? worker_statistics_.data() : nullptr;
    attends_everything_ = operation::selects_everything<Scheme> || layer < budget_.dense_layers;
    operation::attend_rest<Scheme> rests;
    if constexpr (operation::weighs_rest<Scheme>) rests.part.states = rest_states_.data();
    if constexpr (remainder_by_class<typename Scheme::remainder>) rests.part.sums = remainder_sums_.data();
    if constexpr (Scheme::estimates_missed) rests.missed = missed_.data();
    if constexpr (!operation::selects_everything<Scheme>)
      if (!attends_everything_) {
        if constexpr (keeps_selections)
          kept_.template select<T>(on, map_, memory(layer), steps, scoring, sizes_, workspace(), ids_.data(), counts_.data(), per_worker);
        else
          select_blocks<Scheme, T>(on, map_, memory(layer), steps, scoring, sizes_, workspace(), ids_.data(), counts_.data(), per_worker, rests,
                                   samples_.data());
      }
    if constexpr (Scheme::tier::is_directly_readable) {
      using near_type = decltype(run_pools_.bring(on, memory(layer), steps, ids_.data(), counts_.data()));
      near_type const near = attends_everything_ ? near_type() : run_pools_.bring(on, memory(layer), steps, ids_.data(), counts_.data());
      attend_blocks<Scheme, T>(on, map_, memory(layer), steps, q, out, sizes_, workspace(), ids_.data(), counts_.data(), attends_everything_, per_worker, near,
                               rests, samples_.data());
    } else {
      if (!attends_everything_) make_resident(on, layer);
      attend_blocks<Scheme, T>(on, map_, memory(layer), steps, q, out, sizes_, workspace(), ids_.data(), counts_.data(), attends_everything_, per_worker,
                               resident_.data(), rests, samples_.data());
    }
    if constexpr (evicts_by<typename Scheme::outliers>) observe_attention<Scheme, T>(on, map_, memory(layer), steps, q, sizes_, workspace());
    if (observer_) collect();
  }
  template <storage_scalar T>
  void select_by(Executor const& on, int layer, scoring_queries<Scheme, T> const& q) {
    static_assert(keeps_selections, "cellar: the scheme selects anew in every layer and step, so nothing can be selected ahead: give it reuse_ids<1, 2>");
    check_layer(layer);
    check_workers(on);
    if (layer < budget_.dense_layers) return;
    expects((layer - budget_.dense_layers) % Scheme::reuse::layers == 0, "select: this layer shares the selection of an earlier one: select there");
    bool const is_appended = is_appended_[std::size_t(layer)];
    if constexpr (Executor::is_host) {
      attends_everything_ = false;
      kept_.template select_ahead<T>(on, map_, memory(layer), current_, is_appended, q, sizes_, workspace(), ids_.data(), counts_.data(),
                                     observer_ ? worker_statistics_.data() : nullptr);
      if constexpr (!Scheme::tier::is_directly_readable) make_resident(on, layer);
    } else {
      auto const chosen = kept_.template select_ahead<T>(on, map_, memory(layer), current_, is_appended, q, sizes_);
      run_pools_.bring(on, memory(layer), chosen.steps, chosen.ids, chosen.counts, true);
    }
  }
  /// Checks and seals all layers; nothing of the sequence has changed when an error leaves.
  template <storage_scalar Query>
  void seal_staged(Executor const& on, sequence& s, i64 slot, i64 sealed, prompt_queries<Query> queries) {
    i64 const tokens = s.filled[0];
    std::vector<prompt_layer<Scheme>> layers;
    i64 observed = observes_queries<Scheme> ? queries.tokens : 0;
    if constexpr (attention_outlier_rule<typename Scheme::outliers>) observed = std::min<i64>(observed, Scheme::outliers::observed);
    auto const asked = [&](int layer) {
      i64 const first = (i64{layer} + 1) * queries.tokens - observed;
      heads_view<Query const> const q =
          packed_heads(queries.data + first * map_.shape.query_heads * Scheme::head_dim, observed, map_.shape.query_heads, Scheme::head_dim);
      expects(are_storable<Query>(on, q, largest<float>), "finish_prompt: a query is NaN or infinite");
      return any_heads_view(q);
    };
    auto const add = [&]<class T>(prompt_staging<T> const& staging) {
      for (int layer = 0; layer < map_.shape.layers; ++layer) {
        auto const rows = staged(staging, layer, tokens);
        for (int side = 0; side < map_type::sides; ++side)
          expects(!map_type::has_side(side) || are_storable<T>(on, rows[std::size_t(side)], largest_of_side(side)),
                  "finish_prompt: a staged key or value is NaN or infinite, or too large for the scheme's storage types");
        layers.push_back({memory(layer), rows[0], rows[1], observes_queries<Scheme> ? asked(layer) : any_heads_view{}, rows[2]});
      }
    };
    if (s.staging.type == scalar_type::f32) add(staging_of<float>(s));
    if (s.staging.type == scalar_type::f16) add(staging_of<f16>(s));
    if (s.staging.type == scalar_type::bf16) add(staging_of<bf16>(s));
    auto scratch = on.template allocate<float>(prompt_floats<Scheme>(on, map_.shape, tokens, s.staging.type, observed));
    page_guard guard{*this, s, slot, 0};
    take_pages(s, slot, pages_for(sealed));
    for (int layer = 0; layer < map_.shape.layers; ++layer) forget_runs(layer, pages(slot), 0, sealed);
    sequence_step const step{.slot = slot, .pages = published_.pages(on, slot, pages(slot)), .sealed = sealed, .length = tokens};
    seal_prompt<Scheme>(on, map_, row_view<prompt_layer<Scheme> const>{layers.data(), i64(layers.size())}, step,
                        row_view<float>{scratch.data(), i64(scratch.size())});
    guard.kept = s.pages;
  }
  template <class T>
  std::array<heads_view<T>, 3> staged(prompt_staging<T> s, int layer, i64 tokens) const {
    i64 const first = layer * s.capacity * map_.shape.kv_heads;
    auto const of = [&](T* x, int side) {
      int const dim = map_type::side_dim(side);
      return dim > 0 ? packed_heads(x + first * dim, tokens, map_.shape.kv_heads, dim) : heads_view<T>{};
    };
    return {of(s.keys, 0), of(s.values, 1), of(s.index_keys, 2)};
  }
  template <class T>
  static prompt_staging<T> staging_of(sequence const& s) {
    return {static_cast<T*>(s.staging.keys), static_cast<T*>(s.staging.values), s.staging.capacity, 0, static_cast<T*>(s.staging.index_keys)};
  }
  void collect() {
    ++observer_->attends;
    for (statistics& s : worker_statistics_) {
      observer_->fetched_blocks += s.fetched_blocks;
      observer_->moved_bytes += s.moved_bytes;
      observer_->scored_blocks += s.scored_blocks;
      observer_->undefined_scores += s.undefined_scores;
      observer_->lost_samples += s.lost_samples;
      observer_->seconds.score += s.seconds.score;
      observer_->seconds.select += s.seconds.select;
      observer_->seconds.fetch += s.seconds.fetch;
      observer_->seconds.attend += s.seconds.attend;
      s = {};
    }
  }

  static constexpr bool keeps_selections = operation::keeps_selections<Scheme>;

  cellar::limits limits_;
  cellar::budget budget_;
  template <class T>
  using buffer = typename Executor::template buffer<T>;  // memory near the processor

  buffer<float> turns_;         // rotary::turns
  buffer<double> frequencies_;  // rotary::inverse_frequencies, where the host's are out of reach
  map_type map_;
  i64 pages_;
  typename Scheme::layout layout_;
  typename Scheme::tier tier_;
  typename Executor::template reached<typename Scheme::tier> reached_;
  operation::decode_workspace<Scheme> sizes_;
  buffer<std::byte> summaries_, near_, state_, outliers_;
  std::vector<page_id> page_table_, free_pages_;
  std::vector<int> page_users_;  // a page: sequences that share it
  std::vector<sequence> sequences_;
  buffer<logical_block> ids_;
  buffer<i64> counts_;
  slot_pool pool_;  // of runs, by run_key
  std::vector<miss> misses_;
  std::vector<resident_runs> resident_;           // beside ids_
  buffer<attention::softmax_state> rest_states_;  // [batch][kv_head][query row], of far blocks that are not chosen
  buffer<float> missed_;                          // [batch][kv_head][query row]
  buffer<std::uint32_t> samples_;                 // [batch][kv_head], row_samples of each
  buffer<float> remainder_sums_;                  // [batch][kv_head][query row][summed_channels]
  buffer<std::byte> workspace_;
  typename Executor::template run_pools<Scheme> run_pools_;   // of a device
  typename Executor::template kept_selections<Scheme> kept_;  // nothing where every layer and step selects
  typename Executor::step_table published_;                   // after all memory: where it waits for a device, nothing has been freed yet
  row_view<sequence_step const> current_;                     // steps_ where the executor reads them
  std::vector<statistics> worker_statistics_;
  std::vector<sequence_step> steps_;
  std::vector<char> is_appended_;  // a layer
  i64 step_tokens_ = 0;
  int appended_layers_ = 0;
  bool attends_everything_ = false;
  statistics* observer_ = nullptr;
};

}  // namespace cellar
