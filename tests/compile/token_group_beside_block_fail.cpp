// expect: token_group must divide block_tokens
#include "cellar/cellar.hpp"

struct mine : cellar::scheme_defaults<64> {
  static constexpr int block_tokens = 8;
  using key_codec = cellar::codec::centred<cellar::codec::identity<cellar::f16>, cellar::codec::block_mean<16>>;
};
template class cellar::cache<mine>;
