#pragma once
#include <bit>
#include <vector>

#include "cellar/core/math.hpp"
#include "cellar/core/view.hpp"

namespace cellar::inline CELLAR_ABI {

/// Near memory for runs of far blocks, found by key, the least recently used replaced first.
///
/// Keys taken or found since the last begin_step are in use: they are not replaced until the next one.
///
/// Laws        a key has at most one slot, a slot at most one key; find gives the slot that take gave for the key, until it is forgotten or replaced
/// Effects     allocates at construction only. Not thread-safe, but slots may be written and read by several threads
/// Complexity  O(1) each, begin_step included
class slot_pool {
 public:
  static constexpr i64 none = -1;

  slot_pool() = default;
  slot_pool(i64 slots, i64 slot_bytes)
      : slot_bytes_(round_up(slot_bytes, 16)), data_(std::size_t(slots * slot_bytes_)), slots_(std::size_t(slots)), table_(table_size(slots), none) {
    for (i64 i = 0; i < slots; ++i) slots_[std::size_t(i)].newer = i + 1 < slots ? i + 1 : none, slots_[std::size_t(i)].older = i - 1;
    oldest_ = slots > 0 ? 0 : none;
    newest_ = slots - 1;
  }

  i64 slots() const { return i64(slots_.size()); }
  i64 bytes() const { return i64(data_.size()); }
  std::byte* data(i64 slot) { return data_.data() + slot * slot_bytes_; }

  /// Frees all slots for replacement again.
  void begin_step() { ++step_; }

  /// The slot of a key, now in use, or none.
  i64 find(i64 key) {
    i64 const slot = table_.empty() ? none : table_[position(key)];
    if (slot != none) use(slot);
    return slot;
  }
  /// A slot for a key that has none: that of the least recently used key, which loses it. None if all are in use.
  i64 take(i64 key) {
    i64 const slot = oldest_;
    if (slot == none || slots_[std::size_t(slot)].used_in == step_) return none;
    forget(slots_[std::size_t(slot)].key);
    slots_[std::size_t(slot)].key = key;
    table_[position(key)] = slot;
    use(slot);
    return slot;
  }
  /// Takes a key's slot away: its bytes are no longer those of the key. Nothing where it has none.
  void forget(i64 key) {
    if (key == none || table_.empty()) return;
    std::size_t hole = position(key);
    i64 const slot = table_[hole];
    if (slot == none) return;
    auto& s = slots_[std::size_t(slot)];
    s.key = none;
    s.used_in = 0;
    unlink(slot);  // to the old end
    s.older = none;
    s.newer = oldest_;
    (oldest_ == none ? newest_ : slots_[std::size_t(oldest_)].older) = slot;
    oldest_ = slot;
    // Entries that were placed beyond the hole move into it, so that no search ends early.
    std::size_t const mask = table_.size() - 1;
    table_[hole] = none;
    for (std::size_t i = (hole + 1) & mask; table_[i] != none; i = (i + 1) & mask) {
      std::size_t const home = hash(slots_[std::size_t(table_[i])].key) & mask;
      if (((i - home) & mask) >= ((i - hole) & mask)) {
        table_[hole] = table_[i];
        table_[i] = none;
        hole = i;
      }
    }
  }

 private:
  struct slot_state {
    i64 key = none, newer = none, older = none;
    i64 used_in = 0;
  };
  static std::size_t table_size(i64 slots) { return slots > 0 ? std::bit_ceil(std::size_t(2 * slots)) : 0; }
  static std::size_t hash(i64 key) {
    auto x = std::uint64_t(key) * 0x9e3779b97f4a7c15u;
    return std::size_t(x ^ x >> 32);
  }
  /// Where a key is in the table, or would be put.
  std::size_t position(i64 key) const {
    std::size_t i = hash(key) & (table_.size() - 1);
    while (table_[i] != none && slots_[std::size_t(table_[i])].key != key) i = (i + 1) & (table_.size() - 1);
    return i;
  }
  void unlink(i64 slot) {
    auto& s = slots_[std::size_t(slot)];
    (s.older == none ? oldest_ : slots_[std::size_t(s.older)].newer) = s.newer;
    (s.newer == none ? newest_ : slots_[std::size_t(s.newer)].older) = s.older;
  }
  void use(i64 slot) {
    auto& s = slots_[std::size_t(slot)];
    s.used_in = step_;
    unlink(slot);
    s.older = newest_;
    s.newer = none;
    (newest_ == none ? oldest_ : slots_[std::size_t(newest_)].newer) = slot;
    newest_ = slot;
  }

  i64 slot_bytes_ = 0;
  std::vector<std::byte> data_;
  std::vector<slot_state> slots_;
  std::vector<i64> table_;  // open addressing: slot numbers
  i64 oldest_ = none, newest_ = none, step_ = 1;
};

}  // namespace cellar
