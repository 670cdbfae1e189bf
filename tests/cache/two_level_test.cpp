// Summaries of two levels: what bounds prune changes no id and no bit of an output, on keys of every structure; what counts prune is what they leave.
#include <bit>

#include "cache/reference.hpp"
#include "cellar/summary/around_mean.hpp"
#include "cellar/summary/mapped.hpp"
#include "cellar/summary/two_level.hpp"
#include "summary/flat.hpp"

using namespace cellar;

namespace two_level_test {

namespace {

constexpr int d = 32;

template <class Summary, int BlockTokens, class Reduce>
struct levels : scheme_defaults<d, float> {
  static constexpr int block_tokens = BlockTokens;
  using summary = Summary;
  using reduce = Reduce;
  using select = cellar::select::top_k;
};
using box = cellar::summary::min_max<f16>;
using exact_tokens = cellar::summary::quantized_key<cellar::codec::identity<f16>, 1>;
using codes = cellar::summary::quantized_key<cellar::codec::higgs<2, 256>>;
using mean_query = cellar::select::mean_query;
using sum_of_logits = cellar::select::sum_of_logits;
using max_of_logits = cellar::select::max_of_logits;

using boxes_of_tokens = levels<cellar::summary::two_level<box, cellar::summary::mean<float>, 16>, 1, mean_query>;
using boxes_of_codes = levels<cellar::summary::two_level<cellar::summary::min_max<>, codes, 64>, 1, max_of_logits>;
using boxes_of_boxes = levels<cellar::summary::two_level<cellar::summary::min_max<float>, cellar::summary::min_max<float>, 16>, 4, sum_of_logits>;
using codes_of_tokens = levels<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::higgs<2, 256>>, exact_tokens, 1>, 1, mean_query>;
using bytes_of_tokens = levels<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::int8<>>, exact_tokens, 1>, 1, sum_of_logits>;
using codes_of_few =
    levels<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::int4<>>, cellar::summary::quantized_key<codec::int8<>, 1>, 4>, 1,
           max_of_logits>;
template <class Summary>
using about_mean = cellar::summary::mapped<cellar::summary::around_mean, Summary>;
using codes_about_mean = levels<cellar::summary::two_level<about_mean<cellar::summary::bounded_key<cellar::codec::int8<>>>, exact_tokens, 1>, 1, mean_query>;
using boxes_about_mean = levels<cellar::summary::two_level<about_mean<box>, codes, 32>, 2, max_of_logits>;
struct by_threshold : codes_of_tokens {
  using select = cellar::select::threshold<>;
};
struct with_outliers : levels<cellar::summary::two_level<cellar::summary::bounded_key<cellar::codec::higgs<4, 256>>, exact_tokens, 1>, 4, sum_of_logits> {
  using outliers = cellar::select::least_cosine;
};

template <class F>
void for_each_exact(F const& f) {
  f(std::type_identity<boxes_of_tokens>{});
  f(std::type_identity<boxes_of_codes>{});
  f(std::type_identity<boxes_of_boxes>{});
  f(std::type_identity<codes_of_tokens>{});
  f(std::type_identity<bytes_of_tokens>{});
  f(std::type_identity<codes_of_few>{});
  f(std::type_identity<codes_about_mean>{});
  f(std::type_identity<boxes_about_mean>{});
  f(std::type_identity<by_threshold>{});
  f(std::type_identity<with_outliers>{});
}

enum class structure { random, clustered, constant, tied, huge, opposed, biased };  // opposed: means of keys that point apart are the largest of all

/// Keys and queries of a structure: [token][head][d].
struct input {
  std::vector<float> keys, values, queries;  // a query row for each token
};
input make(structure s, std::int64_t tokens, int kv_heads, int query_heads, std::uint64_t seed) {
  random_numbers r(seed);
  input x{{}, r.normals(tokens * kv_heads * d), r.normals(tokens * query_heads * d, 2)};
  std::vector<float> topic = r.normals(kv_heads * d, 4), drift = r.normals(kv_heads * d);
  auto const some = r.normals(8 * kv_heads * d);
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (r.below(40) == 0) topic = r.normals(kv_heads * d, 4);
    for (int i = 0; i < kv_heads * d; ++i) {
      float const noise = r.normal(), c = some[std::size_t(r.below(8) * kv_heads * d + i)];
      switch (s) {
        case structure::random:
          x.keys.push_back(noise);
          break;
        case structure::clustered:
          x.keys.push_back(topic[std::size_t(i)] + 0.2f * noise + 0.01f * float(t) * drift[std::size_t(i)]);
          break;
        case structure::constant:
          x.keys.push_back(drift[std::size_t(i)]);
          break;
        case structure::tied:
          x.keys.push_back(std::round(c));
          break;  // few values
        case structure::opposed:
          x.keys.push_back(t % 40 / 2 == 9 ? (t % 2 ? 44.0f : -36.0f) * topic[std::size_t(i)] : noise);
          break;
        case structure::biased:
          x.keys.push_back(200 * drift[std::size_t(i)] + noise);
          break;
        case structure::huge:
          x.keys.push_back(noise * (t % 7 == 3 ? 3000.0f : 1.0f));
          break;
      }
    }
    if (s == structure::tied && t > 8 && r.below(3) == 0) std::copy_n(x.keys.end() - 5 * kv_heads * d, kv_heads * d, x.keys.end() - kv_heads * d);
  }
  if (s == structure::tied)
    for (float& q : x.queries) q = std::round(q);
  return x;
}

struct seen {
  std::vector<std::vector<std::int64_t>> ids;  // of every (step, sequence, head)
  std::vector<float> outputs;
  std::int64_t scored_blocks = 0;
};

/// Steps of ragged batches.
template <class Scheme>
seen run(std::vector<input> const& of, std::vector<std::int64_t> prompts, int steps, std::int64_t new_tokens, int kv_heads, int query_heads, budget const& b,
         host::executor const& on, bool truncates = false) {
  seen all;
  model_shape const shape{.layers = 1, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = d};
  std::int64_t const most = *std::max_element(prompts.begin(), prompts.end()) + steps * new_tokens;
  cache<Scheme> c(on, shape, {.sequences = int(prompts.size()) + 1, .tokens = most, .step_tokens = new_tokens}, b);
  statistics did;
  c.observe(&did);
  std::vector<sequence_id> ids;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto keys = of[i].keys, values = of[i].values;
    ids.push_back(c.begin_prompt(prompt_staging<float>{keys.data(), values.data(), prompts[i], prompts[i]}));
    c.finish_prompt(on, ids.back());
  }
  for (int step = 0; step < steps; ++step) {
    std::vector<batch_entry> batch;
    std::vector<float> k, v, q;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (i == 0 || (step + int(i)) % 3 != 0) {
        std::int64_t const n = i == 1 ? 1 : new_tokens, at = c.length(ids[i]);
        batch.push_back({ids[i], n});
        auto const rows = [&](std::vector<float>& to, std::vector<float> const& from, int heads) {
          to.insert(to.end(), from.begin() + at * heads * d, from.begin() + (at + n) * heads * d);
        };
        rows(k, of[i].keys, kv_heads);
        rows(v, of[i].values, kv_heads);
        rows(q, of[i].queries, query_heads);
      }
    std::int64_t const rows = std::int64_t(k.size()) / kv_heads / d;
    std::vector<float> out(q.size());
    c.plan(on, {batch.data(), std::int64_t(batch.size())});
    c.append(on, 0, packed_heads<float const>(k.data(), rows, kv_heads, d), packed_heads<float const>(v.data(), rows, kv_heads, d));
    c.attend(on, 0, packed_heads<float const>(q.data(), rows, query_heads, d), packed_heads(out.data(), rows, query_heads, d));
    for (std::size_t i = 0; i < batch.size(); ++i)
      for (int h = 0; h < kv_heads; ++h) {
        all.ids.emplace_back();
        auto const chosen = *c.selected(std::int64_t(i), h);
        for (auto const id : chosen) all.ids.back().push_back(number(id));
      }
    all.outputs.insert(all.outputs.end(), out.begin(), out.end());
    if (truncates && step % 3 == 2) {
      auto const copy = c.fork(on, ids[0]);
      c.truncate(on, ids[0], c.length(ids[0]) - 2 * new_tokens - 1);
      c.free(ids[0]);
      ids[0] = copy;
      c.truncate(on, copy, c.length(copy) - 1);
    }
  }
  all.scored_blocks = did.scored_blocks;
  return all;
}

