// Many threads over little work: what the thread sanitizer looks at, and what contention must not change.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace threads_test {

namespace {

template <int D>
struct sealing : scheme::yakv_centred<D, float> {
  static constexpr bool keeps_generated = false;
};
template <int D>
struct shared_planes : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::low_rank<cellar::codec::fixed_rank<12>, jacobi_eigensolver, float>;
};

std::vector<i64> const prompts{1, 9, 40, 17, 33, 64, 2, 25, 50, 8, 16, 31};

/// Prompts, steps of all sequences with forks and roll back between them; every output.
template <class Scheme>
std::vector<float> outputs(host::executor const& on, i64 pool_runs = 0) {
  reference<Scheme> ref(2, 3, 2, 81);
  trial<Scheme> t(ref, prompts, 40, {.tokens = 24, .sinks = 2, .window = 4}, on, 2, 2, pool_runs);
  std::vector<float> all;
  std::vector<std::size_t> who;
  for (std::size_t s = 0; s < prompts.size(); ++s) who.push_back(s);
  for (int i = 0; i < 12; ++i) {
    std::vector<i64> new_tokens;
    for (auto const s : who) new_tokens.push_back(1 + i64(s + std::size_t(i)) % 2);
    auto const out = t.step(who, new_tokens, 0, false);
    all.insert(all.end(), out.begin(), out.end());
    if (i == 4) t.truncate(5, std::is_same_v<typename Scheme::select, select::none> ? t.lengths[5] - 1 : 50);
    if (i == 5) who.push_back(t.fork(5));
    if (i == 7) t.cache.free(t.ids[2]), who.erase(who.begin() + 2);
  }
  return all;
}

}  // namespace

TEST_CASE("eight threads over many small sequences give what one gives") {
  host::thread_pool pool(8);
  auto const check = [&]<class Scheme>(std::type_identity<Scheme>) {
    bool const is_same = outputs<Scheme>(host::executor(pool)) == outputs<Scheme>(host::executor());
    REQUIRE(is_same);
  };
  for_each_scheme<32>(check);
  check(std::type_identity<sealing<16>>{});
  check(std::type_identity<shared_planes<16>>{});
}

TEST_CASE("eight threads that fetch from a file, into the pool and past it, give what one gives") {  // H8, H10
  host::thread_pool pool(8);
  auto const check = [&]<class Scheme>(std::type_identity<Scheme>) {
    auto const expected = outputs<Scheme>(host::executor());
    for (i64 const pool_runs : {0, 1, 7, 10000}) {  // one layer's selection, next to nothing, too little, all
      bool const is_same = outputs<in_file<Scheme>>(host::executor(pool), pool_runs) == expected;
      REQUIRE(is_same);
    }
  };
  check(std::type_identity<scheme::quest<32, float>>{});
  check(std::type_identity<sealing<16>>{});
  check(std::type_identity<shared_planes<16>>{});
}

TEST_CASE("eight threads prefetch blocks while none is there, again and again") {
  using Scheme = in_file<sealing<16>>;
  host::thread_pool pool(8);
  host::executor const on(pool);
  reference<Scheme> ref(2, 2, 2, 82);
  trial<Scheme> t(ref, {200, 120}, 20, {.tokens = 24, .window = 4}, on, 1, 0, 60);
  for (int i = 0; i < 20; ++i) {
    std::vector<logical_block> blocks;
    for (int b = 0; b < 50; ++b) blocks.push_back(logical_block((b * 3 + i * 7) % 110));
    for (int head = 0; head < 2; ++head) t.cache.prefetch(on, i % 2, t.ids[std::size_t(head)], head, {blocks.data(), i64(blocks.size())});
    t.step({0, 1}, {1, 1}, rounding, i % 5 == 0);
  }
}

}  // namespace threads_test
