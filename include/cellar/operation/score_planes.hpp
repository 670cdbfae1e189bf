#pragma once
#include "cellar/operation/score.hpp"

/// Scores of summaries that are rows of plain scalars, interleaved: products of queries and channels, for teams whose warps have 32 lanes. What the summary's
/// score_tile does is the specification.
///
///   a tile     [channel][16 blocks] of scalars      a lane takes 16 bytes: some blocks of one channel, for four query rows; neighbouring lanes read on
///   in the end lanes hold parts of the same sums, which they exchange by halves
namespace cellar::inline CELLAR_ABI::operation {

/// Whether a scheme's scores are formed so: its summary says what scalars a tile has and how many channels, against queries prepared as floats (row, channel).
template <offloading_scheme S>
inline constexpr bool scores_planes = S::select::reads_scores&& requires {
  requires std::same_as<typename S::summary::plain_tiles_of, typename S::summary>;
  typename S::summary::tile_scalar;
  requires S::summary::tile_blocks == 16;
  requires S::summary::tile_channels(S::head_dim)
  % 16 == 0;
};

template <offloading_scheme S>
inline constexpr i64 score_planes_bytes = 0;
template <offloading_scheme S>
  requires(scores_planes<S>)
inline constexpr i64 score_planes_bytes<S> = i64{4} * 4 * S::summary::tile_channels(S::head_dim);

/// Logits of up to four query rows for tiles first_tile + i, first_tile + i + warps, ..., below last_tile, by warp i.
///
/// Shapes    prepared: row r at prepared + r * tile_channels; scores: row r at scores + r * stride, for r < rows, written for whole tiles
/// Requires  shared memory of score_planes_bytes; tiles of 16-byte aligned memory
/// Effects   a body over a team
template <team Team, offloading_scheme S>
CELLAR_HD void score_planes(Team& t, sequence_view<S> const& from, int head, float const* prepared, int rows, i64 first_tile, i64 last_tile, float* scores,
                            i64 stride) {
  using scalar = typename S::summary::tile_scalar;
  constexpr int C = S::summary::tile_channels(S::head_dim), blocks = 16, each = 16 / int(sizeof(scalar)), parts = blocks / each, at_once = 32 / parts;
  static_assert(C % at_once == 0);
  float* const queries = shared_array<float>(t, i64{4} * C);  // (channel, row)
  for (int i = int(t.rank()); i < 4 * C; i += int(t.size())) queries[i] = i % 4 < rows ? prepared[i % 4 * C + i / 4] : 0.0f;
  t.sync();
  auto w = t.warp();
  int const lane = int(w.lane()), part = lane % parts, channel = lane / parts;
  for (i64 tile = first_tile + w.index(); tile < last_tile; tile += w.count()) {
    std::byte const* const at = from.tile(tile * blocks, head);
    float sums[4 * each] = {};  // (row, block)
    constexpr int ahead = 4;
    for (int base = 0; base < C; base += ahead * at_once) {
      loaded_bytes<16> some[ahead];
      for (int k = 0; k < ahead; ++k) {
        int const c = base + k * at_once + channel;
        some[k] = c < C ? load_aligned<16>(at + (c * parts + part) * 16) : loaded_bytes<16>{};
      }
      for (int k = 0; k < ahead; ++k) {
        int const c = base + k * at_once + channel;
        auto const q = load_aligned<16>(queries + (c < C ? c : 0) * 4);
        for (int b = 0; b < each; ++b) {
          float const x = scalar_of<scalar>(some[k], b);
          for (int r = 0; r < 4; ++r) sums[r * each + b] += scalar_of<float>(q, r) * x;
        }
      }
    }
    // Lanes of one part hold sums over some channels: at each distance one keeps the upper half of what both have, the other the lower.
    int value = 0;  // which sums this lane ends with
    int n = 4 * each;
    for (int distance = 16; distance >= parts; distance /= 2) {
      n /= 2;
      bool const is_upper = (lane & distance) != 0;
      for (int i = 0; i < n; ++i) {
        float const kept = is_upper ? sums[i + n] : sums[i], given = is_upper ? sums[i] : sums[i + n];
        sums[i] = kept + w.shuffle(given, unsigned(lane ^ distance));
      }
      value += is_upper ? n : 0;
    }
    int const row = value / each;
    if (row < rows)
      for (int i = 0; i < 4 * each / at_once; ++i) scores[row * stride + tile * blocks + part * each + value % each + i] = sums[i];
  }
}

}  // namespace cellar::operation