bool is_same(std::vector<float> const& a, std::vector<float> const& b) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) { return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y); });
}

}  // namespace

TEST_CASE("what bounds prune changes no id and no output, on keys of every structure") {
  for_each_exact([]<class Scheme>(std::type_identity<Scheme>) {
    static_assert(two_level_summary<typename Scheme::summary, d> && !two_level_summary<typename flat<Scheme>::summary, d> && offloading_scheme<flat<Scheme>>);
    for (auto const s : {structure::random, structure::clustered, structure::constant, structure::tied, structure::huge, structure::opposed, structure::biased})
      for (std::int64_t const selected : {1, 7, 40, 4000}) {
        std::vector<std::int64_t> const prompts{is_sanitized ? 260 : 700 + 37 * selected % 41, 3, 130};
        std::vector<input> of;
        for (std::size_t i = 0; i < prompts.size(); ++i) of.push_back(make(s, prompts[i] + 20, 2, 6, 7 * i + std::size_t(selected)));
        budget const b{.tokens = selected * Scheme::block_tokens, .sinks = 2, .window = 5, .outliers = Scheme::outliers::keeps_outliers ? 17 : 0};
        int const steps = is_sanitized ? 2 : 6;
        auto const two = run<Scheme>(of, prompts, steps, 2, 2, 6, b, {}), one = run<flat<Scheme>>(of, prompts, steps, 2, 2, 6, b, {});
        INFO(typeid(Scheme).name() << " structure " << int(s) << " selected " << selected << " scored " << two.scored_blocks << " of " << one.scored_blocks);
        REQUIRE(two.ids == one.ids);
        REQUIRE(is_same(two.outputs, one.outputs));
        CHECK(two.scored_blocks <= one.scored_blocks);
      }
  });
}

