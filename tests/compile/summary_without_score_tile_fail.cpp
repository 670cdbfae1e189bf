// expect: (the summary lacks score_tile|has_score_tile)
#include "cellar/cellar.hpp"

struct no_score_tile {
  static constexpr bool is_upper_bound = false;
  static constexpr int tile_blocks = 16;
  cellar::i64 tile_bytes(cellar::i64) const { return 0; }
  cellar::i64 scratch_bytes(cellar::i64) const { return 0; }
  cellar::i64 prepared_bytes(cellar::i64, cellar::i64) const { return 0; }
  template <cellar::team Team, int D>
  void build(Team&, cellar::matrix_view<float const, D>, cellar::i64, std::byte*, int) const {}
  template <cellar::team Team, int D>
  void prepare(Team&, cellar::matrix_view<float const, D>, cellar::prepared_queries<std::byte, D>) const {}
};
struct mine : cellar::scheme_defaults<64> {
  using summary = no_score_tile;
};
template class cellar::cache<mine>;
