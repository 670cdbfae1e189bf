// expect: the selection reads shares of all attention
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::yakv<64> {
  using select = cellar::select::until_missed<>;
};
template class cellar::cache<mine>;
