#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cache/reference.hpp"

/// A logit that a summary promises, in double, and the rounding to allow for.
struct promise {
  double logit = 0, slack = 0;
};

/// What summaries promise for one query and one block by their definitions: by<Scheme, Summary>, made of one head's keys. Codes are what a codec (tested by
/// itself) makes of them.
namespace definitions {

template <class Scheme, class Summary>
struct by;

template <class Scheme>
struct blocks_of_keys {
  static constexpr int d = Scheme::head_dim, tokens = Scheme::block_tokens;
  static constexpr double f32_sum = (d + 16) * 0x1p-24;  // a sum of d products, of means over at most 16 keys; of wider ones the sum is slack enough
  std::vector<float> keys;

  blocks_of_keys(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : keys(ref.head_rows(s.keys, s, 0, head, first, first + blocks * tokens)) {}
  double key(std::int64_t block, std::int64_t token, int c) const { return double(keys[std::size_t((block * tokens + token) * d + c)]); }

  /// Sum over channels of share(c), a value and the size of its parts.
  template <class Share>
  static promise sum(Share const& share) {
    promise p;
    for (int c = 0; c < d; ++c) {
      auto const [value, size] = share(c);
      p.logit += value;
      p.slack += size * f32_sum;
    }
    return p;
  }
};

/// q . row, which the library may sum in rotated channels: by Cauchy, no sum of their products is larger than the product of the norms.
template <int D>
promise product(float const* q, float const* row, double more_norm = 0) {
  promise p;
  double q2 = 0, row2 = 0;
  for (int c = 0; c < D; ++c) {
    p.logit += double(q[c]) * double(row[c]);
    q2 += double(q[c]) * double(q[c]);
    row2 += double(row[c]) * double(row[c]);
  }
  p.slack = std::sqrt(q2) * (std::sqrt(row2) + more_norm) * (D + 16) * 0x1p-24;
  return p;
}

template <class Scheme>
struct by<Scheme, cellar::summary::mean<float>> : blocks_of_keys<Scheme> {
  using blocks_of_keys<Scheme>::blocks_of_keys;
  promise operator()(float const* q, std::int64_t block) const {
    return this->sum([&](int c) {
      double mean = 0;
      for (int i = 0; i < this->tokens; ++i) mean += this->key(block, i, c) / this->tokens;
      return std::pair{double(q[c]) * mean, std::abs(double(q[c]) * mean)};
    });
  }
};

template <class Scheme>
struct by<Scheme, cellar::summary::min_max<float>> : blocks_of_keys<Scheme> {
  using blocks_of_keys<Scheme>::blocks_of_keys;
  promise operator()(float const* q, std::int64_t block) const {
    return this->sum([&](int c) {
      double best = -1e300;
      for (int i = 0; i < this->tokens; ++i) best = std::max(best, double(q[c]) * this->key(block, i, c));
      return std::pair{best, std::abs(best)};
    });
  }
};

template <class Scheme>
struct by<Scheme, cellar::summary::box_digest<float>> : blocks_of_keys<Scheme> {
  using blocks_of_keys<Scheme>::blocks_of_keys;
  promise operator()(float const* q, std::int64_t block) const {
    return this->sum([&](int c) {
      double low = 1e300, high = -1e300, radius = 0;
      for (int i = 0; i < this->tokens; ++i) {
        low = std::min(low, this->key(block, i, c));
        high = std::max(high, this->key(block, i, c));
      }
      double const middle = (low + high) / 2;
      for (int i = 0; i < this->tokens; ++i) radius += std::abs(this->key(block, i, c) - middle) / this->tokens;
      return std::pair{double(q[c]) * middle + std::abs(double(q[c])) * radius, std::abs(double(q[c])) * (std::abs(middle) + radius)};
    });
  }
};

/// Landmarks of single tokens.
template <class Scheme, class Codec>
struct by<Scheme, cellar::summary::quantized_key<Codec>> {
  std::vector<float> landmarks;
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : landmarks(ref.template far<Codec>(s.keys, s.original_keys, s, 0, head, first, first + blocks)) {
    static_assert(Scheme::block_tokens == 1);
  }
  promise operator()(float const* q, std::int64_t block) const {
    float const* const one = landmarks.data() + block * Scheme::head_dim;
    double norm = 0;  // a centre and what is left are no longer than twice the landmark and the longest of all
    for (float const x : landmarks) norm = std::max(norm, std::abs(double(x)));
    return product<Scheme::head_dim>(q, one, norm);
  }
};

/// With an inner codec that loses nothing, the centre that is subtracted is added again, whatever it is.
template <class Scheme, int Tokens>
struct by<Scheme, cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::identity<float>, cellar::codec::block_mean<Tokens>>>>
    : blocks_of_keys<Scheme> {
  using blocks_of_keys<Scheme>::blocks_of_keys;
  promise operator()(float const* q, std::int64_t block) const {
    auto p = product<Scheme::head_dim>(q, this->keys.data() + block * Scheme::head_dim);
    for (int c = 0; c < Scheme::head_dim; ++c) p.slack += std::abs(double(q[c])) * 4e-6;  // an f32 key of up to 30 less and plus the centre
    return p;
  }
};

/// The mean key of each tile, coded, and each key's difference from that, coded.
template <class Scheme, class MeanCodec, class ResidualCodec, int Landmarks>
struct by<Scheme, cellar::summary::residual<MeanCodec, ResidualCodec, Landmarks>> {
  static constexpr int d = Scheme::head_dim;
  std::vector<float> means, residuals;
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks) {
    static_assert(Scheme::block_tokens == 1);
    auto const keys = ref.head_rows(s.keys, s, 0, head, first, first + blocks);
    for (std::int64_t tile = 0; tile < blocks; tile += Landmarks) {
      std::int64_t const end = std::min(tile + Landmarks, blocks);
      std::vector<float> mean(d, 0.0f);  // summed in f32 in the order of tokens: a mean that rounds elsewhere may have another nearest code
      for (std::int64_t i = tile; i < end; ++i)
        for (int c = 0; c < d; ++c) mean[std::size_t(c)] += keys[std::size_t(i * d + c)];
      for (float& x : mean) x /= float(end - tile);
      auto const coded_mean = ref.coded(MeanCodec{}, mean, mean, 0);
      std::vector<float> differences;
      for (std::int64_t i = tile; i < end; ++i) {
        means.insert(means.end(), coded_mean.begin(), coded_mean.end());
        for (int c = 0; c < d; ++c) differences.push_back(keys[std::size_t(i * d + c)] - coded_mean[std::size_t(c)]);
      }
      auto const coded = ref.coded(ResidualCodec{}, differences, differences, 0);
      residuals.insert(residuals.end(), coded.begin(), coded.end());
    }
  }
  promise operator()(float const* q, std::int64_t block) const {
    auto const mean = product<d>(q, means.data() + block * d), rest = product<d>(q, residuals.data() + block * d);
    return {mean.logit + rest.logit, 2 * (mean.slack + rest.slack)};
  }
};

}  // namespace definitions

