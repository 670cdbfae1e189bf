// expect: (use nvcc 13 or newer)
#define __CUDACC_VER_MAJOR__ 12  // as that compiler does
#include "cellar/cellar.hpp"
