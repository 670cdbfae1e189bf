// Sequences that roll back and fork.
#include "cache/reference.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace sequences_test {

namespace {

template <int D>
struct sealing_yakv : scheme::yakv<D, float> {
  static constexpr bool keeps_generated = false;
};
template <int D>
struct group_codes : scheme::yakv<D, float> {  // blocks of 32 with codes for 16 and 8 tokens at a time, shared planes beside them
  static constexpr int block_tokens = 32;
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<16>>;
  using value_codec = cellar::codec::centred<cellar::codec::identity<f16>, cellar::codec::block_mean<8>>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256, 0, bf16, cellar::scope::all_heads>>;
};
template <int D>
struct shared_planes : scheme::mean_landmark<D, float> {
  static constexpr bool keeps_generated = false;
  using layout = cellar::layout::token_major;
  using key_codec = cellar::codec::low_rank<cellar::codec::fixed_rank<12>, jacobi_eigensolver, float>;
};

template <class F>
void for_each_kind(F const& f) {
  for_each_scheme<32>(f);
  f(std::type_identity<sealing_yakv<16>>{});
  f(std::type_identity<group_codes<16>>{});
  f(std::type_identity<shared_planes<16>>{});
}

}  // namespace

TEST_CASE("truncated within what is near, a sequence is as if the tokens had never been") {
  for_each_kind([]<class Scheme>(std::type_identity<Scheme>) {
    budget const b{.tokens = 32, .sinks = 2, .window = 40};
    reference<Scheme> ref(2, 2, 2, 31, 1), same(2, 2, 2, 31, 1);
    trial<Scheme> with(ref, {104}, 20, b, {}, 5), without(same, {104}, 20, b, {}, 5);
    without.step({0}, {3}, rounding);
    with.step({0}, {3}, rounding);
    with.step({0}, {4}, rounding);
    with.truncate(0, 107);
    bool const has_sealed = with.cache.sealed_blocks(with.ids[0]) != without.cache.sealed_blocks(without.ids[0]);  // those stay sealed
    CHECK(has_sealed == (Scheme::block_tokens == 1 && !Scheme::keeps_generated));
    auto const one = with.step({0}, {2}, rounding), other = without.step({0}, {2}, rounding);
    CHECK((one == other || has_sealed));
  });
}

TEST_CASE("truncated into sealed blocks at every length, a sequence goes on from what its codes say") {
  for_each_kind([]<class Scheme>(std::type_identity<Scheme>) {
    if (std::is_same_v<typename Scheme::select, select::none>) return;  // has lost them
    for (i64 length = 1; length <= 90; length += length < 8 || length > 80 ? 1 : 7) {
      INFO("length " << length << ", block_tokens " << Scheme::block_tokens);
      reference<Scheme> ref(2, 2, 2, std::uint64_t(length), 1);
      trial<Scheme> t(ref, {90}, 130, {.tokens = 32, .sinks = 3, .window = 4});
      t.step({0}, {1}, rounding);
      t.truncate(0, length);
      for (int i = 0; i < 3; ++i) t.step({0}, {1}, rounding);
      t.truncate(0, std::max<i64>(1, length - 2));  // again, into a block that is open already
      for (int i = 0; i < 40; ++i) t.step({0}, {1}, rounding);
    }
  });
}

TEST_CASE("forks go on separately from shared blocks, whatever becomes of the other") {
  for_each_kind([]<class Scheme>(std::type_identity<Scheme>) {
    constexpr bool discards = std::is_same_v<typename Scheme::select, select::none>;
    reference<Scheme> ref(2, 2, 2, 33, 1);
    trial<Scheme> t(ref, {90}, 130, {.tokens = 32, .sinks = 3, .window = 4}, {}, 1, 2);
    t.step({0}, {1}, rounding);
    auto const a = t.fork(0);
    t.truncate(a, discards ? 88 : 70);  // into a shared page: it is copied when the fork seals into it
    auto const b = t.fork(a);
    auto const refill = [&](std::size_t who, float by) {  // other tokens from here on
      auto& s = t.data[who];
      for (int layer = 0; layer < 2; ++layer)
        for (i64 p = t.lengths[who]; p < s.capacity; ++p)
          for (int head = 0; head < 2; ++head)
            for (int c = 0; c < 16; ++c) {
              for (auto* x : {&s.keys, &s.coded_keys}) ref.row(*x, s, layer, p, head)[c] = by;
              for (auto* x : {&s.values, &s.coded_values}) ref.row(*x, s, layer, p, head)[c] = -by;
            }
    };
    refill(a, 0.5f);
    refill(b, 0.25f);
    for (int i = 0; i < 70; ++i)
      t.step(i % 2 ? std::vector<std::size_t>{0, a, b} : std::vector<std::size_t>{b, 0}, i % 2 ? std::vector<i64>{1, 1, 1} : std::vector<i64>{1, 1}, rounding);
    t.cache.free(t.ids[0]);
    for (int i = 0; i < 5; ++i) t.step({a, b}, {1, 1}, rounding);
    t.cache.free(t.ids[b]);
    for (int i = 0; i < 5; ++i) t.step({a}, {1}, rounding);
  });
}

