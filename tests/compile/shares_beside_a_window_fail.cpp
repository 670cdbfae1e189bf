// expect: a reduction that weighs far blocks against what is near needs a plain causal attention
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::yakv_guarded<64> {
  static constexpr bool estimates_missed = false;
  using attention = cellar::attention::sliding_window<100>;
};
template class cellar::cache<mine>;
