// Schemes that learn from a prompt's queries, or from what is attended to: what they keep, choose and evict, by their definitions in double.
#include <map>
#include <numeric>

#include "cache/scratch.hpp"
#include "cache/selection.hpp"

using namespace cellar;

namespace observation_test {

namespace {

constexpr int d = 16;
using definitions::prompt_attention;

/// The attention that one query pays to each of some positions, in double: softmax over those that it sees within reach.
template <class Scheme>
std::vector<double> attention_of(float const* q, float scale, std::vector<float> const& keys, std::vector<i64> const& positions, i64 at,
                                 i64 reach = any_distance) {
  using variant = variant_reference<typename Scheme::attention>;
  std::vector<double> w(positions.size(), 0.0);
  double top = -1e300, sum = 0;
  std::vector<double> logits(positions.size(), -1e300);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    if (!variant::sees(at, positions[i]) || at - positions[i] >= reach) continue;
    double x = 0;
    for (int c = 0; c < Scheme::head_dim; ++c) x += double(q[c]) * double(keys[std::size_t(positions[i] * Scheme::head_dim + c)]);
    logits[i] = variant::logit(x * double(scale));
    top = std::max(top, logits[i]);
  }
  for (std::size_t i = 0; i < positions.size(); ++i) {
    w[i] = logits[i] > -1e299 ? std::exp(logits[i] - top) : 0;
    sum += w[i];
  }
  for (double& x : w) x /= sum;
  return w;
}

/// The `n` blocks of highest value, ties by lowest id, ascending. No two are within rounding where the choice ends.
std::vector<i64> best(std::vector<double> const& values, i64 n) {
  std::vector<i64> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return values[std::size_t(a)] > values[std::size_t(b)]; });
  if (n < i64(order.size()) && n > 0) {
    double const last = values[std::size_t(order[std::size_t(n - 1)])], next = values[std::size_t(order[std::size_t(n)])];
    REQUIRE((last == next || last - next > 1e-6 * last));
  }
  order.resize(std::size_t(std::min<i64>(n, i64(order.size()))));
  std::sort(order.begin(), order.end());
  return order;
}

template <int Pool>
struct snapped : scheme::snap_kv<d, float, Pool> {};
struct snapped_by_few : scheme::snap_kv<d, float, 5, 10> {};
struct snapped_blocks : scheme::snap_kv<d, float, 5> {
  static constexpr int block_tokens = 8;
  using attention = cellar::attention::soft_cap<std::ratio<20>>;
};
template <int Rank>
struct balanced_coordinates : scheme::yakv_balanced<d, jacobi_eigensolver, float> {
  using summary = cellar::summary::quantized_key<cellar::codec::centred<
      cellar::codec::balanced<cellar::codec::identity<float>, cellar::codec::fixed_rank<Rank>, jacobi_eigensolver>, cellar::codec::rotated_mean>>;
  using remainder = cellar::attention::no_remainder;
};
struct near_representatives : scheme::inf_llm<d, float, 16, 4> {  // as far as six tokens back, of other types
  using summary = cellar::summary::representatives<4, 6, float>;
};
struct kept_in_far_memory : scheme::yakv<d, float> {  // the same rule beside a selection
  using outliers = cellar::select::most_attended<3>;
};

}  // namespace

