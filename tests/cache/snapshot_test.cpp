// Sequences saved to files and restored from them, in another cache, after damage, after kills.
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <fstream>
#include <functional>

#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "eigensolver.hpp"

using namespace cellar;

namespace snapshot_test {

namespace {

template <int D>
struct shared_planes : scheme::mean_landmark<D, f16> {
  static constexpr bool keeps_generated = false;
  using layout = cellar::layout::token_major;
  using key_codec = cellar::codec::low_rank<cellar::codec::fixed_rank<12>, jacobi_eigensolver>;
};
template <int D>
struct sealing_yakv : scheme::yakv_centred<D, float> {
  static constexpr bool keeps_generated = false;
};

std::vector<char> content(std::string const& path) {
  std::ifstream f(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(f), {}};
}
void put(std::string const& path, std::vector<char> const& bytes) { std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size())); }

/// A cache with a sequence, and steps to tell two of them apart.
template <class Scheme>
struct subject {
  static constexpr int d = Scheme::head_dim;
  reference<Scheme>& ref;
  host::executor on;
  cellar::cache<Scheme> cache;

  subject(reference<Scheme>& r, limits const& l, budget const& b = {.tokens = 32, .sinks = 3, .window = 8}) : ref(r), cache(on, r.shape(), l, b) {}

  sequence_id prompt(sequence_data const& data) {
    std::vector<float> keys, values;
    auto const id = cache.begin_prompt(ref.staging(data, keys, values));
    cache.finish_prompt(on, id);
    return id;
  }
  /// One step of one token, made of its position.
  std::vector<float> step(sequence_id id, sequence_data const& data) {
    auto const& shape = ref.shape();
    batch_entry const one{id, 1};
    i64 const p = cache.length(id);
    cache.plan(on, {&one, 1});
    std::vector<float> all;
    for (int layer = 0; layer < shape.layers; ++layer) {
      auto const q = random_numbers(std::uint64_t(p * 10 + layer)).normals(shape.query_heads * d, 2);
      std::vector<float> out(q.size());
      cache.append(on, layer, packed_heads<float const>(ref.row(data.keys, data, layer, p), 1, shape.kv_heads, d),
                   packed_heads<float const>(ref.row(data.values, data, layer, p), 1, shape.kv_heads, d));
      cache.attend(on, layer, packed_heads<float const>(q.data(), 1, shape.query_heads, d), packed_heads(out.data(), 1, shape.query_heads, d));
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
};

}  // namespace

TEST_CASE("a restored sequence goes on bit for bit as the saved one, in a cache of other limits") {  // H22, H23
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    auto const path = scratch_path();
    reference<Scheme> ref(2, 2, 2, 51, 1);
    auto const data = ref.sequence(150, 260), other = ref.sequence(40, 260);
    subject<Scheme> a(ref, {.sequences = 1, .tokens = 230}), b(ref, {.sequences = 3, .tokens = 260});
    b.prompt(other);  // so that pages and slots are not the same
    auto const id = a.prompt(data);
    for (int i = 0; i < 20; ++i) a.step(id, data);
    a.cache.truncate(a.on, id, std::is_same_v<typename Scheme::select, select::none> ? 163 : 120);  // a block with kept codes
    a.step(id, data);
    a.cache.save(a.on, id, path);
    CHECK(!std::filesystem::exists(path + ".partial"));
    auto const again = b.cache.restore(b.on, path);
    CHECK(b.cache.length(again) == a.cache.length(id));
    CHECK(b.cache.sealed_blocks(again) == a.cache.sealed_blocks(id));
    CHECK(b.cache.selected_blocks(again) == a.cache.selected_blocks(id));
    for (int i = 0; i < 60; ++i) {
      bool const is_same = a.step(id, data) == b.step(again, data);
      REQUIRE(is_same);
    }
    std::filesystem::remove(path);
  };
  for_each_scheme<32>(check);
  check(std::type_identity<shared_planes<16>>{});
  check(std::type_identity<sealing_yakv<16>>{});
  check(std::type_identity<in_file<sealing_yakv<16>>>{});
  check(std::type_identity<in_file<scheme::quest<16, bf16>>>{});
}

