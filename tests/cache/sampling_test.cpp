// Sampled remainders: what each query head sampled, what it weighs, and what a cache makes of it, against the definition in double.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"
#include "operation/engine_memory.hpp"
#include "summary/hashes.hpp"

using namespace cellar;

namespace sampling_test {

namespace {

constexpr int d = 32;

template <class>
struct tables_of;
template <int K, int L, std::uint32_t Seed>
struct tables_of<summary::hash_tables<K, L, Seed>> {
  static constexpr int bits = K, tables = L;
};

using small = scheme::magic_pig<d, float, 4, 40>;

/// What a KV head of one sequence and layer samples and weighs, by the codes of the summary (which tests/summary checks).
template <class Scheme>
struct definition {
  using summary_type = typename Scheme::summary;
  static constexpr int K = tables_of<summary_type>::bits, L = tables_of<summary_type>::tables;
  reference<Scheme> const& ref;
  i64 sinks, blocks, length;
  std::vector<float> keys, values, exact;  // of all tokens: far ones as decoded; as they were hashed
  std::vector<float> mean;
  std::vector<std::uint32_t> codes;  // [block][word]

  definition(reference<Scheme> const& r, sequence_data const& s, int layer, int head, i64 sink_tokens, i64 sealed, i64 tokens)
      : ref(r), sinks(sink_tokens), blocks(sealed), length(tokens), mean(d) {
    exact = ref.head_rows(s.keys, s, layer, head, 0, length);
    keys = exact;
    values = ref.head_rows(s.values, s, layer, head, 0, length);
    if (blocks == 0) return;
    auto const far_keys = ref.template far<typename Scheme::key_codec>(s.coded_keys, s.original_keys, s, layer, head, sinks, sinks + blocks);
    auto const far_values = ref.template far<typename Scheme::value_codec>(s.coded_values, s.original_values, s, layer, head, sinks, sinks + blocks);
    std::copy(far_keys.begin(), far_keys.end(), keys.begin() + sinks * d);
    std::copy(far_values.begin(), far_values.end(), values.begin() + sinks * d);
    auto const prompt = ref.head_rows(s.original_keys, s, layer, head, 0, s.prompt);
    for (int c = 0; c < d; ++c) {
      double sum = 0;
      for (i64 p = 0; p < s.prompt; ++p) sum += double(prompt[std::size_t(p * d + c)]);
      mean[std::size_t(c)] = float(sum / double(s.prompt));
    }
    auto const by = bound();
    serial_team t;
    std::vector<std::byte> tile(std::size_t(by.tile_bytes(d)));
    for (i64 b = 0; b < blocks; ++b) {
      by.build(t, matrix_view<float const, d>{exact.data() + (sinks + b) * d, 1}, 1, tile.data(), 0);
      for (int w = 0; w < K * by.words; ++w) codes.push_back(reinterpret_cast<std::uint32_t const*>(tile.data())[w * 32]);
    }
  }
  summary_type bound() const { return summary_type{}.bind(reinterpret_cast<std::byte const*>(mean.data())); }

  /// How many tables collide with each far token.
  std::vector<int> collisions(float const* q) const {
    serial_team t;
    std::vector<float> scaled;
    for (int c = 0; c < d; ++c) scaled.push_back(q[c] * ref.shape().scale());
    std::vector<std::uint32_t> query(std::size_t(K * bound().words + 1));
    bound().prepare(t, rows_of<d>(std::as_const(scaled)), prepared_queries<std::byte, d>{reinterpret_cast<std::byte*>(query.data()), 1, nullptr});
    std::vector<int> all;
    for (i64 b = 0; b < blocks; ++b) {
      int n = 0;
      for (int table = 0; table < L; ++table) {
        bool agrees = true;
        for (int k = 0; k < K; ++k) {
          auto const w = std::size_t(k * bound().words + table / 32);
          agrees &= ((codes[std::size_t(b * K * bound().words) + w] ^ query[w]) >> (table % 32) & 1u) == 0;
        }
        n += agrees;
      }
      all.push_back(n);
    }
    return all;
  }