TEST_CASE("a prompt's most attended blocks stay near, by the largest sum of attention around them") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, int pool, budget const& b) {
    constexpr i64 block = Scheme::block_tokens;
    for (int const group : {1, 3}) {
      reference<Scheme> ref(2, 2, group, 71);
      trial<Scheme> t(ref, {150, 20, 3}, 30, b, {}, 1, 1);
      for (std::size_t who = 0; who < 3; ++who)
        for (int layer = 0; layer < 2; ++layer)
          for (int head = 0; head < 2; ++head) {
            auto const& s = t.data[who];
            i64 const sealed = t.cache.sealed_blocks(t.ids[who]), sinks = t.cache.sinks();
            auto const sums =
                prompt_attention(ref, s, who, layer, head, std::min<i64>({s.prompt, trial<Scheme>::observed, Scheme::outliers::observed}), any_distance);
            std::vector<double> values(std::size_t(sealed), 0.0);
            for (i64 i = 0; i < sealed * block; ++i) {
              double most = 0;
              for (i64 j = std::max<i64>(0, i - pool / 2); j <= std::min(i + pool / 2, sealed * block - 1); ++j)
                most = std::max(most, sums[std::size_t(sinks + j)]);
              values[std::size_t(i / block)] += most;
            }
            auto const expected = best(values, b.outliers);
            auto const kept = t.cache.outliers(layer, t.ids[who], head);
            REQUIRE(kept.count == i64(expected.size()));
            for (i64 i = 0; i < kept.count; ++i) CHECK(number(kept[i]) == expected[std::size_t(i)]);
          }
      for (int i = 0; i < 12; ++i) t.step({0, 1, 2}, {1, 1, 1}, rounding);
      auto const fork = t.fork(0);
      t.truncate(0, 152);
      for (int i = 0; i < 4; ++i) t.step({0, fork}, {1, 1}, rounding);
    }
  };
  check(std::type_identity<snapped<1>>{}, 1, {.window = 12, .outliers = 20});
  check(std::type_identity<snapped<7>>{}, 7, {.sinks = 2, .window = 12, .outliers = 20});
  check(std::type_identity<snapped<7>>{}, 7, {.window = 12, .outliers = 1000});
  check(std::type_identity<snapped<7>>{}, 7, {.sinks = 2, .window = 12, .dense_layers = 1, .outliers = 20});  // far memory beside it
  check(std::type_identity<snapped_by_few>{}, 5, {.window = 10, .outliers = 20});
  check(std::type_identity<snapped_blocks>{}, 5, {.sinks = 3, .window = 12, .outliers = 4});
  check(std::type_identity<kept_in_far_memory>{}, 3, {.tokens = 20, .sinks = 3, .window = 12, .outliers = 9});
}

TEST_CASE("room for everything makes an eviction dense") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>) {
    reference<Scheme> ref(1, 2, 2, 72);
    trial<Scheme> t(ref, {90}, 40, {.window = 8, .outliers = 1000});
    reference<scheme::dense<d, float>> same(1, 2, 2, 72);
    trial<scheme::dense<d, float>> dense(same, {90}, 40, {});
    for (int i = 0; i < 25; ++i) {
      auto const ours = t.step({0}, {1}, rounding), theirs = dense.step({0}, {1}, rounding);
      for (std::size_t j = 0; j < ours.size(); ++j) REQUIRE(ours[j] == Approx(theirs[j]).margin(rounding));
    }
  };
  check(std::type_identity<scheme::snap_kv<d, float>>{});
  check(std::type_identity<scheme::h2o<d, float>>{});
}

namespace {

struct windowed : scheme::h2o<d, float> {  // what it keeps beyond the window is not seen
  using attention = cellar::attention::sliding_window<30>;
};
struct evicting_blocks : scheme::h2o<d, float> {
  static constexpr int block_tokens = 4;
};

/// H2O by its definition, in double: sums of attention of what is near, and who is evicted.
template <class Scheme>
struct evicted_by_definition {
  reference<Scheme> const& ref;
  int layer, head;
  i64 budget, window, sinks, sealed = 0;
  std::map<i64, double> kept;  // block -> attention so far
  std::vector<double> sums;    // of every position, while it is in the window

