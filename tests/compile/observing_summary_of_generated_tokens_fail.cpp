// expect: (the summary is built from the attention of a prompt's queries, so generated tokens have none)
#include "cellar/cellar.hpp"

struct mine : cellar::scheme::inf_llm<64> {
  static constexpr bool keeps_generated = false;
};
template class cellar::cache<mine>;
