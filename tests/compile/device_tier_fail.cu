// expect: (a device attends to far memory in place: use a tier that is read so)
#include "cellar/cellar.cuh"

struct filed : cellar::scheme::quest<64> {
  using tier = cellar::tier::file;
};
template class cellar::cache<filed, cellar::cuda::executor>;
