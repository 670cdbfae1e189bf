#pragma once
#include <algorithm>
#include <bit>
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

/// The largest channels of a query alone, sharpened by what they hold of its sum of magnitudes.
template <class Scheme, int Count, class Summary>
struct by<Scheme, cellar::summary::by_largest_channels<Count, Summary>> : blocks_of_keys<Scheme> {
  using blocks_of_keys<Scheme>::blocks_of_keys;
  promise operator()(float const* q, std::int64_t block) const {
    static_assert(Scheme::block_tokens == 1);
    std::vector<int> order;
    for (int c = 0; c < this->d; ++c) order.push_back(c);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return std::abs(q[a]) > std::abs(q[b]); });
    order.resize(std::min<std::size_t>(order.size(), std::size_t(Count)));
    double all = 0, some = 0;
    for (int c = 0; c < this->d; ++c) all += std::abs(double(q[c]));
    for (int const c : order) some += std::abs(double(q[c]));
    promise p;
    for (int const c : order) {
      double const term = double(q[c]) * this->key(block, 0, c) * std::sqrt(all / some);
      p.logit += term;
      p.slack += std::abs(term) * 2 * this->f32_sum;  // the factor is of sums too
    }
    return p;
  }
};

/// The prompt's keys of one head, in double: what maps learn from. [token][d]
template <class Scheme>
std::vector<double> prompt_keys(reference<Scheme> const& ref, sequence_data const& s, int head) {
  auto const keys = ref.head_rows(s.original_keys, s, 0, head, 0, s.prompt);
  return {keys.begin(), keys.end()};
}

/// What a codec (tested by itself) makes of rows of any width.
template <class Codec>
std::vector<float> coded_rows(cellar::vector_kernels const* kernels, std::vector<float> const& rows, int width) {
  Codec const coder;
  cellar::serial_team t(nullptr, 0, kernels);
  auto const tokens = std::int64_t(rows.size()) / width;
  cellar::row_bytes const size = coder.bytes(width);
  std::vector<std::byte> codes(std::size_t(tokens * size.codes) + 1), scales(std::size_t(tokens * size.scales) + 1);
  cellar::row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
  coder.encode(t, cellar::matrix_view<float const>{rows.data(), tokens, width, width}, at);
  std::vector<float> y(rows.size());
  coder.decode(t, at, cellar::matrix_view<float>{y.data(), tokens, width, width});
  return y;
}

/// Coded label channels: those of the prompt's largest sums of squares.
template <class Scheme, class Count, class Codec>
struct by<Scheme, cellar::summary::mapped<cellar::summary::label_channels<Count>, cellar::summary::quantized_key<Codec>>> : blocks_of_keys<Scheme> {
  std::vector<int> labels;
  std::vector<float> coded;
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks) {
    static_assert(Scheme::block_tokens == 1);
    constexpr int d = Scheme::head_dim;
    auto const keys = prompt_keys(ref, s, head);
    std::vector<double> sums(d, 0.0);
    for (std::size_t i = 0; i < keys.size(); ++i) sums[i % d] += keys[i] * keys[i];
    for (int c = 0; c < d; ++c) labels.push_back(c);
    std::sort(labels.begin(), labels.end(), [&](int a, int b) { return sums[std::size_t(a)] > sums[std::size_t(b)]; });
    labels.resize(std::size_t(std::max<std::int64_t>(2, (Count::of(d) + 1) / 2 * 2)));
    std::vector<float> rows;
    for (std::int64_t b = 0; b < blocks; ++b)
      for (int const c : labels) rows.push_back(float(this->key(b, 0, c)));
    coded = coded_rows<Codec>(ref.kernels, rows, int(labels.size()));
  }
  promise operator()(float const* q, std::int64_t block) const {
    promise p;
    double size = 0, largest = 0;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      double const term = double(q[labels[i]]) * double(coded[std::size_t(block) * labels.size() + i]);
      p.logit += term;
      largest = std::max(largest, std::abs(double(coded[std::size_t(block) * labels.size() + i])));
      size += std::abs(double(q[labels[i]]));
    }
    p.slack = 3 * size * largest * this->f32_sum;  // a code's steps and minimum apart, each up to twice the largest channel
    return p;
  }
};

