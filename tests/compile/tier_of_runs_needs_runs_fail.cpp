// expect: (a tier that is not read in place moves runs: use a layout with is_run_contiguous)
#include "cellar/cellar.hpp"

struct far_away {
  static constexpr bool is_directly_readable = false, is_device_reachable = false;
  struct options {};
  far_away(int, cellar::block_geometry const&, cellar::i64, options const&) {}
  void store(int, cellar::physical_block, int, cellar::row_view<std::byte const>) {}
  void fetch(int, cellar::physical_block, int, cellar::row_view<std::byte>) {}
};
struct mine : cellar::scheme_defaults<64> {
  using tier = far_away;
  using layout = cellar::layout::token_major;
};
template class cellar::cache<mine>;