TEST_CASE("a damaged snapshot is refused at every byte and at every length, and the cache goes on") {
  using Scheme = sealing_yakv<8>;
  auto const path = scratch_path();
  reference<Scheme> ref(1, 1, 1, 52, 1);
  auto const data = ref.sequence(20, 60);
  subject<Scheme> s(ref, {.sequences = 2, .tokens = 60}, {.tokens = 4, .sinks = 1, .window = 2});
  auto const id = s.prompt(data);
  s.cache.save(s.on, id, path);
  auto const good = content(path);
  auto const refused = [&] {
    try {
      s.cache.restore(s.on, path);
    } catch (io_error const&) {
      return true;
    } catch (precondition_error const&) {
      return true;
    }
    return false;
  };
  for (std::size_t at = 0; at < good.size(); ++at) {
    auto bad = good;
    bad[at] = char(bad[at] ^ (1 << at % 8));
    put(path, bad);
    INFO("byte " << at);
    REQUIRE(refused());
  }
  for (std::size_t n = 0; n < good.size(); ++n) {
    put(path, {good.begin(), good.begin() + long(n)});
    REQUIRE(refused());
  }
  auto longer = good;
  longer.push_back(0);
  put(path, longer);
  REQUIRE(refused());
  put(path, good);
  auto const again = s.cache.restore(s.on, path);  // all pages are still there to be had
  CHECK(s.step(again, data) == s.step(id, data));
  std::filesystem::remove(path);
}

TEST_CASE("a snapshot of another scheme, model or embedding is refused by name, and so is one that does not fit") {  // H11, H24
  using Scheme = scheme::quest<8, float>;
  auto const path = scratch_path();
  reference<Scheme> ref(2, 1, 1, 53);
  auto const data = ref.sequence(60, 100);
  budget const b{.tokens = 32, .sinks = 3, .window = 8};
  subject<Scheme> s(ref, {.sequences = 1, .tokens = 100}, b);
  auto const id = s.prompt(data);
  s.cache.save(s.on, id, path);
  auto const refusal = [&]<class Other>(std::type_identity<Other>, model_shape const& shape, limits const& l, budget const& budget) -> std::string {
    cache<Other> c(s.on, shape, l, budget);
    try {
      c.restore(s.on, path);
    } catch (precondition_error const& e) {
      return e.what();
    }
    return "";
  };
  limits const l{.sequences = 1, .tokens = 100};
  CHECK(refusal(std::type_identity<Scheme>{}, ref.shape(), l, b).empty());
  CHECK_THAT(refusal(std::type_identity<scheme::mean_landmark<8, float>>{}, ref.shape(), l, b), contains("another scheme") && contains("quest"));
  CHECK_THAT(refusal(std::type_identity<scheme::quest<8, f16>>{}, ref.shape(), l, b), contains("another scheme"));
  auto shape = ref.shape();
  shape.layers = 3;
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, shape, l, b), contains("layers: 2 there, 3 in this cache"));
  shape = ref.shape();
  shape.rotary.pairing = rotary_pairing::adjacent;
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, shape, l, b), contains("rotary embedding"));
  auto f = std::vector<double>(shape.rotary.inverse_frequencies.begin(), shape.rotary.inverse_frequencies.end());
  f[1] *= 0.5;
  shape = ref.shape();
  shape.rotary.inverse_frequencies = {f.data(), 4};
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, shape, l, b), contains("rotary embedding"));
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, ref.shape(), l, {.tokens = 32, .sinks = 4, .window = 8}), contains("sinks: 3 there, 4"));
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, ref.shape(), {.sequences = 1, .tokens = 59}, b), contains("limits.tokens"));
  CHECK_THAT(refusal(std::type_identity<Scheme>{}, ref.shape(), l, {.tokens = 16, .sinks = 3, .window = 8}), contains("budget"));
  subject<Scheme> wide(ref, {.sequences = 1, .tokens = 100}, {.tokens = 32, .sinks = 3, .window = 40});
  wide.cache.save(wide.on, wide.prompt(data), path + ".wide");
  CHECK_THROWS_WITH(cache<Scheme>(s.on, ref.shape(), l, {.tokens = 32, .sinks = 3}).restore(s.on, path + ".wide"), contains("fewer tokens near"));
  std::filesystem::remove(path + ".wide");
  CHECK_THROWS_WITH(s.cache.restore(s.on, path), contains("limits.sequences are in use"));
  CHECK_THROWS_AS(cache<Scheme>(s.on, ref.shape(), l, b).restore(s.on, path + ".none"), io_error);
  batch_entry const one{id, 1};
  s.cache.plan(s.on, {&one, 1});
  CHECK_THROWS_WITH(s.cache.save(s.on, id, path), contains("not appended in all layers"));
  std::filesystem::remove(path);
}