/// Coordinates in the leading eigenvectors of the prompt's covariance.
template <class Scheme, class Rank, class Eigensolver>
struct by<Scheme, cellar::summary::mapped<cellar::summary::principal_axes<Rank, Eigensolver>, cellar::summary::mean<float>>> : blocks_of_keys<Scheme> {
  static constexpr int d = Scheme::head_dim;
  std::vector<double> vectors;  // [axis][channel]
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks) {
    auto const keys = prompt_keys(ref, s, head);
    auto const n = double(s.prompt);
    std::vector<double> covariance(d * d), mean(d, 0.0);
    for (std::size_t i = 0; i < keys.size(); ++i) mean[i % d] += keys[i] / n;
    for (std::size_t a = 0; a < d; ++a)
      for (std::size_t b = 0; b < d; ++b)
        for (std::size_t r = 0; r < keys.size(); r += d) covariance[a * d + b] += (keys[r + a] - mean[a]) * (keys[r + b] - mean[b]) / n;
    auto const axes = int((Rank::of(d) + 1) / 2 * 2);
    vectors.resize(std::size_t(axes * d));
    jacobi_eigensolver{}(covariance.data(), d, axes, vectors.data());
  }
  promise operator()(float const* q, std::int64_t block) const {
    promise p;
    double q2 = 0, k2 = 0;
    for (std::size_t i = 0; i < vectors.size(); i += d) {
      double of_q = 0, of_k = 0;
      for (int c = 0; c < d; ++c) {
        of_q += double(q[c]) * vectors[i + std::size_t(c)];
        of_k += this->key(block, 0, c) * vectors[i + std::size_t(c)];
      }
      p.logit += of_q * of_k;
    }
    for (int c = 0; c < d; ++c) {
      q2 += double(q[c]) * double(q[c]);
      k2 += this->key(block, 0, c) * this->key(block, 0, c);
    }
    p.slack = 4 * std::sqrt(q2 * k2) * this->f32_sum;  // rounded axes, and sums in them
    return p;
  }
};

/// RaBitQ's estimate from signs of the rotated difference from the prompt's mean, and the mean's product.
template <class Scheme, std::uint32_t Seed>
struct by<Scheme, cellar::summary::mapped<cellar::summary::around_mean, cellar::summary::quantized_key<cellar::codec::signs<Seed, float>>>>
    : blocks_of_keys<Scheme> {
  static constexpr int d = Scheme::head_dim;
  static_assert((d & (d - 1)) == 0);
  std::vector<double> mean;
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks), mean(d, 0.0) {
    auto const keys = prompt_keys(ref, s, head);
    for (std::size_t i = 0; i < keys.size(); ++i) mean[i % d] += keys[i] / double(s.prompt);
  }
  /// Row i of the rotation, times x.
  template <class X>
  static double rotated(X const& x, int i) {
    double y = 0;
    for (int c = 0; c < d; ++c)
      y += (std::popcount(unsigned(i & c)) % 2 ? -1 : 1) * double(cellar::codec::random_sign(Seed, c)) * double(x(c)) / std::sqrt(double(d));
    return y;
  }
  promise operator()(float const* q, std::int64_t block) const {
    auto const difference = [&](int c) { return this->key(block, 0, c) - mean[std::size_t(c)]; };
    double signed_sum = 0, sizes = 0, squares = 0, common = 0, size = 0;
    for (int i = 0; i < d; ++i) {
      double const y = rotated(difference, i), of_q = rotated([&](int c) { return q[c]; }, i);
      sizes += std::abs(y);
      signed_sum += y >= 0 ? of_q : -of_q;
      size += std::abs(of_q);
      squares += difference(i) * difference(i);
      common += double(q[i]) * mean[std::size_t(i)];
    }
    double const factor = squares / sizes;
    return {common + factor * signed_sum, (std::abs(common) + 3 * factor * size) * this->f32_sum};
  }
};