  /// Attention of a query at `position` to what is near and to the chosen blocks that it sampled.
  std::vector<double> attend(float const* q, i64 position, std::vector<i64> const& chosen, std::vector<i64> const& outliers, double floor) const {
    using variant = variant_reference<typename Scheme::attention>;
    auto const sampled = collisions(q);
    std::vector<std::pair<i64, double>> parts;  // position, logit as weighed
    auto const product = [&](i64 p) {
      double x = 0;
      for (int c = 0; c < d; ++c) x += double(q[c]) * double(keys[std::size_t(p * d + c)]);
      return x;
    };
    auto const add = [&](i64 p, double log_chance) {
      if (variant::sees(position, p))
        parts.emplace_back(p, variant::logit(product(p) * double(ref.shape().scale())) - std::log(std::exp(log_chance) + floor * (log_chance < 0)));
    };
    for (i64 p = 0; p < length; ++p)
      if (p < sinks || p >= sinks + blocks || std::count(outliers.begin(), outliers.end(), p - sinks)) add(p, 0);
    for (i64 const b : chosen) {
      if (sampled[std::size_t(b)] < 2) continue;
      double common = 0, q2 = 0, k2 = 0;
      for (int c = 0; c < d; ++c) {
        common += double(q[c]) * double(mean[std::size_t(c)]);
        q2 += double(q[c]) * double(q[c]);
        double const x = double(exact[std::size_t((sinks + b) * d + c)]) - double(mean[std::size_t(c)]);
        k2 += x * x;
      }
      add(sinks + b, hashes::log_chance(K, L, (product(sinks + b) - common) / std::sqrt(q2 * k2)));
    }
    double top = -1e300, sum = 0;
    std::vector<double> out(d, 0.0);
    for (auto const& [p, x] : parts) top = std::max(top, x);
    for (auto const& [p, x] : parts) {
      sum += std::exp(x - top);
      for (int c = 0; c < d; ++c) out[std::size_t(c)] += std::exp(x - top) * double(values[std::size_t(p * d + c)]);
    }
    for (double& x : out) x /= sum;
    return out;
  }
};

/// What was looked at, so that a check that saw nothing fails.
struct seen {
  i64 chosen = 0, only_of_some_heads = 0, cut = 0;
};

/// One step, its ids and outputs against the definition, in the last layer.
template <class Scheme>
void check_step(reference<Scheme>& ref, trial<Scheme>& t, std::vector<std::size_t> const& who, std::vector<i64> const& new_tokens, i64 budget_tokens,
                double tolerance, seen& total, double floor = 0) {
  auto const& shape = ref.shape();
  int const layer = shape.layers - 1, group = shape.group();
  auto const before = t.lengths;
  auto const all = t.step(who, new_tokens, 0, false);
  i64 rows = 0, row = 0;
  for (i64 const n : new_tokens) rows += n;
  float const* const out = all.data() + layer * rows * shape.query_heads * d;
  for (std::size_t i = 0; i < who.size(); ++i) {
    i64 const length = before[who[i]] + new_tokens[i], blocks = t.cache.sealed_blocks(t.ids[who[i]]);
    for (int head = 0; head < shape.kv_heads; ++head) {
      definition<Scheme> const defined(ref, t.data[who[i]], layer, head, t.cache.sinks(), blocks, length);
      std::vector<i64> outliers;
      for (auto const id : t.cache.outliers(layer, t.ids[who[i]], head)) outliers.push_back(number(id));
      std::vector<int> most(std::size_t(blocks), 0);
      std::vector<std::vector<int>> of_rows;
      std::vector<float> queries;  // [row][d]
      for (i64 token = 0; token < new_tokens[i]; ++token) {
        auto const q = ref.query(who[i], before[who[i]] + token, layer);
        for (int g = 0; g < group; ++g) {
          float const* const one = q.data() + (head * group + g) * d;
          queries.insert(queries.end(), one, one + d);
          of_rows.push_back(defined.collisions(one));
          for (std::size_t b = 0; b < most.size(); ++b) most[b] = std::max(most[b], of_rows.back()[b]);
        }
      }
      std::vector<i64> chosen;
      for (i64 b = 0; b < blocks; ++b)
        if (most[std::size_t(b)] >= 2 && std::count(outliers.begin(), outliers.end(), b) == 0) chosen.push_back(b);
      i64 const limit = std::min(budget_tokens, blocks - i64(outliers.size()));
      total.cut += std::max<i64>(0, i64(chosen.size()) - limit);
      if (i64(chosen.size()) > limit) {
        std::stable_sort(chosen.begin(), chosen.end(), [&](i64 a, i64 b) { return most[std::size_t(a)] > most[std::size_t(b)]; });
        chosen.resize(std::size_t(limit));
        std::sort(chosen.begin(), chosen.end());
      }
      auto const ids = *t.cache.selected(i64(i), head);
      REQUIRE(ids.count == i64(chosen.size()));
      for (std::size_t j = 0; j < chosen.size(); ++j) REQUIRE(number(ids[i64(j)]) == chosen[j]);
      total.chosen += ids.count;
      for (i64 const b : chosen)
        for (auto const& one : of_rows) total.only_of_some_heads += one[std::size_t(b)] < 2;
      for (i64 r = 0; r < new_tokens[i] * group; ++r) {
        auto const expected = defined.attend(queries.data() + r * d, before[who[i]] + r / group, chosen, outliers, floor);
        float const* const ours = out + ((row + r / group) * shape.query_heads + head * group + r % group) * d;
        for (int c = 0; c < d; ++c) {
          INFO("sequence " << who[i] << ", head " << head << ", row " << r << ", length " << length << ", " << chosen.size() << " chosen");
          REQUIRE(double(ours[c]) == Approx(expected[std::size_t(c)]).margin(tolerance));
        }
      }
    }
    row += new_tokens[i];
  }
}

struct coded : small {  // attended to before the rotation is undone
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::higgs<2, 256>;
  using value_codec = cellar::codec::higgs<2, 256>;
};
struct scaled : small {
  static constexpr bool keeps_generated = false;
  using key_codec = cellar::codec::int8<>;
  using value_codec = cellar::codec::fp8_e4m3<float>;
};
struct bent : small {
  static constexpr bool keeps_generated = false;
  using attention = cellar::attention::sliding_window<120, cellar::attention::soft_cap<std::ratio<3>>>;
};
struct with_floor : small {
  using remainder = cellar::attention::sampled<std::ratio<1, 100>>;
};
struct with_outliers : small {
  using outliers = cellar::select::least_cosine;
};
struct in_halves : scheme::magic_pig<d, f16, 4, 40> {
  static constexpr bool keeps_generated = false;
};
struct sealing : small {
  static constexpr bool keeps_generated = false;
};

constexpr double weighed = 2e-4;  ///< Of outputs: rounding, times what a cosine's rounding makes of a chance.

}  // namespace

TEST_CASE("a KV head reads what any of its heads sampled, and each weighs its own samples by their chances") {
  auto const check = [&]<class Scheme>(std::type_identity<Scheme>, i64 outliers, double floor) {
    for (float const bias : {0.0f, 2.0f}) {
      reference<Scheme> ref(2, 2, 3, 31, bias);
      budget const b{.tokens = 250, .sinks = 3, .window = 12, .dense_layers = 1, .outliers = outliers};
      trial<Scheme> t(ref, {220, 90}, 60, b, {}, 12, 2);
      seen all;
      check_step(ref, t, {0, 1}, {1, 1}, 250, weighed, all, floor);
      check_step(ref, t, {1, 0}, {3, 2}, 250, weighed, all, floor);
      check_step(ref, t, {0}, {12}, 250, weighed, all, floor);  // 36 rows
      auto const forked = t.fork(1);
      check_step(ref, t, {1, 0}, {2, 1}, 250, weighed, all, floor);
      t.truncate(0, 150);
      check_step(ref, t, {0, forked}, {1, 2}, 250, weighed, all, floor);
      t.cache.free(t.ids[1]);
      for (int i = 0; i < 3; ++i) check_step(ref, t, {forked, 0}, {1, 4}, 250, weighed, all, floor);
      CHECK(all.chosen > 500);
      CHECK(all.only_of_some_heads > 500);
      CHECK(all.cut == 0);
    }
  };
  check(std::type_identity<small>{}, 0, 0);
  check(std::type_identity<coded>{}, 0, 0);
  check(std::type_identity<scaled>{}, 0, 0);
  check(std::type_identity<bent>{}, 0, 0);
  check(std::type_identity<with_floor>{}, 0, 0.01);
  check(std::type_identity<with_outliers>{}, 7, 0);
  check(std::type_identity<in_halves>{}, 0, 0);
}

TEST_CASE("a budget that is too small takes the tokens of most collisions, and says how many samples are lost") {
  reference<small> ref(1, 2, 3, 32);
  trial<small> t(ref, {220}, 20, {.tokens = 40, .sinks = 3, .window = 12}, {}, 3);
  statistics counts;
  t.cache.observe(&counts);
  seen all;
  check_step(ref, t, {0}, {1}, 40, weighed, all);
  check_step(ref, t, {0}, {3}, 40, weighed, all);
  CHECK(all.cut > 50);
  CHECK(counts.lost_samples >= all.cut);
  i64 const lost = counts.lost_samples;
  trial<small> whole(ref, {220}, 20, {.tokens = 220, .sinks = 3, .window = 12}, {}, 3);
  whole.cache.observe(&counts);
  whole.step({0}, {1}, 0, false);
  CHECK(counts.lost_samples == lost);
}

TEST_CASE("where every token is sampled for sure, a sample is all tokens") {
  reference<scheme::dense<d, float>> same(2, 2, 2, 33);
  trial<scheme::dense<d, float>> dense(same, {150, 40}, 8, {});
  std::vector<float> theirs;
  for (int i = 0; i < 4; ++i) theirs = dense.step({0, 1}, {1, 1}, rounding);
  auto const check = [&]<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(2, 2, 2, 33);
    trial<Scheme> t(ref, {150, 40}, 8, {.tokens = 200, .window = 4});
    std::vector<float> ours;
    for (int i = 0; i < 4; ++i) ours = t.step({0, 1}, {1, 1}, rounding);
    for (i64 who = 0; who < 2; ++who) CHECK(t.cache.selected(who, 0)->count == t.cache.sealed_blocks(t.ids[std::size_t(who)]));
    for (std::size_t i = 0; i < ours.size(); ++i) REQUIRE(ours[i] == Approx(theirs[i]).margin(rounding));
  };
  check(std::type_identity<scheme::magic_pig<d, float, 0, 2>>{});
  check(std::type_identity<scheme::magic_pig<d, float, 1, 600>>{});
}