  evicted_by_definition(reference<Scheme> const& of, trial<Scheme> const& t, std::size_t who, int at_layer, int of_head, cellar::budget const& b)
      : ref(of), layer(at_layer), head(of_head), budget(b.outliers), window(b.window), sinks(b.sinks) {
    auto const& s = t.data[who];
    sums = prompt_attention(ref, s, who, layer, head, std::min<i64>(s.prompt, trial<Scheme>::observed), any_distance);
    sums.resize(std::size_t(s.capacity), 0.0);
    sealed = t.cache.sealed_blocks(t.ids[who]);
    std::vector<double> values(std::size_t(sealed), 0.0);
    for (i64 i = 0; i < sealed * Scheme::block_tokens; ++i) values[std::size_t(i / Scheme::block_tokens)] += sums[std::size_t(sinks + i)];
    for (i64 const b2 : best(values, budget)) kept[b2] = values[std::size_t(b2)];
  }
  /// Before the step attends: the surplus goes, what leaves the window comes.
  void enter(i64 sealed_now) {
    if (budget == 0) sealed = sealed_now;
    while (i64(kept.size()) > budget) {
      auto least = kept.begin();
      double second = 1e300;
      for (auto it = kept.begin(); it != kept.end(); ++it) {
        if (it->second <= least->second) least = it;
      }
      for (auto it = kept.begin(); it != kept.end(); ++it)
        if (it != least) second = std::min(second, it->second);
      REQUIRE((second == least->second || second - least->second > 1e-6 * second));
      kept.erase(least);
    }
    for (; sealed < sealed_now; ++sealed) {
      double sum = 0;
      for (i64 i = 0; i < Scheme::block_tokens; ++i) sum += sums[std::size_t(sinks + sealed * Scheme::block_tokens + i)];
      kept[sealed] = sum;
    }
  }
  void observe(sequence_data const& s, std::size_t who, i64 length, i64 new_tokens) {
    auto const keys = ref.head_rows(s.original_keys, s, layer, head, 0, length);
    std::vector<i64> near;
    for (i64 p = 0; p < std::min(sinks, length); ++p) near.push_back(p);
    for (auto const& [b, sum] : kept)
      for (i64 i = 0; i < Scheme::block_tokens; ++i) near.push_back(sinks + b * Scheme::block_tokens + i);
    for (i64 p = sinks + sealed * Scheme::block_tokens; p < length; ++p) near.push_back(p);
    for (i64 p = length - new_tokens; p < length; ++p) {
      auto const q = ref.query(who, p, layer);
      for (int g = 0; g < ref.shape().group(); ++g) {
        auto const w = attention_of<Scheme>(q.data() + (head * ref.shape().group() + g) * Scheme::head_dim, ref.shape().scale(), keys, near, p);
        for (std::size_t i = 0; i < near.size(); ++i) {
          i64 const block = (near[i] - sinks) / Scheme::block_tokens;
          if (near[i] >= sinks && block < sealed)
            kept[block] += w[i];
          else
            sums[std::size_t(near[i])] += w[i];
        }
      }
    }
  }
};

template <class Scheme>
void check_eviction(budget const& b, std::vector<i64> const& steps, i64 step_tokens, i64 second_prompt = 30) {
  reference<Scheme> ref(2, 2, 2, 73);
  i64 generated = 0;
  for (i64 const n : steps) generated += n;
  trial<Scheme> t(ref, {100, second_prompt}, 2 * generated + 8, b, {}, step_tokens, 1);
  std::vector<evicted_by_definition<Scheme>> expected;
  for (std::size_t who = 0; who < 2; ++who)
    for (int layer = 0; layer < 2; ++layer)
      for (int head = 0; head < 2; ++head) expected.emplace_back(ref, t, who, layer, head, b);
  auto const compare = [&](std::size_t who, std::vector<evicted_by_definition<Scheme>>& all) {
    for (int item = 0; item < 4; ++item) {
      auto const kept = t.cache.outliers(item / 2, t.ids[who], item % 2);
      std::vector<i64> ids;
      for (auto const id : kept) ids.push_back(number(id));
      std::sort(ids.begin(), ids.end());
      auto const& of = all[std::size_t(who % 2 * 4) + std::size_t(item)].kept;
      REQUIRE(ids.size() == of.size());
      std::size_t i = 0;
      for (auto const& [id, sum] : of) CHECK(ids[i++] == id);
    }
  };
  auto const step = [&](std::size_t who, i64 n, std::vector<evicted_by_definition<Scheme>>& all) {
    i64 const length = t.lengths[who] + n;
    t.step({who}, {n}, rounding);
    for (int item = 0; item < 4; ++item) {
      auto& one = all[std::size_t(who % 2 * 4) + std::size_t(item)];
      one.enter(t.cache.sealed_blocks(t.ids[who]));
    }
    compare(who, all);
    for (int item = 0; item < 4; ++item) all[std::size_t(who % 2 * 4) + std::size_t(item)].observe(t.data[who], who, length, n);
  };
  for (std::size_t i = 0; i < steps.size(); ++i) {
    step(0, steps[i], expected);
    if (i % 2 == 0) step(1, 1, expected);
  }
  // A fork goes on by the sums that the sequence had, and by what is asked of it: queries of the reference are of a sequence's number, 2.
  auto const forked = t.fork(0);
  REQUIRE(forked == 2);
  std::vector<evicted_by_definition<Scheme>> of_fork(expected.begin(), expected.begin() + 4);
  for (int i = 0; i < 6; ++i) {
    step(0, 1, expected);
    step(forked, 1, of_fork);
  }
}

}  // namespace

