// Remainders by class: outputs against their definition in double, and the compositions where they must be dense attention or the mean value.
#include "cache/reference.hpp"
#include "cache/scratch.hpp"

using namespace cellar;

namespace class_remainder_test {

namespace {

template <int D, int Tokens, class Codec>
struct by_class : scheme_defaults<D, float> {
  static constexpr int block_tokens = Tokens;
  using codec_type = Codec;
  using summary = cellar::summary::quantized_key<Codec>;
  using select = cellar::select::top_k;
  using remainder = cellar::attention::mean_value_by_class;
};
template <int D, int Tokens, class Codec>
struct capped : by_class<D, Tokens, Codec> {
  using attention = cellar::attention::soft_cap<std::ratio<2>>;
};
template <int D, int Tokens, class Codec>
struct with_outliers : by_class<D, Tokens, Codec> {
  using outliers = cellar::select::least_cosine;
};
template <int D, class Codec>
struct kept : by_class<D, 1, Codec> {
  static constexpr bool keeps_generated = true;
};
template <int D>
struct retro : scheme::retro_infer<D, float, 48, 8, 60> {
  using codec_type = codec::cluster_codes<48, 8, 60, true, 10>;
  static_assert(std::is_same_v<typename retro::summary, summary::quantized_key<codec_type>>);
};

/// Clusters of a head's far blocks, and their centroids, by the scheme's codec, which tests/codec compares with its definition.
template <class Scheme>
struct clusters_of {
  static constexpr int d = Scheme::head_dim, tokens = Scheme::block_tokens;
  std::vector<int> of_block;
  std::vector<float> centroids;  // [block][channel]