/// The ids that each of `steps` steps of `new_tokens` tokens chose are those of the highest scores by the scheme's definition, but for ties within rounding.
/// The model has one layer. Rounding may be as large as `most_rounding` of the spread of the scores: where it is larger, the check would say nothing.
template <class Scheme>
void check_selection(reference<Scheme>& ref, std::int64_t tokens, cellar::budget const& budget, int steps, std::int64_t new_tokens, double tolerance,
                     double most_rounding = 0.01) {
  constexpr int d = Scheme::head_dim;
  auto const& shape = ref.shape();
  int const group = shape.group();
  trial<Scheme> t(ref, {tokens}, steps * new_tokens, budget, {}, new_tokens);
  auto const& s = t.data[0];
  for (int step = 0; step < steps; ++step) {
    std::int64_t const length = t.lengths[0];
    t.step({0}, {new_tokens}, tolerance);
    std::vector<float> q;  // [token][head][d]
    for (std::int64_t i = 0; i < new_tokens; ++i) {
      auto const one = ref.query(0, length + i, 0);
      q.insert(q.end(), one.begin(), one.end());
    }
    std::int64_t const blocks = t.cache.sealed_blocks(t.ids[0]), sinks = t.cache.sinks();
    for (int head = 0; head < shape.kv_heads; ++head) {
      definitions::by<Scheme, typename Scheme::summary> const promised(ref, s, head, sinks, blocks);
      auto const outliers = t.cache.outliers(0, t.ids[0], head);
      std::vector<std::int64_t> candidates;  // outliers are attended anyway: they are not chosen and have no weight in a softmax
      for (std::int64_t b = 0; b < blocks; ++b)
        if (std::none_of(outliers.begin(), outliers.end(), [&](auto id) { return number(id) == b; })) candidates.push_back(b);
      std::vector<std::vector<double>> logits;  // [query row][candidate]
      double slack = 0;                         // of one logit
      for (std::int64_t row = 0; row < new_tokens * group; ++row) {
        logits.emplace_back();
        for (std::int64_t const b : candidates) {
          auto const p = promised(q.data() + ((row / group * shape.kv_heads + head) * group + row % group) * d, b);
          logits.back().push_back(p.logit * double(shape.scale()));
          slack = std::max(slack, p.slack * double(shape.scale()));
        }
      }
      std::vector<double> scores(candidates.size(), 0.0);
      double score_slack = double(logits.size()) * slack;  // of a sum of logits; that of their mean is smaller
      if constexpr (std::is_same_v<typename Scheme::reduce, cellar::select::max_of_softmaxes>) {
        std::fill(scores.begin(), scores.end(), -1e300);
        for (auto const& row : logits) {
          double const top = *std::max_element(row.begin(), row.end());
          double sum = 0;
          for (double const x : row) sum += std::exp(x - top);
          for (std::size_t b = 0; b < row.size(); ++b) scores[b] = std::max(scores[b], row[b] - top - std::log(sum));
        }
        score_slack = 2 * slack + 1e-5;  // the logit's, the normaliser's, and the f32 logarithm of the latter
      } else {
        bool const is_mean = std::is_same_v<typename Scheme::reduce, cellar::select::mean_query>;
        for (auto const& row : logits)
          for (std::size_t b = 0; b < row.size(); ++b) scores[b] += is_mean ? row[b] / double(logits.size()) : row[b];
      }
      auto const ids = *t.cache.selected(0, head);
      REQUIRE(ids.count == std::min(budget.tokens / Scheme::block_tokens, std::int64_t(candidates.size())));
      REQUIRE(ids.count < std::int64_t(candidates.size()));
      double lowest_chosen = 1e300, highest_left = -1e300;
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        bool const is_chosen = std::any_of(ids.begin(), ids.end(), [&](auto id) { return number(id) == candidates[i]; });
        (is_chosen ? lowest_chosen = std::min(lowest_chosen, scores[i]) : highest_left = std::max(highest_left, scores[i]));
      }
      CHECK(lowest_chosen >= highest_left - 2 * score_slack);
      double const spread = *std::max_element(scores.begin(), scores.end()) - *std::min_element(scores.begin(), scores.end());
      CHECK(2 * score_slack < most_rounding * spread);  // it can fail
    }
  }
}
