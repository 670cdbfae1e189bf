#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "random.hpp"

inline constexpr double rounding = 5e-5;  ///< Of outputs: f32 sums and exp of a few hundred terms of size 1 to 4.

/// A model's keys and values made of random numbers, and attention over them in double: what a cache is compared with.
struct sequence_data {
  std::vector<float> keys, values;  // [layer][token][kv_head][head_dim], room for all tokens
  std::int64_t capacity = 0, prompt = 0;
};

template <class Scheme>
class reference {
 public:
  static constexpr int d = Scheme::head_dim;

  reference(int layers, int kv_heads, int group, std::uint64_t seed, float bias = 0) : random_(seed), bias_(random_.normals(d, bias)) {
    for (int i = 0; i < d / 2; ++i) frequencies_.push_back(std::pow(1e4, -2.0 * i / d));
    shape_ = {.layers = layers, .query_heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = d};
    shape_.rotary = {cellar::rotary_pairing::half_split, {frequencies_.data(), d / 2}};
  }

  cellar::model_shape const& shape() const { return shape_; }
  random_numbers& random() { return random_; }

  /// Keys with a bias before rotary embedding, attended at their positions.
  sequence_data sequence(std::int64_t prompt, std::int64_t capacity) {
    sequence_data s{random_.normals(shape_.layers * capacity * width()), random_.normals(shape_.layers * capacity * width()), capacity, prompt};
    for (std::int64_t row = 0; row < std::int64_t(s.keys.size()) / d; ++row) {
      std::int64_t const position = row / shape_.kv_heads % capacity;
      float* const k = s.keys.data() + row * d;
      for (int c = 0; c < d; ++c) k[c] = from_storage(k[c] + bias_[std::size_t(c)]);
      cellar::rotate(shape_.rotary, k, double(position), k);
      for (int c = 0; c < d; ++c) {
        k[c] = from_storage(k[c]);
        s.values[std::size_t(row * d + c)] = from_storage(s.values[std::size_t(row * d + c)]);
      }
    }
    return s;
  }
  std::int64_t width() const { return std::int64_t(shape_.kv_heads) * d; }
  float* row(std::vector<float>& x, sequence_data const& s, int layer, std::int64_t token, int head = 0) const {
    return x.data() + ((layer * s.capacity + token) * shape_.kv_heads + head) * d;
  }
  float const* row(std::vector<float> const& x, sequence_data const& s, int layer, std::int64_t token, int head = 0) const {
    return x.data() + ((layer * s.capacity + token) * shape_.kv_heads + head) * d;
  }

  /// The prompt in staging memory of its own, packed at its length.
  cellar::prompt_staging<float> staging(sequence_data const& s, std::vector<float>& keys, std::vector<float>& values) const {
    keys.clear();
    values.clear();
    for (int layer = 0; layer < shape_.layers; ++layer) {
      keys.insert(keys.end(), row(s.keys, s, layer, 0), row(s.keys, s, layer, 0) + s.prompt * width());
      values.insert(values.end(), row(s.values, s, layer, 0), row(s.values, s, layer, 0) + s.prompt * width());
    }
    return {keys.data(), values.data(), s.prompt, s.prompt};
  }

  /// One head's rows [tokens][d].
  std::vector<float> head_rows(std::vector<float> const& x, sequence_data const& s, int layer, int head, std::int64_t begin, std::int64_t end) const {
    std::vector<float> rows;
    for (std::int64_t p = begin; p < end; ++p) rows.insert(rows.end(), row(x, s, layer, p, head), row(x, s, layer, p, head) + d);
    return rows;
  }