/// The attention that a prompt's last queries pay to each of its tokens, of one KV head, in double: softmax over the keys that a query sees within reach.
/// [token], of the first layer unless another is asked for
template <class Scheme>
std::vector<double> prompt_attention(reference<Scheme> const& ref, sequence_data const& s, std::size_t who, int layer, int head, std::int64_t observed,
                                     std::int64_t reach) {
  using variant = variant_reference<typename Scheme::attention>;
  constexpr int d = Scheme::head_dim;
  auto const keys = ref.head_rows(s.original_keys, s, layer, head, 0, s.prompt);
  int const group = ref.shape().group();
  std::vector<double> sums(std::size_t(s.prompt), 0.0);
  for (std::int64_t p = s.prompt - observed; p < s.prompt; ++p) {
    auto const q = ref.query(who, p, layer);
    for (int g = 0; g < group; ++g) {
      std::vector<double> logits(sums.size(), -1e300);
      double top = -1e300, sum = 0;
      for (std::int64_t k = 0; k < s.prompt; ++k) {
        if (!variant::sees(p, k) || p - k >= reach) continue;
        double x = 0;
        for (int c = 0; c < d; ++c) x += double(q[std::size_t((head * group + g) * d + c)]) * double(keys[std::size_t(k * d + c)]);
        logits[std::size_t(k)] = variant::logit(x * double(ref.shape().scale()));
        top = std::max(top, logits[std::size_t(k)]);
      }
      for (double const x : logits) sum += std::exp(x - top);
      for (std::size_t k = 0; k < logits.size(); ++k) sums[k] += std::exp(logits[k] - top) / sum;
    }
  }
  return sums;
}

/// InfLLM: the mean of a block's most attended keys.
template <class Scheme, int Count, std::int64_t Reach>
struct by<Scheme, cellar::summary::representatives<Count, Reach, float>> : blocks_of_keys<Scheme> {
  std::vector<double> means;  // [block][d]
  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks), means(std::size_t(blocks * Scheme::head_dim), 0.0) {
    auto const sums = prompt_attention(ref, s, 0, 0, head, trial<Scheme>::observed, Reach);
    for (std::int64_t b = 0; b < blocks; ++b) {
      std::vector<int> order;
      for (int i = 0; i < this->tokens; ++i) order.push_back(i);
      auto const weight = [&](int i) { return sums[std::size_t(first + b * this->tokens + i)]; };
      std::stable_sort(order.begin(), order.end(), [&](int a, int c) { return weight(a) > weight(c); });
      if (Count < this->tokens) {
        double const last = weight(order[Count - 1]), next = weight(order[Count]);
        REQUIRE((last == next || last - next > 1e-5 * last));
      }
      for (int n = 0; n < std::min(Count, this->tokens); ++n)
        for (int c = 0; c < Scheme::head_dim; ++c)
          means[std::size_t(b * Scheme::head_dim + c)] += this->key(b, order[std::size_t(n)], c) / std::min(Count, this->tokens);
    }
  }
  promise operator()(float const* q, std::int64_t block) const {
    return this->sum([&](int c) {
      double const x = double(q[c]) * means[std::size_t(block * Scheme::head_dim + c)];
      return std::pair{x, std::abs(x)};
    });
  }
};

/// LRQK: factors of keys and queries by alternating least squares on the matrices themselves.
template <class Scheme, class Rank, int Iterations>
struct by<Scheme, cellar::summary::mapped<cellar::summary::joint_factors<Rank, Iterations>, cellar::summary::mean<float>>> : blocks_of_keys<Scheme> {
  static constexpr int d = Scheme::head_dim;
  using matrix = std::vector<std::vector<double>>;
  matrix key_basis, query_basis, key_products, query_products;  // what a row's coordinates are solved by