TEST_CASE("forks of full far memory share it, and say so when they need a page of their own") {
  using Scheme = sealing_yakv<16>;  // pages of 64 tokens
  reference<Scheme> ref(1, 1, 1, 34);
  host::executor const on;
  auto const data = ref.sequence(100, 200);
  std::vector<float> keys, values, k(16, 0.5f), out(16);
  cache<Scheme> c(on, ref.shape(), {.sequences = 3, .tokens = 200, .far_tokens = 128}, {.tokens = 8});
  auto const id = c.begin_prompt(ref.staging(data, keys, values));
  c.finish_prompt(on, id);  // 100 sealed blocks, two pages, all there are
  auto const other = c.fork(on, id), third = c.fork(on, other);
  CHECK_THROWS_WITH(c.fork(on, id), contains("limits.sequences are in use"));
  auto const step = [&](std::vector<sequence_id> const& who) {
    std::vector<batch_entry> batch;
    for (auto const s : who) batch.push_back({s, 1});
    c.plan(on, {batch.data(), i64(batch.size())});
    std::vector<float> rows(16 * who.size(), 0.5f), result(rows.size());
    auto const n = i64(who.size());
    c.append(on, 0, packed_heads<float const>(rows.data(), n, 1, 16), packed_heads<float const>(rows.data(), n, 1, 16));
    c.attend(on, 0, packed_heads<float const>(rows.data(), n, 1, 16), packed_heads(result.data(), n, 1, 16));
    return result;
  };
  CHECK_NOTHROW(step({id}));                              // its token stays open
  CHECK_THROWS_WITH(step({id}), contains("far memory"));  // one more seals a block into the shared page
  CHECK(c.length(id) == 101);
  c.free(third);
  CHECK_THROWS_WITH(step({id}), contains("far memory"));
  c.free(other);
  CHECK_NOTHROW(step({id}));  // the page is its own
  CHECK(c.length(id) == 102);
}

TEST_CASE("truncate and fork refuse what they cannot do, and change nothing") {
  using Scheme = scheme::quest<32, float>;
  reference<Scheme> ref(1, 1, 1, 35);
  host::executor const on;
  auto const data = ref.sequence(60, 100);
  std::vector<float> keys, values, k(16, 0.5f);
  cache<Scheme> c(on, ref.shape(), {.sequences = 2, .tokens = 100}, {.tokens = 16});
  auto const id = c.begin_prompt(ref.staging(data, keys, values));
  CHECK_THROWS_WITH(c.truncate(on, id, 10), contains("prompt is not finished"));
  CHECK_THROWS_WITH(c.fork(on, id), contains("prompt is not finished"));
  c.finish_prompt(on, id);
  CHECK_THROWS_WITH(c.truncate(on, id, 61), contains("at most the sequence's"));
  CHECK_THROWS_WITH(c.truncate(on, id, 0), contains("at least 1"));
  CHECK_THROWS_WITH(c.truncate(on, sequence_id{1}, 1), contains("no such sequence"));
  CHECK_THROWS_WITH(c.fork(on, sequence_id{9}), contains("no such sequence"));
  batch_entry const one{id, 1};
  c.plan(on, {&one, 1});
  CHECK_THROWS_WITH(c.truncate(on, id, 10), contains("not appended in all layers"));
  CHECK_THROWS_WITH(c.fork(on, id), contains("not appended in all layers"));
  c.discard();
  CHECK(c.length(id) == 60);
  c.truncate(on, id, 60);
  CHECK(c.length(c.fork(on, id)) == 60);
}

}  // namespace sequences_test
