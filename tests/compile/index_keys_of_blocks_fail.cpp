// expect: an index key is of a token: a summary of index keys needs block_tokens = 1
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::dsa<> {
  static constexpr int block_tokens = 4;
};
template class cellar::cache<mine>;