  static matrix times(matrix const& a, matrix const& b) {
    matrix c(a.size(), std::vector<double>(b[0].size(), 0.0));
    for (std::size_t i = 0; i < a.size(); ++i)
      for (std::size_t k = 0; k < b.size(); ++k)
        for (std::size_t j = 0; j < b[0].size(); ++j) c[i][j] += a[i][k] * b[k][j];
    return c;
  }
  static matrix transposed(matrix const& a) {
    matrix c(a[0].size(), std::vector<double>(a.size()));
    for (std::size_t i = 0; i < a.size(); ++i)
      for (std::size_t j = 0; j < a[0].size(); ++j) c[j][i] = a[i][j];
    return c;
  }
  static matrix plus(matrix a, matrix const& b) {
    for (std::size_t i = 0; i < a.size(); ++i)
      for (std::size_t j = 0; j < a[0].size(); ++j) a[i][j] += b[i][j];
    return a;
  }
  /// a^-1 by elimination with pivots.
  static matrix inverse(matrix a) {
    std::size_t const n = a.size();
    matrix b(n, std::vector<double>(n, 0.0));
    for (std::size_t i = 0; i < n; ++i) b[i][i] = 1;
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t pivot = i;
      for (std::size_t r = i; r < n; ++r)
        if (std::abs(a[r][i]) > std::abs(a[pivot][i])) pivot = r;
      std::swap(a[i], a[pivot]);
      std::swap(b[i], b[pivot]);
      double const p = a[i][i];
      for (std::size_t c = 0; c < n; ++c) a[i][c] /= p, b[i][c] /= p;
      for (std::size_t r = 0; r < n; ++r) {
        if (r == i) continue;
        double const f = a[r][i];
        for (std::size_t c = 0; c < n; ++c) a[r][c] -= f * a[i][c], b[r][c] -= f * b[i][c];
      }
    }
    return b;
  }

  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks) {
    static_assert(Scheme::block_tokens == 1);
    int const group = ref.shape().group();
    auto const flat = ref.head_rows(s.original_keys, s, 0, head, 0, s.prompt);
    matrix k, q;
    for (std::int64_t p = 0; p < s.prompt; ++p) k.emplace_back(flat.begin() + p * d, flat.begin() + (p + 1) * d);
    for (std::int64_t p = s.prompt - trial<Scheme>::observed; p < s.prompt; ++p) {
      auto const all = ref.query(0, p, 0);
      for (int g = 0; g < group; ++g) q.emplace_back(all.begin() + (head * group + g) * d, all.begin() + (head * group + g + 1) * d);
    }
    std::vector<double> size(d, 1.0);
    for (int c = 0; c < d; ++c) {
      double of_k = 0, of_q = 0;
      for (auto const& row : k) of_k += row[std::size_t(c)] * row[std::size_t(c)];
      for (auto const& row : q) of_q += row[std::size_t(c)] * row[std::size_t(c)];
      size[std::size_t(c)] = of_k * of_q;
    }
    std::vector<int> order;
    for (int c = 0; c < d; ++c) order.push_back(c);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return size[std::size_t(a)] > size[std::size_t(b)]; });
    order.resize(std::size_t((Rank::of(d) + 1) / 2 * 2));
    auto const some = [&](matrix const& x) {
      matrix y;
      for (auto const& row : x) {
        y.emplace_back();
        for (int const c : order) y.back().push_back(row[std::size_t(c)]);
      }
      return y;
    };
    matrix a_k = some(k), a_q = some(q);
    // A of min |X - A B|^2 + |Y X^T - A_Y A^T|^2: A (B B^T + A_Y^T A_Y) = X (B^T + Y^T A_Y)
    auto const improve = [&](matrix const& x, matrix const& a, matrix const& y, matrix const& a_y, matrix& basis, matrix& products) {
      auto const b = times(inverse(times(transposed(a), a)), times(transposed(a), x));
      basis = plus(transposed(b), times(transposed(y), a_y));
      products = inverse(plus(times(b, transposed(b)), times(transposed(a_y), a_y)));
      return times(times(x, basis), products);
    };
    for (int turn = 0; turn < Iterations; ++turn) {
      a_k = improve(k, a_k, q, a_q, key_basis, key_products);
      a_q = improve(q, a_q, k, a_k, query_basis, query_products);
    }
  }
  promise operator()(float const* q, std::int64_t block) const {
    matrix key_row(1, std::vector<double>(d)), query_row = key_row;
    for (int c = 0; c < d; ++c) {
      key_row[0][std::size_t(c)] = this->key(block, 0, c);
      query_row[0][std::size_t(c)] = double(q[c]);
    }
    auto const of_key = times(times(key_row, key_basis), key_products), of_query = times(times(query_row, query_basis), query_products);
    promise p;
    for (std::size_t i = 0; i < of_key[0].size(); ++i) {
      p.logit += of_key[0][i] * of_query[0][i];
      p.slack += std::abs(of_key[0][i] * of_query[0][i]) * 8 * this->f32_sum;  // rounded maps, and sums in them
    }
    return p;
  }
};

