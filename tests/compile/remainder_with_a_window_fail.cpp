// expect: (a remainder, and what is missed, is of all far tokens: it needs an attention without a window)
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::mean_landmark<64> {
  using attention = cellar::attention::sliding_window<4096>;
  using remainder = cellar::attention::mean_value;
};
template class cellar::cache<mine>;
