#include "cellar/cache/slot_pool.hpp"

#include <algorithm>
#include <list>
#include <map>
#include <set>

#include "catch.hpp"
#include "random.hpp"

using namespace cellar;

namespace slot_pool_test {

namespace {

/// The pool's contract, the simple way.
class model {
 public:
  explicit model(i64 slots) : slots_(slots) {}
  void begin_step() { in_use_.clear(); }
  bool find(i64 key) {
    auto const at = std::find(order_.begin(), order_.end(), key);
    if (at == order_.end()) return false;
    order_.erase(at);
    order_.push_back(key);
    in_use_.insert(key);
    return true;
  }
  bool take(i64 key) {
    if (i64(order_.size()) == slots_) {
      if (slots_ == 0 || in_use_.contains(order_.front())) return false;
      order_.pop_front();
    }
    order_.push_back(key);
    in_use_.insert(key);
    return true;
  }
  void forget(i64 key) {
    order_.remove(key);
    in_use_.erase(key);
  }

 private:
  i64 slots_;
  std::list<i64> order_;  // least recently used first
  std::set<i64> in_use_;
};

}  // namespace

TEST_CASE("a slot pool is a map of least recently used replacement, whatever is asked of it") {  // H8, H9, H10
  for (i64 const slots : {0, 1, 2, 3, 7, 64}) {
    random_numbers r(std::uint64_t(slots) + 1);
    slot_pool pool(slots, 24);
    model expected(slots);
    std::map<i64, i64> slot_of;  // of keys that the model has
    for (int i = 0; i < 30000; ++i) {
      i64 const key = r.below(2 * slots + 3) * (i % 3 == 0 ? 1 : 1000003);
      i64 const what = r.below(20);
      if (what == 0) {
        pool.begin_step();
        expected.begin_step();
      } else if (what == 1) {
        pool.forget(key);
        expected.forget(key);
        slot_of.erase(key);
      } else {
        bool const is_there = expected.find(key);
        i64 slot = pool.find(key);
        REQUIRE((slot != slot_pool::none) == is_there);
        if (is_there) {
          REQUIRE(slot == slot_of.at(key));
          REQUIRE(*reinterpret_cast<i64*>(pool.data(slot)) == key);  // tag = content
        } else {
          bool const fits = expected.take(key);
          slot = pool.take(key);
          REQUIRE((slot != slot_pool::none) == fits);
          if (fits) {
            std::erase_if(slot_of, [&](auto const& entry) { return entry.second == slot; });  // the one that was replaced
            REQUIRE(slot >= 0);
            REQUIRE(slot < slots);
            slot_of[key] = slot;
            *reinterpret_cast<i64*>(pool.data(slot)) = key;
          }
        }
      }
      for (auto const& [k, s] : slot_of) REQUIRE(*reinterpret_cast<i64*>(pool.data(s)) == k);  // injective
    }
  }
}

}  // namespace slot_pool_test