/// Balanced coordinates that are stored as they are: q . R_t mu, and of what is left the part in the space of the largest products of second moments, which is
/// found by the symmetric root of the keys' moments.
template <class Scheme, class Rank, class Eigensolver>
struct by<Scheme, cellar::summary::quantized_key<
                      cellar::codec::centred<cellar::codec::balanced<cellar::codec::identity<float>, Rank, Eigensolver>, cellar::codec::rotated_mean>>>
    : blocks_of_keys<Scheme> {
  static constexpr int d = Scheme::head_dim;
  std::vector<double> centers, kept;  // [block][d]

  by(reference<Scheme> const& ref, sequence_data const& s, int head, std::int64_t first, std::int64_t blocks)
      : blocks_of_keys<Scheme>(ref, s, head, first, blocks) {
    static_assert(Scheme::block_tokens == 1);
    auto const turned = [&](std::vector<double> const& x, double position) {  // half-split pairs
      std::vector<double> y(d);
      for (int i = 0; i < d / 2; ++i) {
        double const angle = position * ref.shape().rotary.inverse_frequencies[i], c = std::cos(angle), n = std::sin(angle);
        y[std::size_t(i)] = x[std::size_t(i)] * c - x[std::size_t(i + d / 2)] * n;
        y[std::size_t(i + d / 2)] = x[std::size_t(i + d / 2)] * c + x[std::size_t(i)] * n;
      }
      return y;
    };
    auto const row_of = [](auto const& x, std::int64_t r) { return std::vector<double>(x.begin() + r * d, x.begin() + (r + 1) * d); };
    auto const keys = prompt_keys(ref, s, head);
    std::vector<double> mean(d, 0.0);
    for (std::int64_t p = 0; p < s.prompt; ++p) {
      auto const back = turned(row_of(keys, p), -double(p));
      for (int c = 0; c < d; ++c) mean[std::size_t(c)] += back[std::size_t(c)] / double(s.prompt);
    }
    using matrix = std::vector<double>;
    auto const times = [](matrix const& a, matrix const& b) {
      matrix m(d * d, 0.0);
      for (std::size_t i = 0; i < d; ++i)
        for (std::size_t k = 0; k < d; ++k)
          for (std::size_t j = 0; j < d; ++j) m[i * d + j] += a[i * d + k] * b[k * d + j];
      return m;
    };
    auto const with_ridge = [](matrix m, double ridge) {
      double trace = 0;
      for (std::size_t i = 0; i < d; ++i) trace += m[i * d + i];
      for (std::size_t i = 0; i < d; ++i) m[i * d + i] += ridge * trace / d;
      return m;
    };
    auto const add = [](matrix& m, std::vector<double> const& x) {
      for (std::size_t i = 0; i < d; ++i)
        for (std::size_t j = 0; j < d; ++j) m[i * d + j] += x[i] * x[j];
    };
    matrix of_keys(d * d, 0.0), of_queries(d * d, 0.0);
    for (std::int64_t p = 0; p < s.prompt; ++p) {
      auto x = row_of(keys, p);
      auto const center = turned(mean, double(p));
      for (int c = 0; c < d; ++c) x[std::size_t(c)] -= center[std::size_t(c)];
      add(of_keys, x);
    }
    int const group = ref.shape().group();
    for (std::int64_t p = s.prompt - trial<Scheme>::observed; p < s.prompt; ++p) {
      auto const all = ref.query(0, p, 0);
      for (int g = 0; g < group; ++g) add(of_queries, row_of(all, head * group + g));
    }
    of_keys = with_ridge(of_keys, 1e-6);
    of_queries = with_ridge(of_queries, 1e-4);
    matrix copy = of_keys, vectors(d * d), root(d * d, 0.0), inverse(d * d, 0.0);
    jacobi_eigensolver{}(copy.data(), d, d, vectors.data());
    for (std::size_t v = 0; v < d; ++v) {
      double value = 0;
      for (std::size_t i = 0; i < d; ++i)
        for (std::size_t j = 0; j < d; ++j) value += vectors[v * d + i] * of_keys[i * d + j] * vectors[v * d + j];
      for (std::size_t i = 0; i < d; ++i)
        for (std::size_t j = 0; j < d; ++j) {
          root[i * d + j] += std::sqrt(value) * vectors[v * d + i] * vectors[v * d + j];
          inverse[i * d + j] += vectors[v * d + i] * vectors[v * d + j] / std::sqrt(value);
        }
    }
    auto both = times(times(root, of_queries), root);
    auto const rank = std::size_t((Rank::of(d) + 7) / 8 * 8);
    matrix leading(rank * d), space(d * d, 0.0);
    jacobi_eigensolver{}(both.data(), d, int(rank), leading.data());
    for (std::size_t v = 0; v < rank; ++v) add(space, row_of(leading, std::int64_t(v)));
    auto const part = times(times(root, space), inverse);
    for (std::int64_t b = 0; b < blocks; ++b) {
      auto const center = turned(mean, double(first + b));
      centers.insert(centers.end(), center.begin(), center.end());
      for (std::size_t i = 0; i < d; ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < d; ++j) sum += part[i * d + j] * (this->key(b, 0, int(j)) - center[j]);
        kept.push_back(sum);
      }
    }
  }
  promise operator()(float const* q, std::int64_t block) const {
    promise p;
    for (int c = 0; c < d; ++c) {
      auto const at = std::size_t(block * d + c);
      p.logit += double(q[c]) * (centers[at] + kept[at]);
      p.slack += std::abs(double(q[c])) * (std::abs(centers[at]) + std::abs(kept[at])) * 16 * this->f32_sum;  // turns, rounded maps, and sums in them
    }
    return p;
  }
};

