// expect: (a remainder by class needs a summary that sorts blocks into classes, such as quantized_key of cluster_codes)
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::mean_landmark<64> {
  using remainder = cellar::attention::mean_value_by_class;
};
template class cellar::cache<mine>;