TEST_CASE("heavy hitters are the blocks of most attention so far, and the least attended is evicted as tokens leave the window") {
  std::vector<i64> const ones(40, 1);
  check_eviction<scheme::h2o<d, float>>({.window = 10, .outliers = 12}, ones, 1);
  check_eviction<scheme::h2o<d, float>>({.sinks = 4, .window = 10, .outliers = 12}, {3, 1, 2, 3, 3, 1, 1, 2, 3, 3, 3, 1}, 3);
  check_eviction<scheme::h2o<d, float>>({.window = 1, .outliers = 7}, {5, 1, 1, 5, 2, 1, 5, 5, 1}, 5);
  check_eviction<evicting_blocks>({.sinks = 2, .window = 9, .outliers = 5}, ones, 1);
  check_eviction<scheme::h2o<d, float>>({.window = 6}, {1, 2, 1}, 2);                            // nothing is kept
  check_eviction<scheme::h2o<d, float>>({.sinks = 6, .window = 10, .outliers = 4}, ones, 1, 3);  // shorter than the sinks, and then than the window
  check_eviction<windowed>({.sinks = 2, .window = 30, .outliers = 4}, ones, 1);
}

TEST_CASE("blocks are chosen by their most attended keys, and tokens by joint factors of keys and queries") {
  auto const check = []<class Scheme>(std::type_identity<Scheme>, i64 tokens) {
    for (float const bias : {0.0f, 2.0f}) {
      reference<Scheme> ref(1, 2, 3, 75, bias);
      check_selection(ref, 330, {.tokens = tokens, .sinks = 2, .window = 8}, 4, 1, 3 * rounding, 0.02);
      check_selection(ref, 330, {.tokens = tokens, .sinks = 2, .window = 8}, 2, 3, 3 * rounding, 0.02);
    }
    reference<Scheme> ref(2, 2, 2, 76);
    trial<Scheme> all(ref, {150, 40}, 8, {.tokens = 1000, .window = 4});
    for (int i = 0; i < 4; ++i) all.step({0, 1}, {1, 1}, rounding);
    for (std::int64_t who = 0; who < 2; ++who) CHECK(all.cache.selected(who, 0)->count == all.cache.sealed_blocks(all.ids[std::size_t(who)]));
  };
  check(std::type_identity<scheme::inf_llm<d, float, 16, 3>>{}, 64);
  check(std::type_identity<near_representatives>{}, 64);
  check(std::type_identity<scheme::lrqk<d, float, 6>>{}, 40);
  check(std::type_identity<scheme::lrqk<d, float, 16>>{}, 40);  // of full rank: exact logits
  check(std::type_identity<balanced_coordinates<8>>{}, 40);
  check(std::type_identity<balanced_coordinates<16>>{}, 40);
}

