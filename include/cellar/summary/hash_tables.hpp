#pragma once
#include "cellar/core/vector.hpp"
#include "cellar/summary/around_mean.hpp"

namespace cellar::inline CELLAR_ABI::summary {

/// Tables of locality-sensitive hashes: in each of L tables a key is K signs of random projections of its difference from the mean key, and a query K signs of
/// its own. A table collides where all K agree, by chance p^K with p = 1 - angle / pi. A key is sampled where two tables or more do: by chance
/// u = 1 - (1 - p^K)^L - L p^K (1 - p^K)^(L - 1).
///
///     a tile, words of 32 bits    bit 0 of tables 0..31        of 32..63 ...     bit 1 of tables 0..31 ...      length of key - mean
///                              | t0 | t1 | ... | t31 | t0 | t1 | ... | ... | t0 | t1 | ...             | t0 | t1 | ... | t31 |
///
/// so that xor and or of K words say of 32 tables which collide. That a key or a query without direction has signs of 0 is as good as random ones.
///
/// Projections  of a row x of P = max(64, 2^ceil(log2 D)) channels, the last ones 0: H (s_j (H s_1 (H s_0 x))) of Walsh-Hadamard transforms H and random
///              s_0, s_1 of +-1 and s_j of -1, 0, 0, 1, by counters: one j for each of the K bits and each share of at most P tables, so that the bits of a
///              table are independent. Two projections of one j have the moments of independent normal ones up to the second (that is what the zeros are for).
///              Chances differ from u by less than 0.5 % of it where it was tried (D of 32 to 128, tests/summary). The signs are those of the same sums on
///              every machine: so are the scores, to the last bit
/// Score        the number of tables that collide, 0 to L
/// State        the mean, [head_dim] f32, per (layer, sequence, KV head)
/// Bytes        4 K ceil(L / 32) + 4 a key
/// Source       MagicPIG, Chen et al., arXiv:2410.16179: K of 8 to 11, L of 75 to 300. Deviations: projections are structured (published: normal), the same in
///              every layer and KV head; the mean is of the whole prompt (published: without sinks and window)
template <int K, int L, std::uint32_t Seed = 1>
struct hash_tables {
  static_assert(K >= 0 && L >= 2, "hash_tables: a key is sampled where two tables collide, so L must be at least 2, and K must not be negative");
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 32;
  static constexpr int words = int(ceil_div(L, 32));  ///< Of one bit of every table.

  around_mean center;

  CELLAR_HD constexpr float largest(i64) const { return center.largest(largest_summand); }
  CELLAR_HD i64 tile_bytes(i64) const { return i64{tile_blocks} * (K * words + 1) * 4; }
  CELLAR_HD i64 scratch_bytes(i64) const { return 0; }
  CELLAR_HD i64 prepared_bytes(i64 queries, i64) const { return queries * K * words * 4; }

  CELLAR_HD i64 state_bytes(i64 channels) const { return center.state_bytes(channels); }
  CELLAR_HD hash_tables bind(std::byte const* state) const { return {center.bind(state)}; }
  template <team Team, int D>
  CELLAR_HD void train(Team& t, matrix_view<float const, D> keys, i64 first_position, std::byte* state) const {
    center.train(t, keys, first_position, state);
  }

  template <team Team, int D>
  CELLAR_HD void build(Team& t, matrix_view<float const, D> keys, i64 blocks, std::byte* tile, int first_lane) const {
    i64 const tokens = keys.rows / blocks;
    auto* const to = reinterpret_cast<std::uint32_t*>(tile) + first_lane;
    hash_rows<D>(
        t, blocks,
        [&](i64 b, float* x) {
          for (int c = 0; c < D; ++c) {
            float s = 0;
            for (i64 r = 0; r < tokens; ++r) s += keys(b * tokens + r, c);
            x[c] = s / float(tokens) - center.mean[c];
          }
        },
        [&](i64 b, int word, std::uint32_t bits) { to[i64{word} * tile_blocks + b] = bits; },
        [&](i64 b, float length) { to[i64{K} * words * tile_blocks + b] = bit_cast<std::uint32_t>(length); });
  }

