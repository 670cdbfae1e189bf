#pragma once
#include "cellar/operation/memory.hpp"
#include "cellar/select/top_k.hpp"

/// Near copies of far runs between steps, for teams of many members: which selected runs are there, where the others go, and bringing them up.
///
///   where [far blocks]   the slot of a block's run, -1 where it has none        holders [slots]   the block of a slot, -1 where it is free
///   stamps [slots]       the step that used it last, negated; infinite where it is free: the highest is replaced first
namespace cellar::inline CELLAR_ABI::operation {

/// The pool of one KV head of a sequence in a layer. A run is a block's planes of that head.
struct run_pool {
  std::int32_t* where = nullptr;
  logical_block* holders = nullptr;
  float* stamps = nullptr;
  std::byte* runs = nullptr;
  i64 blocks = 0, slots = 0, run_bytes = 0;

  CELLAR_HD static constexpr i64 head_bytes(i64 blocks, i64 slots) { return round_up((blocks + 2 * slots) * 4, 16); }
  /// bookkeeping: head_bytes; runs: slots * run_bytes; both 16-byte aligned
  CELLAR_HD static run_pool at(std::byte* bookkeeping, std::byte* runs, i64 blocks, i64 slots, i64 run_bytes) {
    auto* const where = reinterpret_cast<std::int32_t*>(bookkeeping);
    return {where, reinterpret_cast<logical_block*>(where + blocks), reinterpret_cast<float*>(where + blocks + slots), runs, blocks, slots, run_bytes};
  }
  CELLAR_HD std::byte* run(i64 slot) const { return runs + slot * run_bytes; }
};

/// Whether a scheme's selected runs are kept near: they are copied as wholes, and all of a block's planes are one head's.
template <offloading_scheme S>
inline constexpr bool keeps_runs = S::layout::is_run_contiguous&& S::tier::is_directly_readable&& S::select::reads_scores&& scope_of<typename S::key_codec> ==
                                   scope::one_head&& scope_of<typename S::value_codec> == scope::one_head;

/// Forgets the blocks from `first` on: all of them where it is 0.
///
/// Effects  a body over a team
template <team Team>
CELLAR_HD void forget_runs(Team& t, run_pool const& pool, i64 first) {
  for (i64 b = first + t.rank(); b < pool.blocks; b += t.size()) pool.where[b] = -1;
  for (i64 s = t.rank(); s < pool.slots; s += t.size())
    if (first == 0 || number(pool.holders[s]) >= first) {
      pool.holders[s] = logical_block{-1};
      pool.stamps[s] = infinity;
    }
  t.sync();
}

inline constexpr i64 resolve_bytes = select::top_k::shared_bytes + 64;

/// Finds the selected blocks' runs, and gives those that are not there the slots used longest ago, ties to the lowest.
///
/// Shapes      ids ascending; written: slot_of [ids.count], and misses [the returned count], places in ids, ascending
/// Requires    ids.count <= pool.slots; `step` not below that of any earlier call; shared memory of resolve_bytes; victims [ids.count]
/// Effects     a body over a team. Returns the number of misses, on every member; their runs are to be fetched. Steps beyond 2^24 that f32 does not tell apart
///             count as one use
/// Complexity  O(ids + slots)
template <team Team>
CELLAR_HD i64 resolve(Team& t, row_view<logical_block const> ids, run_pool const& pool, i64 step, std::int32_t* slot_of, std::int32_t* misses,
                      logical_block* victims) {
  float const now = -float(step);
  i64 missing = 0;
  for (i64 base = 0; base < ids.count; base += t.size()) {  // all members come along: scan is theirs together
    i64 const i = base + t.rank();
    std::int32_t const slot = i < ids.count ? pool.where[number(ids[i])] : 0;
    std::uint32_t total = 0;
    std::uint32_t const before = t.scan(std::uint32_t(slot < 0), total);
    if (i < ids.count) {
      slot_of[i] = slot;
      if (slot >= 0)
        pool.stamps[slot] = -infinity;  // no victim, whatever else this step has used
      else
        misses[missing + before] = std::int32_t(i);
    }
    missing += total;
  }
  t.sync();
  if (missing > 0) select::top_k{missing}(t, row_view<float const>{pool.stamps, pool.slots}, row_view<logical_block>{victims, missing});
  t.sync();
  for (i64 i = t.rank(); i < ids.count; i += t.size())
    if (slot_of[i] >= 0) pool.stamps[slot_of[i]] = now;
  t.sync();
  for (i64 m = t.rank(); m < missing; m += t.size()) {  // no victim holds a selected block
    i64 const slot = number(victims[m]), i = misses[m];
    if (logical_block const old = pool.holders[slot]; number(old) >= 0) pool.where[number(old)] = -1;
    pool.holders[slot] = ids[i];
    pool.where[number(ids[i])] = std::int32_t(slot);
    pool.stamps[slot] = now;
    slot_of[i] = std::int32_t(slot);
  }
  t.sync();
  return missing;
}

}  // namespace cellar::operation
