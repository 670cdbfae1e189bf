// expect: (a rule that evicts while decoding needs a scheme that keeps nothing far)
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::mean_landmark<64> {
  using outliers = cellar::select::heavy_hitters;
};
template class cellar::cache<mine>;
