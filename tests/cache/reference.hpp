#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "eigensolver.hpp"
#include "random.hpp"
#include "sanitizers.hpp"

inline constexpr double rounding = 5e-5;  ///< Of outputs: f32 sums and exp of a few hundred terms of size 1 to 4.

/// What a variant of attention does to a logit and whom a query sees, by its definition, in double.
template <class Variant>
struct variant_reference;
template <>
struct variant_reference<cellar::attention::causal> {
  static double logit(double x) { return x; }
  static bool sees(std::int64_t q, std::int64_t k) { return k <= q; }
};
template <class Cap, class Base>
struct variant_reference<cellar::attention::soft_cap<Cap, Base>> {
  static double logit(double x) {
    double const cap = double(Cap::num) / double(Cap::den);
    return variant_reference<Base>::logit(cap * std::tanh(x / cap));
  }
  static bool sees(std::int64_t q, std::int64_t k) { return variant_reference<Base>::sees(q, k); }
};
template <std::int64_t Tokens, class Base>
struct variant_reference<cellar::attention::sliding_window<Tokens, Base>> {
  static double logit(double x) { return variant_reference<Base>::logit(x); }
  static bool sees(std::int64_t q, std::int64_t k) { return k > q - Tokens && variant_reference<Base>::sees(q, k); }
};

/// A model's keys and values made of random numbers, and attention over them in double: what a cache is compared with.
struct sequence_data {
  std::vector<float> keys, values;  // [layer][token][kv_head][head_dim or value_dim], room for all tokens
  std::int64_t capacity = 0, prompt = 0;
  std::vector<float> index_keys = {};                                 // [layer][token][kv_head][index_dim], of schemes that have them
  std::int64_t kept = 0;                                              // first tokens of the open block whose codes are kept
  std::vector<float> original_keys = keys, original_values = values;  // what policies learnt from
  std::vector<float> coded_keys = keys, coded_values = values;        // what codes were made of: not the same where a block was reopened
};

/// One layer of a real model while it decodes, in place of random numbers.
struct recorded_layer {
  cellar::model_shape shape;           // of one layer; whoever recorded it keeps its frequencies
  std::int64_t prompt = 0, steps = 0;  // tokens
  std::vector<float> keys, values;     // [prompt + steps][kv_head][head_dim]
  std::vector<float> queries;          // [step][query_head][head_dim]
};

template <class Scheme>
class reference {
 public:
  static constexpr int d = Scheme::head_dim, dv = Scheme::value_dim;
  static constexpr bool in_keys = cellar::stored_in_keys<typename Scheme::value_codec>;  ///< A value is what its key begins with, near and far.
  static constexpr bool is_indexed = cellar::indexed_summary<typename Scheme::summary>;
  static constexpr int di = cellar::memory_map<Scheme>::scored_dim;  ///< Of index keys.

  explicit reference(recorded_layer const& of) : random_(0), shape_(of.shape), recorded_(&of) {}
  reference(int layers, int kv_heads, int group, std::uint64_t seed, float bias = 0) : random_(seed), bias_(random_.normals(d, bias)) {
    for (int i = 0; i < d / 2; ++i) frequencies_.push_back(std::pow(1e4, -2.0 * i / d));
    shape_ = {.layers = layers, .query_heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = d};
    shape_.rotary = {cellar::rotary_pairing::half_split, {frequencies_.data(), d / 2}};
  }

  /// Codes are made by the library: at the vector level of the cache, since two levels may take different points where two are equally near up to rounding.
  cellar::vector_kernels const* kernels = cellar::host::executor().kernels();

  cellar::model_shape const& shape() const { return shape_; }
  /// The rotary embedding as a cache has it.
  cellar::rotary with_turns() const {
    cellar::rotary r = shape_.rotary;
    if (turns_.empty()) {
      turns_.resize(std::size_t(cellar::turn_floats(r, 8192)));
      cellar::fill_turns(r, 8192, turns_.data());
    }
    r.turns = {turns_.data(), std::int64_t(turns_.size())};
    return r;
  }
  random_numbers& random() { return random_; }

