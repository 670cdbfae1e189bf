#pragma once
#include <fstream>
#include <iterator>

#include "cache/scratch.hpp"
#include "cuda/families.hpp"

/// Snapshots of a device's cache: the same files as the host's, in both directions.
namespace snapshots {

using namespace cellar;

inline constexpr int layers = 2, kv_heads = 2, query_heads = 6;

inline std::string content(std::string const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A cache, and steps of one sequence with rows by a seed.
template <class Scheme, class Executor>
struct user {
  static constexpr int D = Scheme::head_dim;
  Executor on;
  std::vector<double> frequencies = against_host::frequencies(D);
  cellar::cache<Scheme, Executor> cache{on, shape(), {.sequences = 2, .tokens = 400}, allowed()};

  model_shape shape() const {
    return {.layers = layers,
            .query_heads = query_heads,
            .kv_heads = kv_heads,
            .head_dim = D,
            .softmax_scale = 0,
            .rotary = {rotary_pairing::half_split, {frequencies.data(), D / 2}}};
  }
  static budget allowed() {
    budget b = Scheme::published;
    b.tokens = 64, b.share = 0, b.dense_layers = 0, b.sinks = 3, b.window = 20;
    b.outliers = Scheme::outliers::keeps_outliers ? 3 : 0;
    return b;
  }
  sequence_id prompt(i64 tokens, std::uint64_t seed = 11) {
    random_numbers r(seed);
    auto k = on.upload(r.normals(layers * tokens * kv_heads * D)), v = on.upload(r.normals(layers * tokens * kv_heads * D));
    auto const id = cache.begin_prompt(prompt_staging<float>{k.data(), v.data(), tokens, tokens});
    cache.finish_prompt(on, id);
    return id;
  }
  std::vector<float> step(sequence_id id, std::uint64_t seed) {
    random_numbers r(seed);
    batch_entry const one{id, 1};
    cache.plan(on, row_view<batch_entry const>{&one, 1});
    std::vector<float> all;
    for (int layer = 0; layer < layers; ++layer) {
      auto k = on.upload(r.normals(kv_heads * D)), v = on.upload(r.normals(kv_heads * D)), q = on.upload(r.normals(query_heads * D));
      auto out = on.upload(std::vector<float>(std::size_t(query_heads * D)));
      cache.append(on, layer, packed_heads(k.data(), 1, kv_heads, D), packed_heads(v.data(), 1, kv_heads, D));
      cache.template attend<float>(on, layer, packed_heads(q.data(), 1, query_heads, D), packed_heads(out.data(), 1, query_heads, D));
      std::vector<float> some(out.size());
      if constexpr (Executor::is_host)
        some = out;
      else
        on.download(some.data(), out.data(), i64(some.size() * sizeof(float)));
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
};

template <class Scheme, class Device>
void check(Device const& on) {
  user<Scheme, host::executor> here{{}};
  user<Scheme, Device> there{on};
  auto const path = scratch_path(), again = scratch_path();
  auto const id = here.prompt(187);
  for (std::uint64_t i = 0; i < 30; ++i) here.step(id, i);
  here.cache.save(here.on, id, path);

  // What the host saved goes on on the device, and is saved there byte for byte, near pools or not.
  there.prompt(90);  // so that slots and pages are others
  auto const before = there.prompt(187, 12);
  for (std::uint64_t i = 0; i < 3; ++i) there.step(before, i);  // so that near pools hold something else
  there.cache.free(before);
  auto const restored = there.cache.restore(there.on, path);
  there.cache.save(there.on, restored, again);
  CHECK(content(again) == content(path));
  double worst = 0;
  for (std::uint64_t i = 100; i < 106; ++i) {
    auto const expected = here.step(id, i), got = there.step(restored, i);
    for (std::size_t row = 0; row < expected.size(); row += Scheme::head_dim)
      worst = std::max(worst, against_host::error_of(expected.data() + row, got.data() + row, Scheme::head_dim));
  }
  CHECK(worst < 2e-3);  // 2^-11 of each product where points are looked up in f16

  // And back.
  there.cache.save(there.on, restored, again);
  user<Scheme, host::executor> other{{}};
  auto const back = other.cache.restore(other.on, again);
  worst = 0;
  for (std::uint64_t i = 200; i < 203; ++i) {
    auto const expected = here.step(id, i), got = other.step(back, i);
    for (std::size_t row = 0; row < expected.size(); row += Scheme::head_dim)
      worst = std::max(worst, against_host::error_of(expected.data() + row, got.data() + row, Scheme::head_dim));
  }
  CHECK(worst < 2e-3);

  // Damage is noticed, and the cache goes on.
  std::string bytes = content(path);
  bytes[bytes.size() - 9] = char(bytes[bytes.size() - 9] ^ 1);
  std::ofstream(again, std::ios::binary) << bytes;
  there.cache.free(restored);
  CHECK_THROWS_AS(there.cache.restore(there.on, again), io_error);
  auto const third = there.cache.restore(there.on, path);
  CHECK(there.cache.length(third) == 217);
  std::filesystem::remove(path);
  std::filesystem::remove(again);
}

struct sealing : scheme::yakv<64, float> {
  static constexpr bool keeps_generated = false;
};
struct sealing_bounds : scheme::quest<64, float> {
  static constexpr bool keeps_generated = false;
};

template <class Device>
void check_all(Device const& on) {
  check<sealing>(on);
  check<sealing_bounds>(on);
  check<scheme::yakv_before_rotary<64, float>>(on);
  check<families::with_remainder>(on);
  check<scheme::sink_window<64, float>>(on);
}

}  // namespace snapshots
