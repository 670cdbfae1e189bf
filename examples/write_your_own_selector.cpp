// A selector and a reduction of one's own: the blocks of highest score and their neighbours, by what the best query head of the group says.
#include <cstdio>

#include "problem.hpp"

/// A third of the budget goes to the blocks of highest score, the rest to the blocks beside them: what belongs together may lie across a border.
struct top_with_neighbours {
  static constexpr bool reads_scores = true;
  static constexpr cellar::i64 shared_bytes = cellar::select::top_k::shared_bytes + 16;  // and the count

  cellar::i64 k = 0;

  CELLAR_HD top_with_neighbours with_budget(cellar::i64 blocks) const { return {blocks > 0 ? blocks : 0}; }
  CELLAR_HD cellar::i64 max_selected(cellar::i64 blocks) const { return k < blocks ? k : blocks; }

  template <cellar::team Team>
  CELLAR_HD cellar::i64 operator()(Team& t, cellar::row_view<float const> scores, cellar::row_view<cellar::logical_block> ids) const {
    if (k < 3 || k >= scores.count) return cellar::select::top_k{k}(t, scores, ids);
    auto* const count = cellar::shared_array<cellar::i64>(t, 1);
    cellar::i64 const best = cellar::select::top_k{k / 3}(t, scores, ids), first = k - best;
    if (t.rank() == 0) {
      for (cellar::i64 i = best; i-- > 0;) ids[first + i] = ids[i];  // to the end: from there, writing never overtakes reading
      cellar::i64 n = 0;
      for (cellar::i64 i = first; i < k; ++i) {
        cellar::i64 const b = number(ids[i]);
        for (cellar::i64 id = b > 0 ? b - 1 : 0; id <= b + 1 && id < scores.count; ++id)
          if (n == 0 || id > number(ids[n - 1])) ids[n++] = cellar::logical_block(id);
      }
      *count = n;
    }
    t.sync();
    return *count;
  }
};
static_assert(cellar::block_selector<top_with_neighbours>);

/// score = the largest logit of the group's rows.
struct max_of_logits {
  static constexpr bool acts_on_queries = false;

  template <cellar::team Team>
  CELLAR_HD void operator()(Team& t, cellar::matrix_view<float const> rows, cellar::row_view<float> out) const {
    for (cellar::i64 b = t.rank(); b < out.count; b += t.size()) {
      out[b] = rows(0, b);
      for (cellar::i64 h = 1; h < rows.rows; ++h) out[b] = cellar::maximum{}(out[b], rows(h, b));
    }
    t.sync();
  }
};
static_assert(cellar::group_reduction<max_of_logits>);

template <class Select>
struct selecting_by : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 8;
  static constexpr cellar::budget published{.tokens = 9 * 8, .window = 16};  // nine blocks
  using summary = cellar::summary::mean<>;
  using reduce = max_of_logits;
  using select = Select;
};

int main() {
  // Three facts of ten tokens each: a block and the tokens next to it. Their blocks' other tokens point away, so that the mean hides them.
  problem p = random_problem(1);
  float u[64];
  for (int c = 0; c < 64; ++c) u[c] = p.queries[std::size_t(c)] > 0 ? 1.f : -1.f;
  auto const plant = [&](cellar::i64 token, float size) {
    for (int c = 0; c < 128; ++c) p.keys[std::size_t(token * 128 + c)] = size * u[c % 64] + 0.1f * p.keys[std::size_t(token * 128 + c)];
  };
  for (cellar::i64 i = 0; i < p.prompt + p.steps; ++i) plant(i, i % 160 < 16 ? 0.25f : 0);  // twelve blocks that look likely
  for (cellar::i64 const block : {25, 51, 87})
    for (cellar::i64 i = -8; i < 16; ++i) plant(block * 8 + i, i >= -1 && i <= 8 ? 0.8f : -0.2f);
  for (std::size_t i = 0; i < p.queries.size(); ++i) p.queries[i] = 1.5f * u[i % 64] + 0.2f * p.queries[i];
  auto const expected = exact(p);
  double const plain = relative_error(decode<selecting_by<cellar::select::top_k>>(p), expected);
  double const mine = relative_error(decode<selecting_by<top_with_neighbours>>(p), expected);
  std::printf("relative error: select::top_k %.4f, top_with_neighbours %.4f\n", plain, mine);
  return mine < 0.05 && mine < plain / 4 ? 0 : 1;
}
