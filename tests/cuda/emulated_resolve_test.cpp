// Near pools of runs against a model: which runs are there, which are replaced, that no two share a slot, whatever is asked of them.
#include <algorithm>
#include <map>
#include <set>

#include "catch.hpp"
#include "cellar/operation/resolve.hpp"
#include "emulator/emulator.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

struct pool_of_memory {
  i64 blocks, slots;
  std::vector<std::byte> bookkeeping;
  operation::run_pool pool;

  pool_of_memory(i64 b, i64 s)
      : blocks(b),
        slots(s),
        bookkeeping(std::size_t(operation::run_pool::head_bytes(b, s)), std::byte{0x5a}),
        pool(operation::run_pool::at(bookkeeping.data(), nullptr, b, s, 132)) {}
};

/// The specification: a block has the slot that it was given until it is replaced or forgotten; the least recently used slot goes first, ties by lowest.
struct model {
  std::vector<i64> holder, used;

  explicit model(i64 slots) : holder(std::size_t(slots), -1), used(std::size_t(slots), -1) {}
  i64 find(i64 block) const {
    auto const at = std::find(holder.begin(), holder.end(), block);
    return at == holder.end() ? -1 : at - holder.begin();
  }
  /// Slots of the blocks, and which of them were missing.
  std::pair<std::vector<i64>, std::vector<i64>> step(std::vector<i64> const& blocks, i64 now) {
    std::vector<i64> slots, misses, victims;
    for (i64 const b : blocks) {
      slots.push_back(find(b));
      if (slots.back() >= 0) used[std::size_t(slots.back())] = now;
    }
    for (std::size_t i = 0; i < blocks.size(); ++i)
      if (slots[i] < 0) misses.push_back(i64(i));
    for (i64 s = 0; s < i64(holder.size()); ++s)
      if (used[std::size_t(s)] != now) victims.push_back(s);
    std::stable_sort(victims.begin(), victims.end(), [&](i64 a, i64 b) { return used[std::size_t(a)] < used[std::size_t(b)]; });
    victims.resize(misses.size());
    std::sort(victims.begin(), victims.end());  // given out in order of place
    for (std::size_t m = 0; m < misses.size(); ++m) {
      holder[std::size_t(victims[m])] = blocks[std::size_t(misses[m])];
      used[std::size_t(victims[m])] = now;
      slots[std::size_t(misses[m])] = victims[m];
    }
    return {slots, misses};
  }
  void forget(i64 first) {
    for (std::size_t s = 0; s < holder.size(); ++s)
      if (holder[s] >= first || first == 0) holder[s] = used[s] = -1;
  }
};

/// A step that selects several times, as where layers share keys: what the later selections have is not theirs to lose.
void check_again(std::uint64_t seed) {
  random_numbers random(seed);
  i64 const blocks = 60, slots = 10;
  pool_of_memory memory(blocks, slots);
  auto const launch = [&](auto const& body) {
    emulator::launch({.threads = 64, .shared_bytes = operation::resolve_bytes, .order = emulator::shuffled(seed)}, body);
  };
  launch([&](emulator::team& t) { operation::forget_runs(t, memory.pool, 0); });
  for (i64 call = 0; call < 20; ++call) {
    std::set<i64> chosen;
    while (i64(chosen.size()) < slots - call % 3) chosen.insert(random.below(20));
    std::vector<logical_block> ids, victims(chosen.size());
    for (i64 const b : chosen) ids.push_back(logical_block(b));
    i64 const count = i64(ids.size());
    std::vector<std::int32_t> slot_of(ids.size()), misses(ids.size());
    launch([&](emulator::team& t) {
      operation::resolve(t, row_view<logical_block const>{ids.data(), count}, memory.pool, 1 + call / 5, slot_of.data(), misses.data(), victims.data());
    });
    REQUIRE(std::set<std::int32_t>(slot_of.begin(), slot_of.end()).size() == ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      REQUIRE(memory.pool.holders[slot_of[i]] == ids[i]);
      REQUIRE(memory.pool.where[number(ids[i])] == slot_of[i]);
    }
  }
}

void check(i64 blocks, i64 slots, i64 most, std::uint64_t seed, int threads) {
  INFO(blocks << " blocks, " << slots << " slots, up to " << most << " selected, " << threads << " threads, seed " << seed);
  random_numbers random(seed);
  pool_of_memory memory(blocks, slots);
  model expected(slots);
  auto const launch = [&](auto const& body) {
    emulator::launch({.threads = threads, .shared_bytes = operation::resolve_bytes, .order = emulator::shuffled(seed)}, body);
  };
  launch([&](emulator::team& t) { operation::forget_runs(t, memory.pool, 0); });
  for (i64 step = 1; step <= 12; ++step) {
    std::set<i64> chosen;
    i64 const count = random.below(most + 1);
    while (i64(chosen.size()) < count) chosen.insert(random.below(step % 3 == 0 ? blocks : std::min(blocks, 2 * most)));  // some steps like the last, some not
    std::vector<i64> const numbers(chosen.begin(), chosen.end());
    std::vector<logical_block> ids, victims(chosen.size() + 1);
    for (i64 const b : numbers) ids.push_back(logical_block(b));
    std::vector<std::int32_t> slot_of(chosen.size() + 1, -9), misses(chosen.size() + 1, -9);
    std::vector<i64> counts(std::size_t(threads), -1);
    launch([&](emulator::team& t) {
      counts[t.rank()] =
          operation::resolve(t, row_view<logical_block const>{ids.data(), count}, memory.pool, step, slot_of.data(), misses.data(), victims.data());
    });
    auto const [slots_of_model, misses_of_model] = expected.step(numbers, step);
    for (i64 const n : counts) REQUIRE(n == i64(misses_of_model.size()));
    REQUIRE(std::vector<i64>(slot_of.begin(), slot_of.begin() + count) == slots_of_model);
    REQUIRE(std::vector<i64>(misses.begin(), misses.begin() + i64(misses_of_model.size())) == misses_of_model);
    REQUIRE(slot_of.back() == -9);
    REQUIRE(misses.back() == -9);
    REQUIRE(std::set<std::int32_t>(slot_of.begin(), slot_of.begin() + count).size() == chosen.size());
    for (i64 b = 0; b < blocks; ++b) REQUIRE(memory.pool.where[b] == expected.find(b));
    if (step % 5 == 0) {  // a roll back: the blocks from there on are others now
      i64 const first = random.below(blocks) + (step == 10 ? 0 : 1);
      launch([&](emulator::team& t) { operation::forget_runs(t, memory.pool, first); });
      expected.forget(first);
    }
  }
}

}  // namespace

TEST_CASE("near pools hold what a model holds: hits, least recently used victims, a slot for each run") {
  for (std::uint64_t seed = 1; seed <= 6; ++seed)
    for (int const threads : {32, 128}) {
      check(40, 8, 8, seed, threads);     // as many slots as a step may need
      check(300, 40, 25, seed, threads);  // more
      check(90, 1, 1, seed, threads);     // one
      check(16, 16, 16, seed, threads);   // all
      check(2500, 200, 150, seed, threads);
    }
}

TEST_CASE("a step that selects again keeps what the selection has, though all of the pool was used in that step") {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) check_again(seed);
}
