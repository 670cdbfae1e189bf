// expect: up to 576 where values are channels of the keys
#include "cellar/cellar.hpp"

struct mine : cellar::scheme_defaults<576> {};
template class cellar::cache<mine>;
