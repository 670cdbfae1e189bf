#pragma once
#include <algorithm>
#include <cmath>
#include <typeinfo>
#include <vector>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "cellar/cuda/append.hpp"
#include "cellar/cuda/attend.hpp"
#include "cellar/cuda/resolve.hpp"
#include "cellar/cuda/reuse.hpp"
#include "cellar/cuda/sequence.hpp"
#include "random.hpp"
#include "sanitizers.hpp"

/// A cache on a device does what a cache on the host does: the same schedule on both, outputs compared, for any device that has the drivers' concept.
namespace against_host {

using namespace cellar;

inline constexpr bool all_short = CELLAR_UNDER_THREAD_SANITIZER;

/// When a schedule selects ahead of attend.
enum class ahead { never, after_attend, before_append };

struct sizes {
  int layers = 2, group = 3, kv_heads = 2;
  float bound = 0;  ///< Of the relative error of an output row; 0: 2e-5, or 4e-3 for 16-bit outputs.
  i64 prompts[2] = {all_short ? 140 : 333, all_short ? 60 : 150};
  int steps = all_short ? 1 : is_sanitized ? 2 : 4;
  ahead selects = ahead::never;
  i64 selected_tokens = 64;  ///< Of schemes that select.
  bool is_short = all_short;
};

inline std::vector<double> frequencies(int head_dim) {
  std::vector<double> f;
  for (int i = 0; i < head_dim / 2; ++i) f.push_back(std::pow(1e4, -2.0 * i / head_dim));
  return f;
}

template <class T>
std::vector<T> rounded(std::vector<float> const& x) {
  std::vector<T> y;
  for (float const a : x) y.push_back(from_float<T>(a));
  return y;
}

/// Rows of [tokens, heads, D] on the host and on a device.
template <class T, class Device>
struct both_rows {
  std::vector<T> host;
  typename Device::template buffer<T> device;
  i64 tokens;
  int heads, head_dim;

