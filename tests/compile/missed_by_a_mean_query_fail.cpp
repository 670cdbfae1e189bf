// expect: a remainder, and what is missed, is weighed by scores
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::quest<64> {
  static constexpr bool estimates_missed = true;
  using reduce = cellar::select::mean_query;
};
template class cellar::cache<mine>;