  /// Keys with a bias before rotary embedding, attended at their positions.
  sequence_data sequence(std::int64_t prompt, std::int64_t capacity) {
    if (recorded_) {
      REQUIRE((prompt == recorded_->prompt && capacity <= prompt + recorded_->steps));
      auto const rows = [&](std::vector<float> const& x) {
        std::vector<float> y(x.begin(), x.begin() + capacity * width());
        for (float& one : y) one = from_storage(one);
        return y;
      };
      return {rows(recorded_->keys), rows(recorded_->values), capacity, prompt};
    }
    sequence_data s{random_.normals(shape_.layers * capacity * width()), random_.normals(shape_.layers * capacity * shape_.kv_heads * dv), capacity, prompt};
    for (std::int64_t row = 0; row < std::int64_t(s.keys.size()) / d; ++row) {
      std::int64_t const position = row / shape_.kv_heads % capacity;
      float* const k = s.keys.data() + row * d;
      for (int c = 0; c < d; ++c) k[c] = from_storage(k[c] + bias_[std::size_t(c)]);
      cellar::rotate(shape_.rotary, k, position, k);
      for (int c = 0; c < d; ++c) k[c] = from_storage(k[c]);
    }
    for (float& x : s.values) x = from_storage(x);
    if constexpr (is_indexed) {
      s.index_keys = random_.normals(shape_.layers * capacity * shape_.kv_heads * di);
      for (float& x : s.index_keys) x = from_storage(x);
    }
    s.original_keys = s.coded_keys = s.keys;
    s.original_values = s.coded_values = s.values;
    return s;
  }
  /// What the token at that position asks, [query_head][d]: it depends on sequence, position and layer alone.
  std::vector<float> query(std::size_t who, std::int64_t position, int layer) const {
    std::int64_t const n = shape_.query_heads * d;
    if (recorded_) {
      auto const from = recorded_->queries.begin() + (position - recorded_->prompt) * n;
      return {from, from + n};
    }
    return random_numbers(std::uint64_t((std::int64_t(who) * 100000 + position) * 100 + layer)).normals(n, 2);
  }
  /// The same of an index query, [kv_head * index_heads][di], and then its weights.
  std::vector<float> index_query(std::size_t who, std::int64_t position, int layer) const {
    std::int64_t const heads = shape_.kv_heads * cellar::scored_queries<Scheme>(0);
    return random_numbers(std::uint64_t((std::int64_t(who) * 100000 + position) * 100 + layer + 50)).normals(heads * (di + 1));
  }
  /// What the last `observed` tokens of a prompt ask, [layer][token][query_head][d].
  std::vector<float> prompt_queries(std::size_t who, std::int64_t prompt, std::int64_t observed) const {
    std::vector<float> all;
    for (int layer = 0; layer < shape_.layers; ++layer)
      for (std::int64_t p = prompt - observed; p < prompt; ++p) {
        auto const q = query(who, p, layer);
        all.insert(all.end(), q.begin(), q.end());
      }
    return all;
  }
  std::int64_t width() const { return std::int64_t(shape_.kv_heads) * d; }
  /// A row of keys, or of values where Dim is theirs.
  template <int Dim = d>
  float* row(std::vector<float>& x, sequence_data const& s, int layer, std::int64_t token, int head = 0) const {
    return x.data() + ((layer * s.capacity + token) * shape_.kv_heads + head) * Dim;
  }
  template <int Dim = d>
  float const* row(std::vector<float> const& x, sequence_data const& s, int layer, std::int64_t token, int head = 0) const {
    return x.data() + ((layer * s.capacity + token) * shape_.kv_heads + head) * Dim;
  }