  template <team Team, int D>
  CELLAR_HD void prepare(Team& t, matrix_view<float const, D> queries, prepared_queries<std::byte, D> to) const {
    auto* const hashes = reinterpret_cast<std::uint32_t*>(to.data);  // (query, word)
    hash_rows<D>(
        t, queries.rows,
        [&](i64 h, float* x) {
          for (int c = 0; c < D; ++c) x[c] = queries(h, c);
        },
        [&](i64 h, int word, std::uint32_t bits) { hashes[h * K * words + word] = bits; }, [](i64, float) {});
  }

  template <team Team, int D>
  CELLAR_HD void score_tile(Team& t, prepared_queries<std::byte const, D> from, std::byte const* tile, matrix_view<float> scores) const {
    constexpr int at_once = std::is_same_v<Team, serial_team> && !is_device_pass ? tile_blocks : 1;  // lanes, for compilers that vectorize over them
    auto const* const codes = reinterpret_cast<std::uint32_t const*>(tile);
    for (i64 h = 0; h < from.count; ++h) {
      auto const* const query = reinterpret_cast<std::uint32_t const*>(from.data) + h * K * words;
      for (int lane = int(t.rank()) * at_once; lane < tile_blocks; lane += int(t.size()) * at_once) {
        std::uint32_t collide[at_once] = {};
        for (int w = 0; w < words; ++w) {
          std::uint32_t differ[at_once];
          for (int i = 0; i < at_once; ++i) differ[i] = ~tables_of(w);
          for (int k = 0; k < K; ++k) {
            std::uint32_t const bits = query[k * words + w];
            for (int i = 0; i < at_once; ++i) differ[i] |= codes[(k * words + w) * tile_blocks + lane + i] ^ bits;
          }
          for (int i = 0; i < at_once; ++i) collide[i] += ones_of(~differ[i]);
        }
        for (int i = 0; i < at_once; ++i) scores(h, lane + i) = float(collide[i]);
      }
    }
    t.sync();
  }

  CELLAR_HD static constexpr bool is_sampled(float collisions) { return collisions >= 2; }
  template <int D>
  CELLAR_HD sampling_row row_of(float const* query) const {
    float const length = std::sqrt(dot<D>(query, query));
    return {center.template common<D>(query), length};
  }
  CELLAR_HD float length_of(std::byte const* tile, int lane) const { return reinterpret_cast<float const*>(tile)[i64{K} * words * tile_blocks + lane]; }
  /// Without a direction on one side the angle is as good as a right one; on both, all tables collide.
  CELLAR_HD static float log_chance(sampling_row const& row, float product, float length) {
    if (!(row.length > 0) && !(length > 0)) return 0;
    float const size = row.length * length;
    return log_chance(size > 0 ? (product - row.common) / size : 0.0f);
  }
  /// The logarithm of u, given the cosine of the angle; numbers beyond +-1 are taken as that.
  ///
  /// In logarithms, and below half a collision on average as a sum of positive terms, so that nothing cancels or vanishes.
  ///
  /// Error  2^-14, and 2 K times the relative error that the cosine's rounding makes in p. A p below 2^-13 counts as that, since f32 cosines do not tell
  ///        them apart: the result is at least -18.1 K
  CELLAR_HD static float log_chance(float cosine) {
    float const c = cosine > 1 ? 1.0f : cosine > -1 ? cosine : -1.0f;
    float p = std::acos(-c) * 0.318309886f;  // 1 / pi
    p = p > 0x1p-13f ? p < 1 ? p : 1.0f : 0x1p-13f;
    float const log_all = float(K) * std::log(p), all = exponential(log_all), not_all = -std::expm1(log_all);
    if (!(not_all > 0)) return 0;
    float const log_not = all < 0.5f ? std::log1p(-all) : std::log(not_all);
    if (float(L) * all >= 0.5f) return std::log1p(-exponential(float(L - 1) * log_not) * (not_all + float(L) * all));
    float term = 1, sum = 1;  // of the chances of two, three, ... collisions, over that of two
    for (int j = 2; j < 10 && j < L; ++j) {
      term *= float(L - j) / float(j + 1) * (all / not_all);
      sum += term;
    }
    return std::log(0.5f * float(L) * float(L - 1)) + 2 * log_all + float(L - 2) * log_not + std::log(sum);
  }

