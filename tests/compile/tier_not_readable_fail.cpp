// expect: (tiers that cannot be read in place are not supported yet)
#include "cellar/cellar.hpp"

struct far_away : cellar::tier::host_memory {
  using host_memory::host_memory;
  static constexpr bool is_directly_readable = false;
};
struct mine : cellar::scheme_defaults<64> {
  using tier = far_away;
};
template class cellar::cache<mine>;