TEST_CASE("factors of full rank lose nothing, and fewer lose less the better they fit queries too") {
  auto const learn = []<int Rank>(std::integral_constant<int, Rank>, std::vector<float> const& k, std::vector<float> const& q, std::vector<std::byte>& state) {
    summary::joint_factors<codec::fixed_rank<Rank>> map;
    state.resize(std::size_t(map.state_bytes(d)) + 16);
    std::vector<std::byte> scratch(std::size_t(map.train_scratch_bytes(d)));
    serial_team t;
    map.with_scratch(scratch.data())
        .train_with(t, matrix_view<float const, d>{k.data(), i64(k.size()) / d}, matrix_view<float const, d>{q.data(), i64(q.size()) / d}, state.data());
    return map.bind(state.data());
  };
  random_numbers random(77);
  auto k = random.normals(200 * d), q = random.normals(50 * d);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] *= i % d < 4 ? 1.0f : 0.01f;  // all weight in four channels
  for (std::size_t i = 0; i < k.size(); ++i) k[i] *= i % d < 4 ? 0.3f : 1.0f;   // where keys have little
  auto const error = [&](auto const& map, int width) {
    double square = 0, all = 0;
    for (int i = 0; i < 50; ++i)
      for (int j = 0; j < 200; ++j) {
        double exact = 0, ours = 0;
        for (int c = 0; c < d; ++c) exact += double(q[std::size_t(i * d + c)]) * double(k[std::size_t(j * d + c)]);
        for (int c = 0; c < width; ++c) ours += double(map.template of_query<d>(q.data() + i * d, c)) * double(map.template of_key<d>(k.data() + j * d, c));
        square += (exact - ours) * (exact - ours);
        all += exact * exact;
      }
    return std::sqrt(square / all);
  };
  std::vector<std::byte> whole, four;
  CHECK(error(learn(std::integral_constant<int, d>{}, k, q, whole), d) < 1e-4);
  CHECK(error(learn(std::integral_constant<int, 4>{}, k, q, four), 4) < 0.1);  // the four channels that queries read; keys alone would choose others
  std::vector<std::byte> none;
  auto const zero = learn(std::integral_constant<int, 4>{}, std::vector<float>(3 * d, 0.0f), std::vector<float>(d, 0.0f), none);
  for (int i = 0; i < 4; ++i) CHECK(is_finite(zero.of_key<d>(k.data(), i)));
}

