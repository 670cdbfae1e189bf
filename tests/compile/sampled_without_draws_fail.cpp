// expect: a sampled remainder weighs by chances: it needs a summary whose scores are draws, such as summary::hash_tables
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::exact_key<64> {
  using remainder = cellar::attention::sampled<>;
};
template class cellar::cache<mine>;
