// expect: a sampled remainder weighs by what every query head sampled itself: it needs a selection by scores of the heads, anew in every layer and step
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::magic_pig<64> {
  using reduce = cellar::select::mean_query;
};
template class cellar::cache<mine>;