TEST_CASE("sampled attention is the same for any threads, and in parts, and from a file, and of a snapshot") {
  struct many : sealing {  // most of 2600 tokens: parts of 1024
    using summary = cellar::summary::hash_tables<2, 40>;
  };
  auto const run = []<class Scheme>(std::type_identity<Scheme>, host::executor const& on) {
    reference<Scheme> ref(1, 1, 3, 34);
    trial<Scheme> t(ref, {2600, 70}, 8, {.tokens = 2600, .window = 8}, on, 2);
    auto all = t.step({0, 1}, {1, 2}, 0, false);
    auto const more = t.step({0}, {2}, 0, false);
    all.insert(all.end(), more.begin(), more.end());
    CHECK(t.cache.selected(0, 0)->count > 1500);
    return all;
  };
  auto const one = run(std::type_identity<many>{}, host::executor());
  for (int const n : {3, 8}) {
    host::thread_pool pool(n);
    CHECK(run(std::type_identity<many>{}, host::executor(pool)) == one);
  }
  {
    reference<many> ref(1, 1, 3, 34);
    trial<many> t(ref, {2600}, 8, {.tokens = 2600, .window = 8});
    seen all;
    check_step(ref, t, {0}, {1}, 2600, weighed, all);
  }
  budget const b{.tokens = 150, .sinks = 3, .window = 8};
  reference<sealing> ref(2, 2, 3, 35);
  reference<in_file<sealing>> filed(2, 2, 3, 35);
  trial<sealing> t(ref, {150, 70}, 60, b, {}, 2, 1);
  trial<in_file<sealing>> f(filed, {150, 70}, 60, b, {}, 2, 1);
  for (int i = 0; i < 4; ++i) CHECK(t.step({0, 1}, {1, 2}, 0, false) == f.step({0, 1}, {1, 2}, 0, false));
  auto const path = scratch_path();
  t.cache.save({}, t.ids[0], path);
  t.ids.push_back(t.cache.restore({}, path));
  std::filesystem::remove(path);
  t.data.push_back(sequence_data(t.data[0]));
  t.lengths.push_back(t.lengths[0]);
  auto const expected = t.step({0}, {1}, 0, false);
  std::swap(t.ids[0], t.ids[2]);
  t.lengths[0] -= 1;
  CHECK(t.step({0}, {1}, 0, false) == expected);
}

TEST_CASE("attention to samples is refused without what the selection wrote of them") {
  reference<small> ref(1, 1, 2, 36);
  host::executor const on;
  engine_memory<small> mine(ref.shape(), {.sequences = 1, .tokens = 40}, {.tokens = 20, .window = 4}, on.workers());
  std::vector<float> q(2 * d, 1.0f), out(2 * d, 7.0f);
  sequence_step const step{.pages = mine.pages_of(0, 0), .length = 1, .new_tokens = 1, .selected_blocks = 20};
  auto const attend = [&](bool every) {
    host::attend_blocks<small, float>(on, mine.map, mine.layer(), {&step, 1}, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d),
                                      mine.sizes, mine.workspace, mine.ids.data(), mine.counts.data(), every);
  };
  CHECK_THROWS_AS(attend(false), precondition_error);
  CHECK(out[0] == 7.0f);
}

}  // namespace sampling_test
