// expect: latent attention
#include "cellar/cellar.hpp"

struct mine : cellar::scheme_defaults<576> {};
template class cellar::cache<mine>;