 private:
  template <int D>
  static constexpr int width = [] {
    int w = 64;
    while (w < D) w *= 2;
    return w;
  }();
  template <int D>
  static constexpr int shares = int(ceil_div(words * 32, width<D>));  ///< Of the tables, for each bit.
  template <int D>
  static constexpr int words_of_share = int(ceil_div(words, shares<D>));

  CELLAR_HD static constexpr std::uint32_t tables_of(int word) { return L - word * 32 >= 32 ? ~0u : (1u << (L - word * 32)) - 1; }
  CELLAR_HD static std::uint32_t ones_of(std::uint32_t x) {
    if constexpr (is_device_pass) {
      return std::uint32_t(popcount(x));
    } else {  // that compilers vectorize
      x -= x >> 1 & 0x55555555u;
      x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
      return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
    }
  }

  /// s_0, s_1 and each s_j, [2 + K * shares][width].
  template <int D>
  CELLAR_HD static std::int8_t const* factors() {
    static constexpr auto all = [] {
      constant_array<std::int8_t, (2 + K * shares<D>)*width<D>> a;
      for (int i = 0; i < (2 + K * shares<D>)*width<D>; ++i) {
        std::uint32_t const x = random_bits(Seed, std::uint32_t(i));
        a[i] = std::int8_t(i >= 2 * width<D> && (x & 2u) ? 0 : x & 1u ? -1 : 1);
      }
      return a;
    }();
    return all.values;
  }

  /// Hashes rows, of which read(row, x) gives the channels: write(row, word, bits) for each word, write_length(row, |x|) once. Few rows are shared out by their
  /// transforms, of which the first two are then done again.
  template <int D, team Team, class Read, class Write, class WriteLength>
  CELLAR_HD void hash_rows(Team& t, i64 rows, Read const& read, Write const& write, WriteLength const& write_length) const {
    constexpr int P = width<D>, all = K * shares<D>, run = words_of_share<D>;
    int const parts = rows >= i64{t.size()} || all == 0 ? 1 : all;
    for (i64 item = t.rank(); item < rows * parts; item += t.size()) {
      i64 const row = item / parts;
      float x[P], y[P];
      read(row, x);
      float const most = largest_magnitude(t, x, D);
      std::uint32_t const exponent = bit_cast<std::uint32_t>(most) >> 23;
      // A power of two: no square overflows or vanishes, no product is rounded.
      float const unit = bit_cast<float>((exponent < 253 ? 254 - exponent : 1u) << 23);
      float squares = 0;
      for (int c = 0; c < P; ++c) {
        x[c] = c < D ? x[c] * unit : 0.0f;
        squares += x[c] * x[c];
      }
      if (item % parts == 0) write_length(row, std::sqrt(squares) / unit);
      for (int turn = 0; turn < 2; ++turn) {
        for (int c = 0; c < P; ++c) x[c] *= float(factors<D>()[turn * P + c]);
        hadamard(t, x, P);
      }
      for (int j = int(item % parts); j < all; j += parts) {
        for (int c = 0; c < P; ++c) y[c] = x[c] * float(factors<D>()[(2 + j) * P + c]);
        hadamard(t, y, P);
        int const bit = j / shares<D>, first = j % shares<D> * run;
        for (int w = first; w < first + run && w < words; ++w) {
          std::uint32_t bits = 0;
          for (int i = 0; i < 32; ++i) bits |= std::uint32_t(y[(w - first) * 32 + i] > 0) << i;
          write(row, bit * words + w, bits);
        }
      }
    }
    t.sync();
  }
};
static_assert(block_summary<hash_tables<10, 150>> && trained<hash_tables<10, 150>> && sampling_summary<hash_tables<10, 150>>);

}  // namespace cellar::summary