TEST_CASE("bounds prune where keys have structure, and a code of its own prunes any") {
  std::vector<input> const clustered{make(structure::clustered, 4120, 1, 2, 5)}, random{make(structure::random, 4120, 1, 2, 6)};
  budget const b{.tokens = 16, .window = 5};
  auto const share = []<class Scheme>(std::type_identity<Scheme>, std::vector<input> const& of, budget const& some) {
    return double(run<Scheme>(of, {4100}, 4, 1, 1, 2, some, {}).scored_blocks) / double(run<flat<Scheme>>(of, {4100}, 4, 1, 1, 2, some, {}).scored_blocks);
  };
  CHECK(share(std::type_identity<boxes_of_tokens>{}, clustered, b) < 0.3);
  CHECK(share(std::type_identity<codes_of_tokens>{}, clustered, b) < 0.5);
  CHECK(share(std::type_identity<codes_of_tokens>{}, random, b) < 0.2);
  CHECK(share(std::type_identity<bytes_of_tokens>{}, random, b) < 0.06);
  CHECK(share(std::type_identity<boxes_of_tokens>{}, random, b) > 0.9);  // nothing to prune by
  std::vector<input> const biased{make(structure::biased, 4200, 1, 2, 4)};
  CHECK(share(std::type_identity<codes_about_mean>{}, biased, b) < 0.06);
  CHECK(share(std::type_identity<bytes_of_tokens>{}, biased, b) > 0.2);  // codes whose errors are a share of the bias
}

TEST_CASE("two levels score the same for any number of workers, and after fork and truncate") {
  for_each_exact([]<class Scheme>(std::type_identity<Scheme>) {
    std::vector<input> const of{make(structure::clustered, 1400, 1, 3, 8)};
    budget const b{.tokens = 12 * Scheme::block_tokens, .sinks = 1, .window = 30, .outliers = Scheme::outliers::keeps_outliers ? 2 : 0};
    auto const one = run<Scheme>(of, {1300}, 8, 3, 1, 3, b, host::executor(), true);
    host::thread_pool pool(4);
    auto const four = run<Scheme>(of, {1300}, 8, 3, 1, 3, b, host::executor(pool), true), alone = run<flat<Scheme>>(of, {1300}, 8, 3, 1, 3, b, {}, true);
    REQUIRE(four.ids == one.ids);
    REQUIRE(is_same(four.outputs, one.outputs));
    REQUIRE(four.scored_blocks == one.scored_blocks);
    REQUIRE(alone.ids == one.ids);
    REQUIRE(is_same(alone.outputs, one.outputs));
  });
}

}  // namespace two_level_test
