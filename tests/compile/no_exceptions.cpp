// Built with -fno-exceptions: the whole library compiles, links and runs, and every error reaches the handler that this program defines, with its message.
#include "cellar/cellar.hpp"

#include <setjmp.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __cpp_exceptions
#error this file is to be compiled without exceptions
#endif

template class cellar::cache<cellar::scheme::yakv_centred<64>>;
template class cellar::cache<cellar::scheme::quest<64>>;
template class cellar::cache<cellar::scheme::dense<64>>;

namespace {

jmp_buf after_error;
char last_message[1000];

}  // namespace

[[noreturn]] void cellar::on_error(char const* message) {
  std::snprintf(last_message, sizeof last_message, "%s", message);
  std::printf("on_error: %s\n", message);
  longjmp(after_error, 1);  // what the call held is lost: enough for a test
}

namespace {

using namespace cellar;

int failures = 0;
void check(bool condition, char const* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}
/// The call ends in the handler, with those words.
template <class F>
void refused(char const* words, F const& f) {
  last_message[0] = 0;
  if (setjmp(after_error) == 0) {
    f();
    check(false, "an error is raised");
  }
  check(std::strstr(last_message, words) != nullptr, words);
}

struct filed : scheme::quest<64, float> {
  using tier = cellar::tier::file;
};

template <class Scheme>
struct subject {
  static constexpr int d = Scheme::head_dim;
  std::vector<float> rows = std::vector<float>(100 * d), out = std::vector<float>(2 * d);
  host::executor on;
  cellar::cache<Scheme> cache;
  sequence_id id;

  explicit subject(host::executor const& with, tier_options_of<typename Scheme::tier> const& options = {})
      : on(with),
        cache(on, {.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = d}, {.sequences = 2, .tokens = 120}, {.tokens = 32, .window = 8}, options) {
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = float(int(i * 37 % 101) - 50) / 50;
    id = cache.begin_prompt(prompt_staging<float>{rows.data(), rows.data(), 100, 100});
    cache.finish_prompt(on, id);
  }
  std::vector<float> step(sequence_id who) {
    batch_entry const one{who, 1};
    cache.plan(on, {&one, 1});
    auto const kv = packed_heads<float const>(rows.data(), 1, 1, d);
    cache.append(on, 0, kv, kv);
    cache.attend(on, 0, packed_heads<float const>(rows.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
    return out;
  }
};

}  // namespace

int main() {
  host::thread_pool pool(2);
  subject<scheme::quest<64, float>> a{host::executor(pool)};
  refused("plan: the batch is empty", [&] { a.cache.plan(a.on, {}); });
  refused("truncate: the length must be at least 1", [&] { a.cache.truncate(a.on, a.id, 0); });
  a.cache.truncate(a.on, a.id, 70);
  auto const fork = a.cache.fork(a.on, a.id);
  refused("fork: capacity exceeded: all of limits.sequences", [&] { a.cache.fork(a.on, a.id); });
  for (int i = 0; i < 30; ++i) check(a.step(fork) == a.step(a.id), "a fork steps as its sequence");
  check(a.cache.length(fork) == 100, "steps are counted");

  // Serial from here on: the handler leaves by a jump, which other threads cannot take.
  std::string const path = "no_exceptions_" + std::to_string(::getpid()), snapshot = path + ".snapshot";
  subject<scheme::quest<64, float>> exact{host::executor()};
  subject<filed> b{host::executor(), {.path = path}};
  check(b.step(b.id) == exact.step(exact.id), "far memory in a file gives the same");
  b.cache.save(b.on, b.id, snapshot);
  auto const restored = b.cache.restore(b.on, snapshot);
  check(b.step(restored) == b.step(b.id), "a restored sequence steps as the saved one");
  check(::truncate(snapshot.c_str(), 100) == 0, "the snapshot can be cut");
  b.cache.free(restored);
  refused("shorter than a header", [&] { b.cache.restore(b.on, snapshot); });
  check(::truncate(path.c_str(), 64) == 0, "the file can be cut");
  refused("pread failed on", [&] { b.cache.truncate(b.on, b.id, 35); });
  check(b.cache.length(b.id) == 102, "a roll back that fails changes nothing");
  refused("open failed on /no/such/folder/file", [] { subject<filed>{host::executor(), {.path = "/no/such/folder/file"}}; });
  ::unlink(snapshot.c_str());
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