  both_rows(Device const& on, std::vector<T> x, int n, int d)
      : host(x), device(on.upload(std::move(x))), tokens(i64(host.size()) / n / d), heads(n), head_dim(d) {}
  heads_view<T> on_host() { return packed_heads(host.data(), tokens, heads, head_dim); }
  heads_view<T> on_device() { return packed_heads(device.data(), tokens, heads, head_dim); }
};

/// ||a - b|| / ||a||
template <class T>
double error_of(T const* a, T const* b, int count) {
  double square = 0, off = 0;
  for (int c = 0; c < count; ++c) {
    double const x = double(to_float(a[c])), y = double(to_float(b[c]));
    square += x * x;
    off += (x - y) * (x - y);
  }
  return std::sqrt(off) / (std::sqrt(square) + 1e-30);
}

/// What a schedule gave on both.
struct comparison {
  double worst = 0;                   // error of an output row whose selection is the host's
  double worst_missed = 0;            // and of what it missed
  i64 selections = 0, differing = 0;  // of (step, layer, sequence, KV head)
  i64 ids = 0, other_ids = 0;         // selected, and not by the host
};

template <class Scheme, class Device, class T>
void compare(cache<Scheme> const& reference, cache<Scheme, Device> const& tested, Device const& on, std::vector<batch_entry> const& batch,
             std::vector<T> const& expected, std::vector<T> const& result, int query_heads, sizes const& s, comparison& seen) {
  constexpr int D = Scheme::value_dim;
  auto const selection = tested.selection();
  std::vector<logical_block> ids(std::size_t(selection.count));
  on.download(ids.data(), selection.data, i64(ids.size() * sizeof(logical_block)));
  std::size_t const each = ids.size() / std::size_t(3 * s.kv_heads);  // step_sequences of check
  i64 row = 0;
  for (i64 i = 0; i < i64(batch.size()); ++i) {
    for (int head = 0; head < s.kv_heads; ++head) {
      bool is_same = true;
      if (auto const chosen = reference.selected(i, head)) {
        auto const* const mine = ids.data() + std::size_t(i * s.kv_heads + head) * each;
        i64 others = 0, n = 0;
        for (std::size_t j = 0; j < each && number(mine[j]) >= 0; ++j, ++n) others += !std::binary_search(chosen->begin(), chosen->end(), mine[j]);
        REQUIRE(std::is_sorted(mine, mine + n));
        REQUIRE(std::all_of(mine + n, mine + each, [](logical_block b) { return b == logical_block{-1}; }));
        is_same = others == 0 && n == chosen->count;
        seen.ids += n;
        seen.other_ids += others + std::abs(n - chosen->count);
        ++seen.selections;
        seen.differing += !is_same;
      }
      if (!is_same) continue;
      if constexpr (Scheme::estimates_missed) {
        auto const here = reference.missed(i, head);
        auto const there = tested.missed(on, i, head);
        REQUIRE(here.has_value() == there.has_value());
        if (here) REQUIRE(here->count == i64(there->size()));
        for (std::size_t r = 0; here && r < there->size(); ++r)
          seen.worst_missed = std::max(seen.worst_missed, std::abs(double((*here)[i64(r)] - (*there)[r])));
      }
      for (i64 token = 0; token < batch[std::size_t(i)].new_tokens; ++token)
        for (int h = head * s.group; h < (head + 1) * s.group; ++h) {
          auto const at = std::size_t(((row + token) * query_heads + h) * D);
          double const error = error_of(expected.data() + at, result.data() + at, D);
          if (!(error <= seen.worst)) seen.worst = error;
        }
    }
    row += batch[std::size_t(i)].new_tokens;
  }
}

template <class Scheme, class T, class Device>
void check(Device const& on, std::uint64_t seed, sizes const& s = {}, cellar::budget b = Scheme::published) {
  constexpr int D = Scheme::head_dim, V = Scheme::value_dim;
  constexpr bool in_keys = memory_map<Scheme>::values_in_keys, is_indexed = memory_map<Scheme>::is_indexed;
  constexpr int I = is_indexed ? memory_map<Scheme>::scored_dim : 1;
  int const index_heads = is_indexed ? int(s.kv_heads * scored_queries<Scheme>(0)) : 1;
  int const query_heads = s.group * s.kv_heads;
  auto const f = frequencies(D);
  rotary const embedding{rotary_pairing::half_split, {f.data(), D / 2}};
  model_shape const shape{.layers = s.layers, .query_heads = query_heads, .kv_heads = s.kv_heads, .head_dim = D, .softmax_scale = 0, .rotary = embedding};
  limits const l{.sequences = 3, .tokens = 400, .step_tokens = 3, .step_sequences = 3};
  if (b.tokens == 0 && b.share > 0) b.share = 0.125;
  if (b.tokens > 0) b.tokens = s.selected_tokens;
  b.dense_layers = 1 < s.layers ? b.dense_layers < 1 ? b.dense_layers : 1 : 0;
  b.outliers = Scheme::outliers::keeps_outliers ? 3 : 0;
  b.sinks = 3;
  b.window = 20;
  host::executor const host;
  cache<Scheme> reference(host, shape, l, b);
  cache<Scheme, Device> tested(on, shape, l, b);
  double const bound = s.bound > 0 ? double(s.bound) : std::is_same_v<T, float> ? 2e-5 : 4e-3;
  comparison seen;

  random_numbers random(seed);
  std::vector<sequence_id> ids;
  for (i64 const tokens : s.prompts) {
    both_rows<T, Device> k(on, rounded<T>(random.normals(s.layers * tokens * s.kv_heads * D)), s.kv_heads, D);
    both_rows<T, Device> v(on, rounded<T>(random.normals(s.layers * tokens * s.kv_heads * V)), s.kv_heads, V);
    both_rows<T, Device> x(on, rounded<T>(is_indexed ? random.normals(s.layers * tokens * s.kv_heads * I) : std::vector<float>{}), s.kv_heads, I);
    auto const id =
        reference.begin_prompt(prompt_staging<T>{k.host.data(), in_keys ? nullptr : v.host.data(), tokens, tokens, is_indexed ? x.host.data() : nullptr});
    REQUIRE(tested.begin_prompt(
                prompt_staging<T>{k.device.data(), in_keys ? nullptr : v.device.data(), tokens, tokens, is_indexed ? x.device.data() : nullptr}) == id);
    if constexpr (observes_queries<Scheme>) {
      i64 const observed = std::min<i64>(29, tokens);  // tokens, not a multiple of what is observed at a time
      both_rows<T, Device> q(on, rounded<T>(random.normals(s.layers * observed * query_heads * D)), query_heads, D);
      reference.finish_prompt(host, id, prompt_queries<T>{q.host.data(), observed});
      tested.finish_prompt(on, id, prompt_queries<T>{q.device.data(), observed});
    } else {
      reference.finish_prompt(host, id);
      tested.finish_prompt(on, id);
    }
    if constexpr (Scheme::outliers::keeps_outliers)
      for (int layer = 0; layer < s.layers; ++layer)
        for (int head = 0; head < s.kv_heads; ++head) {
          auto const mine = tested.outliers(on, layer, id, head);
          auto const expected = reference.outliers(layer, id, head);
          REQUIRE(std::equal(mine.begin(), mine.end(), expected.begin(), expected.end()));
        }
    ids.push_back(id);
  }
  auto const step = [&](std::vector<batch_entry> const& batch) {
    i64 rows = 0;
    for (auto const& e : batch) rows += e.new_tokens;
    row_view<batch_entry const> const view{batch.data(), i64(batch.size())};
    reference.plan(host, view);
    tested.plan(on, view);
    for (int layer = 0; layer < s.layers; ++layer) {
      both_rows<T, Device> k(on, rounded<T>(random.normals(rows * s.kv_heads * D)), s.kv_heads, D),
          v(on, rounded<T>(random.normals(rows * s.kv_heads * V)), s.kv_heads, V);
      both_rows<T, Device> q(on, rounded<T>(random.normals(rows * query_heads * D)), query_heads, D);
      both_rows<T, Device> out(on, std::vector<T>(std::size_t(rows * query_heads * V), from_float<T>(undefined)), query_heads, V);
      both_rows<T, Device> x(on, rounded<T>(is_indexed ? random.normals(rows * s.kv_heads * I) : std::vector<float>{}), s.kv_heads, I),
          asked(on, rounded<T>(is_indexed ? random.normals(rows * index_heads * I) : std::vector<float>{}), index_heads, I);
      both_rows<float, Device> weights(on, is_indexed ? random.normals(rows * index_heads) : std::vector<float>{}, 1, index_heads);
      auto const select = [&](ahead when) {
        if constexpr (operation::keeps_selections<Scheme>)
          if (s.selects == when) {
            if constexpr (is_indexed) {
              reference.select(host, layer, index_queries<T>{asked.on_host(), {weights.host.data(), rows, index_heads, index_heads}});
              tested.select(on, layer, index_queries<T>{asked.on_device(), {weights.device.data(), rows, index_heads, index_heads}});
            } else {
              reference.select(host, layer, q.on_host());
              tested.select(on, layer, q.on_device());
            }
          }
      };
      select(ahead::before_append);
      if constexpr (in_keys || is_indexed) {
        token_rows<T> here{k.on_host()}, there{k.on_device()};
        if constexpr (!in_keys) here.values = v.on_host(), there.values = v.on_device();
        if constexpr (is_indexed) here.index_keys = x.on_host(), there.index_keys = x.on_device();
        reference.append(host, layer, here);
        tested.append(on, layer, there);
      } else {
        reference.append(host, layer, k.on_host(), v.on_host());
        tested.append(on, layer, k.on_device(), v.on_device());
      }
      if constexpr (is_indexed) {
        reference.template attend<T>(host, layer, q.on_host(), out.on_host(), {asked.on_host(), {weights.host.data(), rows, index_heads, index_heads}});
        tested.template attend<T>(on, layer, q.on_device(), out.on_device(), {asked.on_device(), {weights.device.data(), rows, index_heads, index_heads}});
      } else {
        reference.template attend<T>(host, layer, q.on_host(), out.on_host());
        tested.template attend<T>(on, layer, q.on_device(), out.on_device());
      }
      std::vector<T> result(out.host.size());
      on.download(result.data(), out.device.data(), i64(result.size() * sizeof(T)));
      compare(reference, tested, on, batch, out.host, result, query_heads, s, seen);
      select(ahead::after_attend);
    }
  };
  for (int i = 0; i < s.steps; ++i) step({{ids[1], 1 + i % 3}, {ids[0], 1}});
  step({{ids[0], 3}});
  // A fork goes on by itself, a truncated sequence goes on from where it was cut.
  auto const forked = reference.fork(host, ids[0]);
  REQUIRE(tested.fork(on, ids[0]) == forked);
  int const repeats = is_sanitized ? 1 : 2;
  for (int i = 0; i < repeats; ++i) step({{forked, 2}, {ids[0], 1}, {ids[1], 3}});
  if constexpr (!operation::selects_nothing<Scheme>) {
    int const again = s.is_short ? 1 : is_sanitized ? 6 : 13;
    i64 const length = std::max<i64>(5, reference.length(ids[0]) - std::max(3 * again - 2, 13));  // within a block of 8, 16 or 32
    reference.truncate(host, ids[0], length);
    tested.truncate(on, ids[0], length);
    for (int i = 0; i < again; ++i) step({{ids[0], 3}, {forked, 1}});  // until what was cut has sealed again
  }
  if constexpr (evicts_by<typename Scheme::outliers>) {  // a step that is taken back evicts nothing for good
    std::vector<batch_entry> const batch{{ids[0], 3}, {forked, 1}};
    both_rows<T, Device> k(on, rounded<T>(random.normals(4 * s.kv_heads * D)), s.kv_heads, D),
        v(on, rounded<T>(random.normals(4 * s.kv_heads * D)), s.kv_heads, D);
    if constexpr (!memory_map<Scheme>::values_in_keys) {
      reference.plan(host, row_view<batch_entry const>{batch.data(), 2});
      tested.plan(on, row_view<batch_entry const>{batch.data(), 2});
      reference.append(host, 0, k.on_host(), v.on_host());
      tested.append(on, 0, k.on_device(), v.on_device());
      reference.discard();
      tested.discard();
    }
    for (int i = 0; i < 2; ++i) step(batch);
  }
  reference.free(ids[1]);
  tested.free(ids[1]);
  step({{forked, 1}});
  if constexpr (operation::keeps_runs<Scheme>) {
    auto const [hits, misses] = tested.pool_hits_and_misses(on);
    CHECK(hits > 0);
    CHECK(misses > 0);
    if (s.selects == ahead::never) CHECK(hits + misses == seen.ids);
  }
  INFO(typeid(Scheme).name() << ": " << seen.differing << " of " << seen.selections << " selections differ, by " << seen.other_ids << " of " << seen.ids
                             << " ids");
  CHECK(seen.worst < bound);
  CHECK(seen.worst_missed < (cuda::detail::scores_points<Scheme> ? 2e-4 : 2e-5));  // points of grids are rounded to f16 there
  // Scores agree within rounding, so ids differ only where two are next to the last place: rarely, and by few.
  CHECK(seen.other_ids <= 1 + seen.ids / 200);
  CHECK(seen.differing <= 1 + seen.selections / 10);
}

}  // namespace against_host