  clusters_of(reference<Scheme> const& ref, sequence_data const& s, int head, i64 sinks, i64 blocks) {
    auto const prompt = ref.head_rows(s.original_keys, s, 0, head, 0, s.prompt), keys = ref.head_rows(s.keys, s, 0, head, sinks, sinks + blocks * tokens);
    typename Scheme::codec_type coder;
    std::vector<std::byte> state(std::size_t(coder.state_bytes(d))), scratch(std::size_t(coder.train_scratch_bytes(d)));
    serial_team t;
    coder.with_scratch(scratch.data()).train(t, rows_of<d>(prompt), 0, state.data());
    coder = coder.bind(state.data());
    i64 const bytes = coder.bytes(d).codes;
    centroids.resize(std::size_t(blocks * d));
    for (i64 b = 0; b < blocks; ++b) {
      std::vector<float> landmark(d, 0.0f);
      for (int i = 0; i < tokens; ++i)
        for (int c = 0; c < d; ++c) landmark[std::size_t(c)] += keys[std::size_t((b * tokens + i) * d + c)];
      for (float& x : landmark) x /= float(tokens);
      std::byte code[2] = {};
      row_parts<std::byte> const at{code, nullptr, bytes, 0};
      auto here = coder;
      if constexpr (positional<typename Scheme::codec_type>) here = coder.at(sinks + b * tokens);
      here.encode(t, rows_of<d>(std::as_const(landmark)), at);
      here.decode(t, row_parts<std::byte const>(at), matrix_view<float, d>{centroids.data() + b * d, 1});
      of_block.push_back(int(code[0]) + 256 * int(code[1]));
    }
  }
};

/// Steps of a sequence, each output against softmax over what is attended and, for every class, as many copies of its mean value as blocks are left.
/// Returns the blocks whose class has no mean value.
template <class Scheme>
i64 check(std::type_identity<Scheme>, budget const& b, i64 prompt = 150, int steps = 12, i64 new_tokens = 1) {
  constexpr int d = Scheme::head_dim, tokens = Scheme::block_tokens;
  int const group = 3, kv_heads = 2;
  reference<Scheme> ref(1, kv_heads, group, 91);
  trial<Scheme> t(ref, {prompt}, steps * new_tokens, b, {}, new_tokens);
  auto const& s = t.data[0];
  i64 const sinks = t.cache.sinks(), in_prompt = t.cache.sealed_blocks(t.ids[0]);
  i64 unknown = 0;
  for (int step = 0; step < steps; ++step) {
    i64 const before = t.lengths[0], length = before + new_tokens;
    auto const out = t.step({0}, {new_tokens}, 0, false);
    i64 const sealed = t.cache.sealed_blocks(t.ids[0]);
    for (int head = 0; head < kv_heads; ++head) {
      clusters_of<Scheme> const clusters(ref, s, head, sinks, sealed);
      auto const keys = ref.head_rows(s.keys, s, 0, head, 0, length), values = ref.head_rows(s.values, s, 0, head, 0, length);
      std::vector<bool> is_attended(std::size_t(sealed), false);
      auto const selected = *t.cache.selected(0, head);
      for (auto const id : selected) is_attended[std::size_t(number(id))] = true;
      for (auto const id : t.cache.outliers(0, t.ids[0], head)) is_attended[std::size_t(number(id))] = true;
      std::vector<std::vector<double>> mean(65536);
      std::vector<int> count(65536, 0);
      for (i64 block = 0; block < in_prompt; ++block) {
        auto& m = mean[std::size_t(clusters.of_block[std::size_t(block)])];
        m.resize(d, 0.0);
        count[std::size_t(clusters.of_block[std::size_t(block)])] += tokens;
        for (i64 p = sinks + block * tokens; p < sinks + (block + 1) * tokens; ++p)
          for (int c = 0; c < d; ++c) m[std::size_t(c)] += double(values[std::size_t(p * d + c)]);
      }
      for (std::size_t i = 0; i < mean.size(); ++i)
        for (double& x : mean[i]) x /= count[i];
      for (i64 token = 0; token < new_tokens; ++token) {
        auto const q = ref.query(0, before + token, 0);
        for (int g = 0; g < group; ++g) {
          float const* const query = q.data() + (head * group + g) * d;
          auto const weight = [&](float const* key) {
            double x = 0;
            for (int c = 0; c < d; ++c) x += double(query[c]) * double(key[c]);
            return std::exp(variant_reference<typename Scheme::attention>::logit(x * double(ref.shape().scale())));
          };
          double sum = 0;
          std::vector<double> expected(d, 0.0);
          for (i64 p = 0; p <= before + token; ++p)
            if (i64 const block = (p - sinks) / tokens; p < sinks || block >= sealed || is_attended[std::size_t(block)]) {
              double const w = weight(keys.data() + p * d);
              sum += w;
              for (int c = 0; c < d; ++c) expected[std::size_t(c)] += w * double(values[std::size_t(p * d + c)]);
            }
          for (i64 block = 0; block < sealed; ++block) {
            if (is_attended[std::size_t(block)]) continue;
            auto const& m = mean[std::size_t(clusters.of_block[std::size_t(block)])];
            unknown += m.empty();
            if (m.empty()) continue;
            double const w = tokens * weight(clusters.centroids.data() + block * d);
            sum += w;
            for (int c = 0; c < d; ++c) expected[std::size_t(c)] += w * m[std::size_t(c)];
          }
          for (int c = 0; c < d; ++c)
            REQUIRE(double(out[std::size_t(((token * kv_heads + head) * group + g) * d + c)]) == Approx(expected[std::size_t(c)] / sum).margin(rounding));
        }
      }
    }
  }
  return unknown;
}

}  // namespace

TEST_CASE("the mean value of each class stands for its blocks that were not chosen, weighed by the class's logit") {
  budget const few{.tokens = 24, .sinks = 2, .window = 6};
  CHECK(check(std::type_identity<retro<32>>{}, few) == 0);
  CHECK(check(std::type_identity<retro<32>>{}, few, 150, 4, 3) == 0);  // nine query rows, of which four are summed together
  check(std::type_identity<by_class<16, 1, codec::cluster_codes<20, 5>>>{}, few);
  check(std::type_identity<by_class<24, 4, codec::cluster_codes<20, 5, 70, true>>>{}, few);
  check(std::type_identity<capped<16, 4, codec::cluster_codes<20, 9>>>{}, few);
  check(std::type_identity<by_class<16, 1, codec::product_codes<1, 9>>>{}, few);
  check(std::type_identity<with_outliers<16, 4, codec::cluster_codes<20, 9>>>{}, {.tokens = 24, .sinks = 2, .window = 6, .outliers = 3});
  check(std::type_identity<by_class<16, 1, codec::cluster_codes<3, 5>>>{}, {.tokens = 8, .window = 6});
}

TEST_CASE("tokens of a class that had none in the prompt's far memory have no part in the remainder") {
  // Few far tokens when the prompt ends: the window has the others, and most clusters.
  CHECK(check(std::type_identity<by_class<16, 1, codec::cluster_codes<64, 1>>>{}, {.tokens = 4, .window = 30}, 40, 30) > 0);
  CHECK(check(std::type_identity<by_class<16, 4, codec::cluster_codes<64, 1>>>{}, {.tokens = 4, .window = 30}, 40, 30) > 0);
  using none = by_class<16, 1, codec::cluster_codes<64, 4>>;  // and where there was no far memory at all, what is chosen is attended alone
  for (i64 const prompt : {1, 8}) {
    reference<none> ref(1, 2, 2, 92);
    trial<none> t(ref, {prompt}, 60, {.tokens = 8, .window = 8});
    for (int i = 0; i < 60; ++i) t.step({0}, {1}, rounding);
    CHECK(t.cache.sealed_blocks(t.ids[0]) > t.cache.selected(0, 0)->count);
  }
}

TEST_CASE("where each token is a cluster of its own, its estimate is exact: whatever is chosen, attention is dense") {
  using own = kept<32, codec::cluster_codes<512, 1, 0, true>>;
  for (i64 const budget_tokens : {1, 30, 400}) {
    reference<own> ref(2, 2, 3, 93);
    trial<own> t(ref, {150, 40}, 4, {.tokens = budget_tokens, .sinks = 1, .window = 4});
    reference<scheme::dense<32, float>> same(2, 2, 3, 93);
    trial<scheme::dense<32, float>> dense(same, {150, 40}, 4, {});
    for (int i = 0; i < 4; ++i) {
      auto const ours = t.step({0, 1}, {1, 1}, 0, false), theirs = dense.step({0, 1}, {1, 1}, rounding);
      for (std::size_t j = 0; j < ours.size(); ++j) REQUIRE(ours[j] == Approx(theirs[j]).margin(rounding));
    }
  }
}

TEST_CASE("of one class a remainder by class is the mean value") {
  using one = kept<16, codec::cluster_codes<1, 5>>;
  struct mean : one {
    using remainder = cellar::attention::mean_value;
  };
  reference<one> ref(1, 2, 2, 94);
  reference<mean> same(1, 2, 2, 94);
  trial<one> t(ref, {200}, 6, {.tokens = 20, .window = 4});
  trial<mean> other(same, {200}, 6, {.tokens = 20, .window = 4});
  for (int i = 0; i < 6; ++i) {
    auto const ours = t.step({0}, {1}, 0, false), theirs = other.step({0}, {1}, 0, false);
    for (std::size_t j = 0; j < ours.size(); ++j) REQUIRE(ours[j] == Approx(theirs[j]).margin(1e-5));
  }
}

TEST_CASE("cluster_kv takes whole clusters in the order of their logits, and of the last one its first tokens") {
  struct clusters : scheme::cluster_kv<32, float, 30> {
    using codec_type = codec::cluster_codes<30, 80>;
    static_assert(std::is_same_v<summary, cellar::summary::quantized_key<codec_type>>);
  };
  reference<clusters> ref(1, 2, 1, 95);
  trial<clusters> t(ref, {700}, 6, {.tokens = 200, .sinks = 3, .window = 0});
  for (int step = 0; step < 6; ++step) {
    auto const q = ref.query(0, t.lengths[0], 0);
    t.step({0}, {1}, rounding);
    i64 const sealed = t.cache.sealed_blocks(t.ids[0]);
    REQUIRE(sealed == 697);
    for (int head = 0; head < 2; ++head) {
      clusters_of<clusters> const known(ref, t.data[0], head, 3, sealed);
      std::vector<double> logits(9, -1e300);
      std::vector<std::vector<i64>> members(9);
      for (i64 b = 0; b < sealed; ++b) {
        auto const c = std::size_t(known.of_block[std::size_t(b)]);
        REQUIRE(c < 9);  // 700 / 80
        logits[c] = 0;
        for (int i = 0; i < 32; ++i) logits[c] += double(q[std::size_t(head * 32 + i)]) * double(known.centroids[std::size_t(b * 32 + i)]);
        members[c].push_back(b);
      }
      std::vector<std::size_t> order(9);
      for (std::size_t i = 0; i < 9; ++i) order[i] = i;
      std::sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
      std::vector<i64> expected;
      std::size_t whole = 0;
      for (auto const c : order)
        for (i64 const b : members[c])
          if (expected.size() < 200) {
            expected.push_back(b);
            whole += b == members[c].back();
          }
      REQUIRE((whole > 0 && whole < 9));
      std::sort(expected.begin(), expected.end());
      std::vector<i64> chosen;
      auto const selected = *t.cache.selected(0, head);
      for (auto const id : selected) chosen.push_back(number(id));
      CHECK(chosen == expected);
    }
  }
}

TEST_CASE("clusters and their mean values go with a sequence that is forked, cut or saved") {
  using scheme_type = retro<16>;
  reference<scheme_type> ref(2, 2, 2, 96);
  trial<scheme_type> t(ref, {180, 90}, 40, {.tokens = 20, .sinks = 2, .window = 6}, {}, 1, 2);
  std::size_t const forked = t.fork(0);
  auto const a = t.step({0}, {1}, 0, false), b = t.step({forked}, {1}, 0, false);
  CHECK(ref.query(0, 180, 0) != ref.query(forked, 180, 0));
  CHECK(a != b);

  std::string const path = scratch_path();
  t.cache.save(host::executor{}, t.ids[0], path);
  auto const restored = t.cache.restore(host::executor{}, path);
  std::filesystem::remove(path);
  auto const attend = [&](sequence_id id) {  // one step of the same token and query
    batch_entry const one{id, 1};
    host::executor const on;
    t.cache.plan(on, {&one, 1});
    random_numbers r(97);
    std::vector<float> all;
    for (int layer = 0; layer < 2; ++layer) {
      auto const k = r.normals(2 * 16), v = r.normals(2 * 16), q = r.normals(4 * 16);
      std::vector<float> out(4 * 16);
      t.cache.append(on, layer, packed_heads<float const>(k.data(), 1, 2, 16), packed_heads<float const>(v.data(), 1, 2, 16));
      t.cache.attend(on, layer, packed_heads<float const>(q.data(), 1, 4, 16), packed_heads(out.data(), 1, 4, 16));
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  };
  auto const first = attend(t.ids[0]);
  CHECK(attend(restored) == first);
  t.cache.truncate(host::executor{}, t.ids[0], 181);
  t.cache.truncate(host::executor{}, t.ids[forked], 180);
  CHECK(attend(t.ids[0]) == first);
  t.cache.truncate(host::executor{}, t.ids[0], 100);  // into the prompt: what is left of each cluster weighs
  for (float const x : attend(t.ids[0])) CHECK(std::isfinite(x));
  t.cache.free(t.ids[1]);
}

}  // namespace class_remainder_test
