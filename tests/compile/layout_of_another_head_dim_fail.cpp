// expect: the layout fixes another head_dim than the scheme
#include "cellar/cellar.hpp"

struct layout_of_128 : cellar::layout::tile_major {
  static constexpr int head_dim = 128;
};
struct mine : cellar::scheme_defaults<64> {
  using layout = layout_of_128;
};
template class cellar::cache<mine>;
