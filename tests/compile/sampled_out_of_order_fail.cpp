// expect: what was sampled is told in the order of the selected blocks: a sampled remainder needs is_reproducible = true
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::magic_pig<64> {
  static constexpr bool is_reproducible = false;
};
template class cellar::cache<mine>;
