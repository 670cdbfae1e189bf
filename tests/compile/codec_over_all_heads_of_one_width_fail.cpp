// expect: (a key codec over all heads encodes rows of all of them: encode takes matrix_view<float const, D> for D = dynamic too)
#include "cellar/cellar.hpp"

struct of_one_width : cellar::codec::higgs<2, 256, 0, cellar::bf16, cellar::scope::all_heads> {
  of_one_width of_head(int head, int heads) const {
    of_one_width bound;
    bound.head = head;
    bound.heads = heads;
    return bound;
  }
  template <cellar::team Team>
  void encode(Team&, cellar::matrix_view<float const, 64>, cellar::row_parts<std::byte>) const {}
};
struct mine : cellar::scheme_defaults<64> {
  using key_codec = of_one_width;
};
template class cellar::cache<mine>;
