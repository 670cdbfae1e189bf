// expect: scores that are draws say nothing of what was missed
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::magic_pig<64> {
  static constexpr bool estimates_missed = true;
};
template class cellar::cache<mine>;