  /// What a codec (tested by itself) makes of rows at positions from `first` on; trained on the prompt's rows where it learns.
  template <class Codec>
  std::vector<float> coded(Codec coder, std::vector<float> const& rows, std::vector<float> const& prompt_rows, std::int64_t first) const {
    cellar::serial_team t;
    std::vector<std::byte> state(4096);
    if constexpr (cellar::rotary_aware<Codec>) coder = coder.with(shape_.rotary);
    if constexpr (cellar::trained<Codec>) {
      coder.train(t, rows_of<d>(prompt_rows), 0, state.data());
      coder = coder.bind(state.data());
    }
    if constexpr (cellar::positional<Codec>) coder = coder.at(first);
    std::int64_t const groups = std::int64_t(rows.size()) / d / Codec::token_group;
    cellar::row_bytes const size = coder.bytes(d);
    std::vector<std::byte> codes(std::size_t(groups * size.codes) + 1), scales(std::size_t(groups * size.scales) + 1);
    cellar::row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
    coder.encode(t, rows_of<d>(rows), at);
    std::vector<float> y(rows.size());
    coder.decode(t, at, rows_of<d>(y));
    return y;
  }

  /// softmax(scale q . k) v over the given positions, keys and values [token][d] of one head; in double.
  std::vector<double> attend(float const* q, std::vector<float> const& keys, std::vector<float> const& values,
                             std::vector<std::int64_t> const& positions) const {
    std::vector<double> logits, out(d, 0.0);
    double top = -1e300, sum = 0;
    for (std::int64_t const p : positions) {
      double x = 0;
      for (int c = 0; c < d; ++c) x += double(q[c]) * double(keys[std::size_t(p * d + c)]);
      logits.push_back(x * double(shape_.scale()));
      top = std::max(top, logits.back());
    }
    for (std::size_t i = 0; i < positions.size(); ++i) {
      double const w = std::exp(logits[i] - top);
      sum += w;
      for (int c = 0; c < d; ++c) out[std::size_t(c)] += w * double(values[std::size_t(positions[i] * d + c)]);
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  static float from_storage(float x) { return cellar::to_float(cellar::from_float<typename Scheme::near_scalar>(x)); }

  random_numbers random_;
  std::vector<float> bias_;
  std::vector<double> frequencies_;
  cellar::model_shape shape_;
};

/// A cache and its reference, fed the same.
template <class Scheme>
class trial {
 public:
  static constexpr int d = Scheme::head_dim;

  trial(reference<Scheme>& ref, std::vector<std::int64_t> const& prompts, std::int64_t generated, cellar::budget const& budget, cellar::host::executor on = {},
        std::int64_t step_tokens = 1)
      : ref_(ref),
        on_(on),
        capacity_(*std::max_element(prompts.begin(), prompts.end()) + generated),
        cache(on, ref.shape(), {.sequences = int(prompts.size()), .tokens = capacity_, .generated_tokens = generated, .step_tokens = step_tokens}, budget) {
    std::vector<float> keys, values;
    for (std::int64_t const n : prompts) {
      data.push_back(ref.sequence(n, capacity_));
      ids.push_back(cache.begin_prompt(ref.staging(data.back(), keys, values)));
      cache.finish_prompt(on_, ids.back());
      lengths.push_back(n);
    }
  }

  /// One step of the given sequences, `new_tokens` each; checks every layer's output. Returns the outputs, [layer][row][head][d].
  /// A query depends on its sequence, position and layer alone.
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
      std::vector<float> k, v, q, out(std::size_t(rows * shape.query_heads * d));
      for (std::size_t i = 0; i < who.size(); ++i)
        for (std::int64_t t = 0; t < new_tokens[i]; ++t) {
          auto const& s = data[who[i]];
          auto const *const key = ref_.row(s.keys, s, layer, lengths[who[i]] + t), *const value = ref_.row(s.values, s, layer, lengths[who[i]] + t);
          k.insert(k.end(), key, key + ref_.width());
          v.insert(v.end(), value, value + ref_.width());
          auto const query =
              random_numbers(std::uint64_t((std::int64_t(who[i]) * 100000 + lengths[who[i]] + t) * 100 + layer)).normals(shape.query_heads * d, 2);
          q.insert(q.end(), query.begin(), query.end());
        }
      cache.append(on_, layer, cellar::packed_heads<float const>(k.data(), rows, shape.kv_heads, d),
                   cellar::packed_heads<float const>(v.data(), rows, shape.kv_heads, d));
      cache.attend(on_, layer, cellar::packed_heads<float const>(q.data(), rows, shape.query_heads, d),
                   cellar::packed_heads(out.data(), rows, shape.query_heads, d));
      if (checks) check(layer, who, new_tokens, q, out, tolerance);
      all.insert(all.end(), out.begin(), out.end());
    }
    for (std::size_t i = 0; i < who.size(); ++i) lengths[who[i]] += new_tokens[i];
    return all;
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
        auto keys = ref_.head_rows(s.keys, s, layer, head, 0, length), values = ref_.head_rows(s.values, s, layer, head, 0, length);
        auto const prompt_keys = ref_.head_rows(s.keys, s, layer, head, 0, s.prompt), prompt_values = ref_.head_rows(s.values, s, layer, head, 0, s.prompt);
        std::int64_t const begin = cache.sinks() * d, end = begin + sealed * Scheme::block_tokens * d;
        if (sealed > 0) {  // far rows are what the codec makes of them
          auto const far_keys = ref_.coded(typename Scheme::key_codec{}, {keys.begin() + begin, keys.begin() + end}, prompt_keys, cache.sinks());
          auto const far_values = ref_.coded(typename Scheme::value_codec{}, {values.begin() + begin, values.begin() + end}, prompt_values, cache.sinks());
          std::copy(far_keys.begin(), far_keys.end(), keys.begin() + begin);
          std::copy(far_values.begin(), far_values.end(), values.begin() + begin);
        }
        std::vector<std::int64_t> positions;
        for (std::int64_t p = 0; p < sinks; ++p) positions.push_back(p);
        auto const selected = cache.selected(std::int64_t(i), head);
        std::int64_t last = -1;
        for (std::int64_t b = 0; b < (selected ? selected->count : sealed); ++b) {
          std::int64_t const block = selected ? number((*selected)[b]) : b;
          REQUIRE(block > last);
          REQUIRE(block < sealed);
          last = block;
          for (int t = 0; t < Scheme::block_tokens; ++t) positions.push_back(cache.sinks() + block * Scheme::block_tokens + t);
        }
        for (std::int64_t p = std::max(sinks, cache.sinks() + sealed * Scheme::block_tokens); p < length; ++p) positions.push_back(p);
        for (std::int64_t t = 0; t < new_tokens[i]; ++t) {
          auto visible = positions;
          std::erase_if(visible, [&](std::int64_t p) { return p > lengths[who[i]] + t; });
          for (int g = 0; g < shape.group(); ++g) {
            std::int64_t const at = ((row + t) * shape.query_heads + head * shape.group() + g) * d;
            auto const expected = ref_.attend(q.data() + at, keys, values, visible);
            for (int c = 0; c < d; ++c) {
              double const difference = std::abs(double(out[std::size_t(at + c)]) - expected[std::size_t(c)]);
              if (!(difference <= tolerance))
                FAIL("sequence " << who[i] << ", layer " << layer << ", head " << head << ", query " << t << ", length " << length << ": "
                                 << out[std::size_t(at + c)] << " for " << expected[std::size_t(c)]);
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

/// The schemes of the library in f32, so that what is compared is the algorithm and not the rounding of storage.
template <int D, class F>
void for_each_scheme(F const& f) {
  namespace scheme = cellar::scheme;
  f(std::type_identity<scheme::dense<D, float>>{});
  f(std::type_identity<scheme::sink_window<D, float>>{});
  f(std::type_identity<scheme::quest<D, float>>{});
  f(std::type_identity<scheme::mean_landmark<D, float>>{});
  f(std::type_identity<scheme::yakv<D, float>>{});
  f(std::type_identity<scheme::yakv_centred<D, float>>{});
}
