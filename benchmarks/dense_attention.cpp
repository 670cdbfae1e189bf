// Dense decode: attention to every key and value, 32 query and 8 KV heads of 128 channels, by the bytes of keys and values.
#include "paired.hpp"

using namespace benchmarks;

namespace {

struct dense_int8 : scheme::dense<head_dim> {
  using key_codec = cellar::codec::int8<>;
  using value_codec = cellar::codec::int8<>;
};

template <class Scheme, class T>
void dense(benchmark::State& state, host::executor const& on, i64 tokens) {
  int const layers = int(std::max<i64>(1, 65536 / tokens));  // more than any cache holds
  decoding<Scheme, T> d(on, tokens, {}, layers);
  bandwidth_probe probe(on);
  paired timings;
  d.attend();
  for (int i = 0; i < 25; ++i) timings.sample([&] { return d.attend(); }, probe);
  report_of_probe(state, timings, d.far_bytes());
}

}  // namespace

int main(int count, char** arguments) {
  for (int const threads : thread_counts())
    for (i64 const tokens : {4096, 32768, 131072}) {
      auto const with = [&](std::string const& what, auto f) {
        add("dense_attention/" + what + "/tokens:" + std::to_string(tokens), threads,
            [f, tokens](benchmark::State& state, host::executor const& on) { f(state, on, tokens); });
      };
      with("bf16", dense<scheme::dense<head_dim>, bf16>);
      with("f16", dense<scheme::dense<head_dim, f16>, f16>);
      with("int8", dense<dense_int8, bf16>);
    }
  return run(count, arguments);
}
