// expect: (compile without -ffast-math)
#define __FAST_MATH__ 1  // as the option does
#include "cellar/cellar.hpp"
