// expect: (two levels need a reduction of each block's own logits)
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::paris_kv<64> {
  using reduce = cellar::select::max_of_softmaxes;
};
template class cellar::cache<mine>;