/// Whether a selector takes that many of such scores, for rounding of at most `slack` a score.
inline bool is_count_of(cellar::select::top_k, std::vector<double> const&, std::int64_t count, std::int64_t budget, double) { return count == budget; }
/// The fewest of the highest that hold a share P of the sum of weights, and no more than the budget.
template <class P>
bool is_count_of(cellar::select::top_p<P>, std::vector<double> scores, std::int64_t count, std::int64_t budget, double slack) {
  std::sort(scores.rbegin(), scores.rend());
  double all = 0, without_last = 0;
  for (double const x : scores) all += std::exp(x - scores[0]);
  for (std::int64_t i = 0; i + 1 < count; ++i) without_last += std::exp(scores[std::size_t(i)] - scores[0]);
  double const last = std::exp(scores[std::size_t(count - 1)] - scores[0]), wanted = all * double(P::num) / double(P::den), rounding = 4 * slack * all;
  return count <= budget && without_last < wanted + rounding && (count == budget || without_last + last > wanted - rounding);
}
/// The fewest of the highest that leave shares of at most Missed to the rest, at least Least of the budget, and no more than it.
template <class Missed, class Least>
bool is_count_of(cellar::select::until_missed<Missed, Least>, std::vector<double> scores, std::int64_t count, std::int64_t budget, double slack) {
  std::sort(scores.begin(), scores.end());
  auto const needed = [&](double allowed) {
    std::size_t left = 0;
    for (double sum = 0; left < scores.size() && (sum += std::exp(scores[left])) <= allowed;) ++left;
    double const least = std::ceil(double(budget) * double(Least::num) / double(Least::den));
    return std::clamp(std::int64_t(scores.size() - left), std::int64_t(least), budget);
  };
  double const missed = double(Missed::num) / double(Missed::den), rounding = 4 * slack + 1e-6;
  return needed(missed + rounding) <= count && count <= needed(missed - rounding);
}
/// Those above the highest less Alpha, and no more than the budget.
template <class Alpha>
bool is_count_of(cellar::select::threshold<Alpha>, std::vector<double> const& scores, std::int64_t count, std::int64_t budget, double slack) {
  double const limit = *std::max_element(scores.begin(), scores.end()) - double(Alpha::num) / double(Alpha::den);
  auto const above = [&](double more) {
    return std::min<std::int64_t>(budget, std::count_if(scores.begin(), scores.end(), [&](double x) { return x > limit + more; }));
  };
  return above(2 * slack) <= count && count <= above(-2 * slack);
}

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
    t.step({0}, {new_tokens}, tolerance, !Scheme::remainder::estimates);  // the reference knows no remainder
    std::vector<float> q;                                                 // [token][head][d]
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
      std::vector<std::vector<double>> near;  // [query row], logits of what is near
      for (std::int64_t row = 0; row < new_tokens * group; ++row) {
        near.emplace_back();
        std::int64_t const asked_at = length + row / group;
        auto const add = [&](std::int64_t p) {
          if (p > asked_at) return;
          double x = 0;
          for (int c = 0; c < d; ++c)
            x += double(q[std::size_t(((row / group * shape.kv_heads + head) * group + row % group) * d + c)]) * double(ref.row(s.keys, s, 0, p, head)[c]);
          near.back().push_back(x * double(shape.scale()));
        };
        for (std::int64_t p = 0; p < sinks; ++p) add(p);
        for (auto const id : outliers)
          for (std::int64_t i = 0; i < Scheme::block_tokens; ++i) add(sinks + number(id) * Scheme::block_tokens + i);
        for (std::int64_t p = sinks + blocks * Scheme::block_tokens; p <= asked_at; ++p) add(p);
      }
      std::vector<double> scores(candidates.size(), 0.0);
      double score_slack = double(logits.size()) * slack;  // of a sum of logits; that of their mean is smaller
      constexpr bool is_mean_of_softmaxes = std::is_same_v<typename Scheme::reduce, cellar::select::mean_of_softmaxes>;
      if constexpr (is_mean_of_softmaxes || std::is_same_v<typename Scheme::reduce, cellar::select::max_of_softmaxes>) {
        std::fill(scores.begin(), scores.end(), is_mean_of_softmaxes ? 0.0 : -1e300);
        for (auto const& row : logits) {
          double const top = *std::max_element(row.begin(), row.end());
          double sum = 0;
          for (double const x : row) sum += std::exp(x - top);
          for (std::size_t b = 0; b < row.size(); ++b) {
            if constexpr (is_mean_of_softmaxes)
              scores[b] += std::exp(row[b] - top) / sum / double(logits.size());
            else
              scores[b] = std::max(scores[b], row[b] - top - std::log(sum));
          }
        }
        if constexpr (is_mean_of_softmaxes)
          for (double& x : scores) x = std::log(x);
        score_slack = 2 * slack + 1e-5;  // the logit's, the normaliser's, and the f32 logarithm of the latter
      } else if constexpr (std::is_same_v<typename Scheme::reduce, cellar::select::max_of_attention>) {
        std::fill(scores.begin(), scores.end(), -1e300);
        for (std::size_t row = 0; row < logits.size(); ++row) {
          double const top = *std::max_element(near[row].begin(), near[row].end());
          double all = 0;
          for (double const x : near[row]) all += std::exp(x - top);
          for (double const x : logits[row]) all += Scheme::block_tokens * std::exp(x - top);
          for (std::size_t b = 0; b < logits[row].size(); ++b) scores[b] = std::max(scores[b], logits[row][b] - top + std::log(Scheme::block_tokens / all));
        }
        score_slack = 2 * slack + 1e-5;
      } else {
        bool const is_mean = std::is_same_v<typename Scheme::reduce, cellar::select::mean_query>;
        for (auto const& row : logits)
          for (std::size_t b = 0; b < row.size(); ++b) scores[b] += is_mean ? row[b] / double(logits.size()) : row[b];
      }
      auto const ids = *t.cache.selected(0, head);
      REQUIRE(ids.count < std::int64_t(candidates.size()));
      REQUIRE(definitions::is_count_of(typename Scheme::select{}, scores, ids.count,
                                       std::min<std::int64_t>(budget.tokens / Scheme::block_tokens, std::int64_t(candidates.size())), score_slack));
      if constexpr (Scheme::estimates_missed) {
        auto const missed = *t.cache.missed(0, head);
        auto const decoded =
            ref.template far<typename Scheme::key_codec>(s.coded_keys, s.original_keys, s, 0, head, sinks, sinks + blocks * Scheme::block_tokens);
        REQUIRE(missed.count == new_tokens * group);
        for (std::int64_t row = 0; row < missed.count; ++row) {
          double attended = 0, rest = 0, really = 0;  // sums of weights; of what was not chosen, by its summaries and by its keys
          double const top = *std::max_element(near[std::size_t(row)].begin(), near[std::size_t(row)].end());
          for (double const x : near[std::size_t(row)]) attended += std::exp(x - top);
          for (std::size_t i = 0; i < candidates.size(); ++i) {
            double weight = 0;
            for (std::int64_t k = candidates[i] * Scheme::block_tokens; k < (candidates[i] + 1) * Scheme::block_tokens; ++k) {
              double x = 0;
              for (int c = 0; c < d; ++c)
                x += double(q[std::size_t(((row / group * shape.kv_heads + head) * group + row % group) * d + c)]) * double(decoded[std::size_t(k * d + c)]);
              weight += std::exp(x * double(shape.scale()) - top);
            }
            if (std::any_of(ids.begin(), ids.end(), [&](auto id) { return number(id) == candidates[i]; })) {
              attended += weight;
            } else {
              really += weight;
              rest += Scheme::block_tokens * std::exp(logits[std::size_t(row)][i] - top);
            }
          }
          double const margin = 2 * slack + 1e-5, share = rest / (rest + attended), true_share = really / (really + attended);
          REQUIRE(double(missed[row]) == Approx(share).margin(margin));
          if (Scheme::summary::is_upper_bound) REQUIRE(double(missed[row]) >= true_share - margin);
          if (std::is_same_v<typename Scheme::summary, cellar::summary::mean<float>>) REQUIRE(double(missed[row]) <= true_share + margin);  // by Jensen
        }
      }
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
