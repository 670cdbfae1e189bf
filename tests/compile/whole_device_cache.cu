// One unit may hold a cache's code for all others, on a device as on the host: no member needs what the executor lacks.
#include "cellar/cellar.cuh"

template class cellar::cache<cellar::scheme::quest<64>, cellar::cuda::executor>;
template class cellar::cache<cellar::scheme::yakv<64>, cellar::cuda::executor>;