  /// The prompt in staging memory of its own, packed at its length.
  cellar::prompt_staging<float> staging(sequence_data const& s, std::vector<float>& keys, std::vector<float>& values) const {
    keys.clear();
    values.clear();
    staged_index_keys_.clear();
    for (int layer = 0; layer < shape_.layers; ++layer) {
      keys.insert(keys.end(), row(s.keys, s, layer, 0), row(s.keys, s, layer, 0) + s.prompt * width());
      values.insert(values.end(), row<dv>(s.values, s, layer, 0), row<dv>(s.values, s, layer, 0) + s.prompt * shape_.kv_heads * dv);
    }
    cellar::prompt_staging<float> staging{keys.data(), in_keys ? nullptr : values.data(), s.prompt, s.prompt};
    if constexpr (is_indexed) {
      for (int layer = 0; layer < shape_.layers; ++layer)
        staged_index_keys_.insert(staged_index_keys_.end(), row<di>(s.index_keys, s, layer, 0),
                                  row<di>(s.index_keys, s, layer, 0) + s.prompt * shape_.kv_heads * di);
      staging.index_keys = staged_index_keys_.data();
    }
    return staging;
  }

  /// One head's rows [tokens][Dim].
  template <int Dim = d>
  std::vector<float> head_rows(std::vector<float> const& x, sequence_data const& s, int layer, int head, std::int64_t begin, std::int64_t end) const {
    std::vector<float> rows;
    for (std::int64_t p = begin; p < end; ++p) rows.insert(rows.end(), row<Dim>(x, s, layer, p, head), row<Dim>(x, s, layer, p, head) + Dim);
    return rows;
  }

  /// What a codec (tested by itself) makes of one head's rows at positions from `first` on; trained on the prompt's rows where it learns.
  template <int Dim = d, class Codec>
  std::vector<float> coded(Codec coder, std::vector<float> const& rows, std::vector<float> const& prompt_rows, std::int64_t first) const {
    return coded_columns<Dim, Dim>(coder, rows, prompt_rows, first);
  }
  /// The same of tokens [begin, end) of a sequence, one head of them; codecs over all heads see all of them.
  template <class Codec, int Dim = d>
  std::vector<float> far(std::vector<float> const& x, std::vector<float> const& original, sequence_data const& s, int layer, int head, std::int64_t begin,
                         std::int64_t end) const {
    if constexpr (cellar::of_all_heads<Codec>) {
      auto const all = [&](std::vector<float> const& y, std::int64_t first, std::int64_t last) {
        return std::vector<float>(row<Dim>(y, s, layer, first), row<Dim>(y, s, layer, first) + (last - first) * shape_.kv_heads * Dim);
      };
      return coded_columns<cellar::dynamic, Dim>(Codec{}.of_head(head, shape_.kv_heads), all(x, begin, end), all(original, 0, s.prompt), begin);
    } else {
      return coded<Dim>(Codec{}, head_rows<Dim>(x, s, layer, head, begin, end), head_rows<Dim>(original, s, layer, head, 0, s.prompt), begin);
    }
  }
  static float from_storage(float x) { return cellar::to_float(cellar::from_float<typename Scheme::near_scalar>(x)); }