TEST_CASE("a sequence of a cache that keeps more near is refused by restore or by plan, and never in the middle of a step") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    auto const path = scratch_path();
    reference<Scheme> ref(2, 1, 1, 56);
    auto const data = ref.sequence(60, 100);
    int restored = 0, stopped = 0, refused = 0;
    for (i64 window = 4; window < 40; ++window) {
      subject<Scheme> a(ref, {.sequences = 1, .tokens = 100, .generated_tokens = 20}, {.tokens = 32, .sinks = 3, .window = window});
      a.cache.save(a.on, a.prompt(data), path);
      subject<Scheme> b(ref, {.sequences = 1, .tokens = 100, .generated_tokens = 20}, {.tokens = 32, .sinks = 3, .window = 4});
      sequence_id id{};
      try {
        id = b.cache.restore(b.on, path);
      } catch (precondition_error const& e) {
        CHECK_THAT(e.what(), contains("fewer tokens near"));
        ++refused;
        continue;
      }
      ++restored;
      try {
        for (int i = 0; i < 20; ++i) b.step(id, data);
      } catch (precondition_error const& e) {
        CHECK_THAT(e.what(), contains("plan: capacity exceeded: more tokens near"));
        CHECK(Scheme::keeps_generated);
        ++stopped;
      }
    }
    CHECK(restored > 0);
    CHECK(refused > 0);
    CHECK((stopped > 0) == Scheme::keeps_generated);
    std::filesystem::remove(path);
  };
  check(std::type_identity<scheme::quest<8, float>>{});
  check(std::type_identity<scheme::mean_landmark<8, float>>{});
  check(std::type_identity<sealing_yakv<8>>{});
}

namespace {

/// A file whose n-th call fails, as on a full or failing disk.
struct failing_file {
  static inline i64 calls = 0, fails_at = -1;
  tier::posix_file file;

  failing_file(std::string const& path, bool is_kept) : file(path, is_kept) {}
  explicit failing_file(std::string const& path) : file(path) {}
  void check(char const* what) const {
    if (calls++ == fails_at) throw io_error(28, what, path());
  }
  std::string const& path() const { return file.path(); }
  void resize(i64 n) { file.resize(n); }
  void write(i64 at, row_view<std::byte const> from) {
    check("pwrite");
    file.write(at, from);
  }
  void read(i64 at, row_view<std::byte> to) {
    check("pread");
    file.read(at, to);
  }
  i64 size() const { return file.size(); }
  void replace(std::string const& path) {
    check("fsync");
    file.replace(path);
  }
};

}  // namespace

TEST_CASE("saving that fails at any call leaves the old snapshot, restoring that fails changes nothing") {
  using Scheme = scheme::quest<32, float>;
  auto const path = scratch_path();
  reference<Scheme> ref(2, 2, 2, 54);
  auto const data = ref.sequence(2000, 2100);
  subject<Scheme> s(ref, {.sequences = 2, .tokens = 2100}, {.tokens = 32, .window = 8});
  auto const id = s.prompt(data);
  s.cache.save(s.on, id, path);
  auto const old = content(path);
  s.step(id, data);
  failing_file::fails_at = -1;
  failing_file::calls = 0;
  s.cache.save<failing_file>(s.on, id, path + ".new");
  i64 const calls = failing_file::calls;
  REQUIRE(calls > 3);
  for (i64 at = 0; at < calls; ++at) {
    failing_file::calls = 0;
    failing_file::fails_at = at;
    REQUIRE_THROWS_AS(s.cache.save<failing_file>(s.on, id, path), io_error);
    REQUIRE(content(path) == old);
    REQUIRE(!std::filesystem::exists(path + ".partial"));
  }
  for (i64 at = 0;; ++at) {
    failing_file::calls = 0;
    failing_file::fails_at = at;
    try {
      s.cache.restore<failing_file>(s.on, path);
      REQUIRE(at > 3);
      break;
    } catch (io_error const&) {
    }
  }
  std::filesystem::remove(path);
  std::filesystem::remove(path + ".new");
}