TEST_CASE("a step that is taken back and made again evicts what it would have, and one attended twice counts once") {
  using Scheme = scheme::h2o<d, float>;
  auto const run = [](bool disturbed, i64 prompt) {
    reference<Scheme> ref(2, 1, 2, 74);
    trial<Scheme> t(ref, {prompt}, 60, {.window = 6, .outliers = 8}, {}, 2);
    std::vector<float> last;
    for (int i = 0; i < 25; ++i) {
      if (disturbed) {
        host::executor const on;
        batch_entry const one{t.ids[0], 1 + i % 2};
        t.cache.plan(on, {&one, 1});
        std::vector<float> const rows(std::size_t(2 * d), 3.0f), q(std::size_t(2 * 2 * d), 1.0f);
        std::vector<float> out(q.size());
        t.cache.append(on, 0, packed_heads(rows.data(), one.new_tokens, 1, d), packed_heads(rows.data(), one.new_tokens, 1, d));
        t.cache.attend(on, 0, packed_heads(q.data(), one.new_tokens, 2, d), packed_heads(out.data(), one.new_tokens, 2, d));
        t.cache.discard();
      }
      last = t.step({0}, {1}, rounding);
      if (disturbed) {  // the last layer once more, by another query first
        host::executor const on;
        std::vector<float> q(std::size_t(2 * d), 1.0f), out(q.size());
        t.cache.attend(on, 1, packed_heads<float const>(q.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
        auto const again = ref.query(0, t.lengths[0] - 1, 1);
        t.cache.attend(on, 1, packed_heads<float const>(again.data(), 1, 2, d), packed_heads(out.data(), 1, 2, d));
      }
    }
    std::vector<i64> ids;
    for (int layer = 0; layer < 2; ++layer) {
      std::vector<i64> mine;
      for (auto const id : t.cache.outliers(layer, t.ids[0], 0)) mine.push_back(number(id));
      std::sort(mine.begin(), mine.end());
      ids.insert(ids.end(), mine.begin(), mine.end());
    }
    return ids;
  };
  CHECK(run(false, 60) == run(true, 60));
  CHECK(run(false, 14) == run(true, 14));  // what leaves the window has had as much attention as what was kept
}

TEST_CASE("a snapshot of a scheme that evicts goes on as the sequence does, in a cache of the same limits") {
  using Scheme = scheme::h2o<d, float>;
  reference<Scheme> ref(2, 1, 2, 79);
  trial<Scheme> t(ref, {60}, 60, {.window = 6, .outliers = 8}, {}, 2, 1);
  budget const b{.window = 6, .outliers = 8};
  std::vector<evicted_by_definition<Scheme>> expected{{ref, t, 0, 0, 0, b}, {ref, t, 0, 1, 0, b}};
  auto const follow = [&](std::size_t who, std::vector<evicted_by_definition<Scheme>>& all) {
    i64 const length = t.lengths[who] + 1;
    t.step({who}, {1}, rounding);
    for (int layer = 0; layer < 2; ++layer) {
      auto& one = all[std::size_t(layer)];
      one.enter(t.cache.sealed_blocks(t.ids[who]));
      std::vector<i64> ids;
      for (auto const id : t.cache.outliers(layer, t.ids[who], 0)) ids.push_back(number(id));
      std::sort(ids.begin(), ids.end());
      REQUIRE(ids.size() == one.kept.size());
      std::size_t i = 0;
      for (auto const& [id, sum] : one.kept) CHECK(ids[i++] == id);
      one.observe(t.data[who], who, length, 1);
    }
  };
  for (int i = 0; i < 12; ++i) follow(0, expected);
  host::executor const on;
  auto const path = scratch_path();
  t.cache.save(on, t.ids[0], path);
  auto const restored = t.cache.restore(on, path);
  for (int layer = 0; layer < 2; ++layer) {
    auto const mine = t.cache.outliers(layer, t.ids[0], 0), other = t.cache.outliers(layer, restored, 0);
    REQUIRE(std::equal(mine.begin(), mine.end(), other.begin(), other.end()));
  }
  t.data.push_back(sequence_data(t.data[0]));
  t.ids.push_back(restored);
  t.lengths.push_back(t.lengths[0]);
  std::vector<evicted_by_definition<Scheme>> restored_too(expected.begin(), expected.end());
  for (int i = 0; i < 12; ++i) {
    follow(0, expected);
    follow(1, restored_too);
  }
  cache<Scheme> other(on, ref.shape(), {.tokens = 121, .step_tokens = 3}, {.window = 6, .outliers = 8});
  CHECK_THROWS_WITH(other.restore(on, path), contains("learnt state"));
  cache<Scheme> of_another_ring(on, ref.shape(), {.tokens = 121, .step_tokens = 2}, {.window = 7, .outliers = 8});
  CHECK_THROWS_WITH(of_another_ring.restore(on, path), contains("learnt state"));
  std::filesystem::remove(path);
}

TEST_CASE("queries are refused where they cannot be") {
  model_shape const shape{.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = d};
  host::executor const on;
  cache<scheme::snap_kv<d, float>> c(on, shape, {.tokens = 40}, {.window = 4, .outliers = 4});
  std::vector<float> k(20 * d, 1.0f), v = k, q(std::size_t(30 * 2 * d), 1.0f);
  auto const id = c.begin_prompt(prompt_staging<float>{k.data(), v.data(), 20, 20});
  CHECK_THROWS_WITH(c.finish_prompt(on, id, prompt_queries<float>{}), contains("there are no queries"));
  CHECK_THROWS_WITH(c.finish_prompt(on, id, prompt_queries<float>{q.data(), 21}), contains("more tokens than the prompt"));
  q[5] = undefined;
  CHECK_THROWS_WITH(c.finish_prompt(on, id, prompt_queries<float>{q.data(), 8}), contains("a query is NaN"));
  q[5] = 1;
  c.finish_prompt(on, id, prompt_queries<float>{q.data(), 8});
  CHECK(c.length(id) == 20);
  CHECK_THROWS_WITH((cache<scheme::h2o<d>>(on, shape, {.tokens = 40}, {.window = 4, .dense_layers = 1, .outliers = 4})), contains("no layer can be dense"));
  cache<scheme::dense<d, float>> all(on, shape, {.tokens = 40});  // which does not read them
  auto const other = all.begin_prompt(prompt_staging<float>{k.data(), v.data(), 20, 20});
  all.finish_prompt(on, other, prompt_queries<float>{q.data(), 8});
  CHECK(all.length(other) == 20);
}

}  // namespace observation_test