  /// softmax(scale q . k, as the scheme's attention bends it) v over the given positions, keys and values [token][d or dv] of one head; in double. Values in
  /// keys: those keys.
  std::vector<double> attend(float const* q, std::vector<float> const& keys, std::vector<float> const& values,
                             std::vector<std::int64_t> const& positions) const {
    constexpr int stride = in_keys ? d : dv;
    std::vector<double> logits, out(dv, 0.0);
    double top = -1e300, sum = 0;
    for (std::int64_t const p : positions) {
      double x = 0;
      for (int c = 0; c < d; ++c) x += double(q[c]) * double(keys[std::size_t(p * d + c)]);
      logits.push_back(variant_reference<typename Scheme::attention>::logit(x * double(shape_.scale())));
      top = std::max(top, logits.back());
    }
    for (std::size_t i = 0; i < positions.size(); ++i) {
      double const w = std::exp(logits[i] - top);
      sum += w;
      for (int c = 0; c < dv; ++c) out[std::size_t(c)] += w * double(values[std::size_t(positions[i] * stride + c)]);
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  template <int Columns, int Dim, class Codec>
  std::vector<float> coded_columns(Codec coder, std::vector<float> const& rows, std::vector<float> const& prompt_rows, std::int64_t first) const {
    std::int64_t const columns = Columns == cellar::dynamic ? std::int64_t(shape_.kv_heads) * Dim : Dim, tokens = std::int64_t(rows.size()) / columns;
    auto const view = [&](std::vector<float> const& x) {
      return cellar::matrix_view<float const, Columns>{x.data(), std::int64_t(x.size()) / columns, columns, columns};
    };
    cellar::serial_team t(nullptr, 0, kernels);
    std::vector<std::byte> state, scratch;
    if constexpr (cellar::rotary_aware<Codec>) coder = coder.with(with_turns());
    if constexpr (cellar::trained<Codec>) {
      state.resize(std::size_t(coder.state_bytes(columns)));
      auto learner = coder;
      if constexpr (cellar::trains_in_scratch<Codec>) {
        scratch.resize(std::size_t(coder.train_scratch_bytes(columns)));
        learner = learner.with_scratch(scratch.data());
      }
      learner.train(t, view(prompt_rows), 0, state.data());
      coder = coder.bind(state.data());
    }
    if constexpr (cellar::positional<Codec>) coder = coder.at(first);
    cellar::row_bytes const size = coder.bytes(columns);
    std::int64_t const groups = tokens / Codec::token_group;
    std::vector<std::byte> codes(std::size_t(groups * size.codes) + 1), scales(std::size_t(groups * size.scales) + 1);
    cellar::row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
    coder.encode(t, view(rows), at);
    std::vector<float> y(std::size_t(tokens * Dim));
    coder.decode(t, at, rows_of<Dim>(y));
    return y;
  }

  mutable std::vector<float> turns_, staged_index_keys_;
  random_numbers random_;
  std::vector<float> bias_;
  std::vector<double> frequencies_;
  cellar::model_shape shape_;
  recorded_layer const* recorded_ = nullptr;
};

/// A cache and its reference, fed the same.
template <class Scheme>
class trial {
 public:
  static constexpr int d = Scheme::head_dim, dv = Scheme::value_dim;
  static constexpr bool in_keys = reference<Scheme>::in_keys, is_indexed = reference<Scheme>::is_indexed;
  static constexpr int di = reference<Scheme>::di;
  static constexpr std::int64_t observed = 24;  ///< A prompt's last tokens, whose queries schemes that learn from them are given.

  trial(reference<Scheme>& ref, std::vector<std::int64_t> const& prompts, std::int64_t generated, cellar::budget const& budget, cellar::host::executor on = {},
        std::int64_t step_tokens = 1, int more_sequences = 0, std::int64_t pool_runs = 0)
      : ref_(ref),
        on_(on),
        capacity_(*std::max_element(prompts.begin(), prompts.end()) + generated),
        cache(on, ref.shape(),
              {.sequences = int(prompts.size()) + more_sequences,
               .tokens = capacity_,
               .generated_tokens = generated,
               .step_tokens = step_tokens,
               .pool_runs = pool_runs},
              budget) {
    std::vector<float> keys, values;
    for (std::int64_t const n : prompts) {
      data.push_back(ref.sequence(n, capacity_));
      ids.push_back(cache.begin_prompt(ref.staging(data.back(), keys, values)));
      if constexpr (cellar::observes_queries<Scheme>) {
        auto const queries = ref.prompt_queries(ids.size() - 1, n, std::min<std::int64_t>(n, observed));
        cache.finish_prompt(on_, ids.back(), cellar::prompt_queries<float>{queries.data(), std::min<std::int64_t>(n, observed)});
      } else {
        cache.finish_prompt(on_, ids.back());
      }
      lengths.push_back(n);
    }
  }

  /// One step of the given sequences, `new_tokens` each; checks every layer's output. Returns the outputs, [layer][row][head][dv].
  std::vector<float> step(std::vector<std::size_t> const& who, std::vector<std::int64_t> const& new_tokens, double tolerance, bool checks = true) {
    auto const& shape = ref_.shape();
    std::vector<cellar::batch_entry> batch;
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < who.size(); ++i) {
      batch.push_back({ids[who[i]], new_tokens[i]});
      rows += new_tokens[i];
    }
    cache.plan(on_, {batch.data(), std::int64_t(batch.size())});
    std::vector<float> all;
    for (int layer = 0; layer < shape.layers; ++layer) {
      std::vector<float> k, v, q, index_keys, asked, weights, out(std::size_t(rows * shape.query_heads * dv));
      for (std::size_t i = 0; i < who.size(); ++i)
        for (std::int64_t t = 0; t < new_tokens[i]; ++t) {
          auto const& s = data[who[i]];
          auto const *const key = ref_.row(s.keys, s, layer, lengths[who[i]] + t), *const value =
                                                                                       ref_.template row<dv>(s.values, s, layer, lengths[who[i]] + t);
          k.insert(k.end(), key, key + ref_.width());
          v.insert(v.end(), value, value + shape.kv_heads * dv);
          auto const query = ref_.query(who[i], lengths[who[i]] + t, layer);
          q.insert(q.end(), query.begin(), query.end());
          if constexpr (is_indexed) {
            auto const* const index_key = ref_.template row<di>(s.index_keys, s, layer, lengths[who[i]] + t);
            index_keys.insert(index_keys.end(), index_key, index_key + shape.kv_heads * di);
            auto const both = ref_.index_query(who[i], lengths[who[i]] + t, layer);
            auto const heads = both.size() / (di + 1);
            asked.insert(asked.end(), both.begin(), both.end() - std::ptrdiff_t(heads));
            weights.insert(weights.end(), both.end() - std::ptrdiff_t(heads), both.end());
          }
        }
      auto const keys = cellar::packed_heads<float const>(k.data(), rows, shape.kv_heads, d);
      auto const values = cellar::packed_heads<float const>(v.data(), rows, shape.kv_heads, dv);
      cellar::token_rows<float> stored{keys};
      if constexpr (!in_keys) stored.values = values;
      if constexpr (is_indexed) stored.index_keys = cellar::packed_heads<float const>(index_keys.data(), rows, shape.kv_heads, di);
      if constexpr (in_keys || is_indexed)
        cache.append(on_, layer, stored);
      else
        cache.append(on_, layer, keys, values);
      auto const queries = cellar::packed_heads<float const>(q.data(), rows, shape.query_heads, d);
      auto const outputs = cellar::packed_heads(out.data(), rows, shape.query_heads, dv);
      if constexpr (is_indexed) {
        std::int64_t const heads = shape.kv_heads * cellar::scored_queries<Scheme>(0);
        cache.attend(on_, layer, queries, outputs,
                     {cellar::packed_heads<float const>(asked.data(), rows, int(heads), di), {weights.data(), rows, heads, heads}});
      } else {
        cache.attend(on_, layer, queries, outputs);
      }
      if (checks) check(layer, who, new_tokens, q, out, tolerance);
      all.insert(all.end(), out.begin(), out.end());
    }
    for (std::size_t i = 0; i < who.size(); ++i) lengths[who[i]] += new_tokens[i];
    return all;
  }

  /// Truncates the cache's sequence and what is expected of it.
  void truncate(std::size_t who, std::int64_t length) {
    auto& s = data[who];
    std::int64_t const sealed_before = cache.sealed_blocks(ids[who]);
    cache.truncate(on_, ids[who], length);
    std::int64_t const sealed = cache.sealed_blocks(ids[who]), begin = cache.sinks() + sealed * Scheme::block_tokens;
    REQUIRE(cache.length(ids[who]) == length);
    REQUIRE(sealed == std::min(sealed_before, std::max<std::int64_t>(0, length - cache.sinks()) / Scheme::block_tokens));
    lengths[who] = length;
    // The rows of a block that was cut are near as decoded; whole token groups keep their codes, the rest is coded from the decoded rows.
    bool const is_cut = sealed < sealed_before;
    s.kept = std::max<std::int64_t>(0, is_cut ? length - begin : std::min(s.kept, length - begin));
    auto const reopen = [&]<class Codec, int Dim>(std::type_identity<Codec>, std::integral_constant<int, Dim>, std::vector<float>& near,
                                                  std::vector<float>& coded, std::vector<float> const& original) {
      auto const source = coded;
      std::int64_t const recoded = begin + s.kept / Codec::token_group * Codec::token_group;
      for (int layer = 0; layer < ref_.shape().layers; ++layer)
        for (int head = 0; head < ref_.shape().kv_heads; ++head) {
          std::vector<float> rows;
          if (is_cut && s.kept > 0) rows = ref_.template far<Codec, Dim>(source, original, s, layer, head, begin, begin + Scheme::block_tokens);
          for (std::int64_t p = begin; p < std::min(begin + Scheme::block_tokens, s.capacity); ++p)
            for (int c = 0; c < Dim; ++c) {
              float& x = ref_.template row<Dim>(near, s, layer, p, head)[c];
              if (is_cut && p < length) x = ref_.from_storage(rows[std::size_t((p - begin) * Dim + c)]);
              if (p >= recoded) ref_.template row<Dim>(coded, s, layer, p, head)[c] = x;
            }
        }
    };
    reopen(std::type_identity<typename Scheme::key_codec>{}, std::integral_constant<int, d>{}, s.keys, s.coded_keys, s.original_keys);
    if constexpr (!in_keys)
      reopen(std::type_identity<typename Scheme::value_codec>{}, std::integral_constant<int, dv>{}, s.values, s.coded_values, s.original_values);
  }
  /// Forks a sequence; returns the new one's number.
  std::size_t fork(std::size_t who) {
    auto const id = cache.fork(on_, ids[who]);
    data.push_back(sequence_data(data[who]));
    ids.push_back(id);
    lengths.push_back(lengths[who]);
    return ids.size() - 1;
  }

 private:
  void check(int layer, std::vector<std::size_t> const& who, std::vector<std::int64_t> const& new_tokens, std::vector<float> const& q,
             std::vector<float> const& out, double tolerance) {
    auto const& shape = ref_.shape();
    std::int64_t row = 0;
    for (std::size_t i = 0; i < who.size(); ++i) {
      auto const& s = data[who[i]];
      std::int64_t const length = lengths[who[i]] + new_tokens[i], sinks = std::min(cache.sinks(), length), sealed = cache.sealed_blocks(ids[who[i]]);
      REQUIRE(cache.length(ids[who[i]]) == length);
      for (int head = 0; head < shape.kv_heads; ++head) {
        auto keys = ref_.head_rows(s.keys, s, layer, head, 0, length), values = ref_.template head_rows<dv>(s.values, s, layer, head, 0, length);
        if (sealed > 0) {  // far rows are what the codec makes of them
          std::int64_t const begin = cache.sinks(), end = begin + sealed * Scheme::block_tokens;
          auto const far_keys = ref_.template far<typename Scheme::key_codec>(s.coded_keys, s.original_keys, s, layer, head, begin, end);
          std::copy(far_keys.begin(), far_keys.end(), keys.begin() + begin * d);
          if constexpr (!in_keys) {
            auto const far_values = ref_.template far<typename Scheme::value_codec, dv>(s.coded_values, s.original_values, s, layer, head, begin, end);
            std::copy(far_values.begin(), far_values.end(), values.begin() + begin * dv);
          }
        }
        // Outliers are near and exact.
        auto const outliers = cache.outliers(layer, ids[who[i]], head);
        auto const is_outlier = [&](std::int64_t block) { return std::any_of(outliers.begin(), outliers.end(), [&](auto id) { return number(id) == block; }); };
        for (auto const id : outliers) {
          std::int64_t const first = cache.sinks() + number(id) * Scheme::block_tokens;
          REQUIRE(number(id) < sealed);
          auto const exact_keys = ref_.head_rows(s.original_keys, s, layer, head, first, first + Scheme::block_tokens);
          auto const exact_values = ref_.template head_rows<dv>(s.original_values, s, layer, head, first, first + Scheme::block_tokens);
          std::copy(exact_keys.begin(), exact_keys.end(), keys.begin() + first * d);
          std::copy(exact_values.begin(), exact_values.end(), values.begin() + first * dv);
        }
        std::vector<std::int64_t> positions;
        for (auto const id : outliers)
          if (cache.selected(std::int64_t(i), head))
            for (int t = 0; t < Scheme::block_tokens; ++t) positions.push_back(cache.sinks() + number(id) * Scheme::block_tokens + t);
        for (std::int64_t p = 0; p < sinks; ++p) positions.push_back(p);
        auto const selected = cache.selected(std::int64_t(i), head);
        std::int64_t last = -1;
        for (std::int64_t b = 0; b < (selected ? selected->count : sealed); ++b) {
          std::int64_t const block = selected ? number((*selected)[b]) : b;
          REQUIRE(block > last);
          REQUIRE(block < sealed);
          if (selected) REQUIRE(!is_outlier(block));
          last = block;
          for (int t = 0; t < Scheme::block_tokens; ++t) positions.push_back(cache.sinks() + block * Scheme::block_tokens + t);
        }
        for (std::int64_t p = std::max(sinks, cache.sinks() + sealed * Scheme::block_tokens); p < length; ++p) positions.push_back(p);
        for (std::int64_t t = 0; t < new_tokens[i]; ++t) {
          auto visible = positions;
          std::erase_if(visible, [&](std::int64_t p) { return !variant_reference<typename Scheme::attention>::sees(lengths[who[i]] + t, p); });
          for (int g = 0; g < shape.group(); ++g) {
            std::int64_t const at = (row + t) * shape.query_heads + head * shape.group() + g;
            auto const expected = ref_.attend(q.data() + at * d, keys, in_keys ? keys : values, visible);
            for (int c = 0; c < dv; ++c) {
              double const difference = std::abs(double(out[std::size_t(at * dv + c)]) - expected[std::size_t(c)]);
              if (!(difference <= tolerance))
                FAIL("sequence " << who[i] << ", layer " << layer << ", head " << head << ", query " << t << ", length " << length << ": "
                                 << out[std::size_t(at * dv + c)] << " for " << expected[std::size_t(c)]);
            }
          }
        }
      }
      row += new_tokens[i];
    }
  }

  reference<Scheme>& ref_;
  cellar::host::executor on_;
  std::int64_t capacity_;

 public:
  cellar::cache<Scheme> cache;
  std::vector<sequence_data> data;
  std::vector<cellar::sequence_id> ids;
  std::vector<std::int64_t> lengths;
};

/// The schemes of the library in f32, so that what is compared is the algorithm and not the rounding of storage. Under sanitizers, which take long to build
/// and to run, one of each kind.
template <int D, class F>
void for_each_scheme(F const& f) {
  namespace scheme = cellar::scheme;
  f(std::type_identity<scheme::dense<D, float>>{});
  f(std::type_identity<scheme::sink_window<D, float>>{});
  f(std::type_identity<scheme::quest<D, float>>{});
  f(std::type_identity<scheme::yakv_centred<D, float>>{});
  f(std::type_identity<scheme::shadow_kv<D, jacobi_eigensolver, float, cellar::codec::fixed_rank<20>>>{});
  f(std::type_identity<scheme::yakv_published<D, float>>{});
  if constexpr (!is_sanitized) {
    f(std::type_identity<scheme::mean_landmark<D, float>>{});
    f(std::type_identity<scheme::yakv<D, float>>{});
    f(std::type_identity<scheme::arkvale<D, float>>{});
    f(std::type_identity<scheme::yakv_before_rotary<D, float>>{});
    f(std::type_identity<scheme::yakv_residual<D, float>>{});
  }
}
