// expect: a sampled remainder weighs single tokens: it needs block_tokens = 1
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::magic_pig<64> {
  static constexpr int block_tokens = 8;
};
template class cellar::cache<mine>;
