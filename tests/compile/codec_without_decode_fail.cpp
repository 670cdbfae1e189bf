// expect: has_decode
#include "cellar/cellar.hpp"

struct no_decode {
  static constexpr bool is_exact = true;
  static constexpr cellar::scope head_scope = cellar::scope::one_head;
  static constexpr int token_group = 1;
  cellar::row_bytes bytes(cellar::i64 channels) const { return {channels, 0}; }
  template <cellar::team Team, int D>
  void encode(Team&, cellar::matrix_view<float const, D>, cellar::row_parts<std::byte>) const {}
};
struct mine : cellar::scheme_defaults<64> {
  using key_codec = no_decode;
};
template class cellar::cache<mine>;