#if !CELLAR_UNDER_THREAD_SANITIZER
TEST_CASE("killed at any moment of saving or of writing to a file tier, the old or the new sequence is there, whole") {
  using Scheme = in_file<sealing_yakv<16>>;
  auto const path = scratch_path();
  reference<Scheme> ref(2, 2, 2, 55, 1);
  auto const old_data = ref.sequence(300, 420), new_data = ref.sequence(280, 420);
  limits const l{.sequences = 1, .tokens = 420};
  std::vector<float> expected[2];
  std::chrono::microseconds took{};  // by one round of a child
  {
    auto const start = std::chrono::steady_clock::now();
    subject<Scheme> a(ref, l), b(ref, l);
    auto const x = a.prompt(old_data);
    a.cache.save(a.on, x, path);
    took = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
    expected[0] = a.step(x, old_data);
    expected[1] = b.step(b.prompt(new_data), new_data);
  }
  random_numbers r(55);
  int kills = 0, seen[2] = {};
  for (int round = 0; round < 200; ++round) {
    pid_t const child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // writes prompts to its file tier and snapshots of both sequences, until it is killed
      for (int i = 0;; ++i) {
        subject<Scheme> s(ref, l);
        auto const& data = (i + round) % 2 ? old_data : new_data;
        s.cache.save(s.on, s.prompt(data), path);
      }
    }
    ::usleep(useconds_t(r.below(3 * took.count() + 1000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    kills += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    subject<Scheme> s(ref, l);
    auto const id = s.cache.restore(s.on, path);
    bool const is_old = s.cache.length(id) == 300;
    REQUIRE(s.cache.length(id) == (is_old ? 300 : 280));
    bool const is_whole = s.step(id, is_old ? old_data : new_data) == expected[is_old ? 0 : 1];
    REQUIRE(is_whole);
    ++seen[is_old ? 0 : 1];
  }
  CHECK(kills == 200);
  CHECK(seen[0] > 0);
  CHECK(seen[1] > 0);
  std::filesystem::remove(path);
  std::filesystem::remove(path + ".partial");
}
#endif

TEST_CASE("a restored sequence that has more near than a step leaves room for is refused when the step is planned") {
  using Scheme = scheme::quest<8, float>;
  auto const path = scratch_path();
  reference<Scheme> ref(1, 1, 1, 54);
  auto const data = ref.sequence(60, 100);
  subject<Scheme> wide(ref, {.sequences = 1, .tokens = 100}, {.tokens = 32, .window = 18}),
      narrow(ref, {.sequences = 1, .tokens = 100, .step_tokens = 2}, {.tokens = 32});
  auto const id = wide.prompt(data);
  for (int i = 0; i < 6; ++i) wide.step(id, data);
  CHECK(wide.cache.length(id) - 16 * wide.cache.sealed_blocks(id) == 18);  // of which the other cache holds 2 + 15 + 2, the step's tokens included
  wide.cache.save(wide.on, id, path);
  auto const again = narrow.cache.restore(narrow.on, path);
  batch_entry const two{again, 2};
  CHECK_THROWS_WITH(narrow.cache.plan(narrow.on, {&two, 1}), contains("plan: capacity exceeded: more tokens near"));
  CHECK(narrow.cache.length(again) == 66);
  narrow.cache.truncate(narrow.on, again, 65);
  CHECK_NOTHROW(narrow.cache.plan(narrow.on, {&two, 1}));
  std::filesystem::remove(path);
}

}  // namespace snapshot_test
