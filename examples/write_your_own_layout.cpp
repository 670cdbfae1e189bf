// A layout of one's own: the pages of an engine that holds keys and values side by side in one tensor, [block, token, head, key | value].
#include <algorithm>
#include <cstdio>
#include <vector>

#include "problem.hpp"

/// All planes of a token and head lie side by side: key, value, then their scales, if the codecs have any.
class interleaved {
 public:
  using block_id = cellar::physical_block;
  static constexpr bool is_run_contiguous = false;  // a head's rows of a block have other heads' between them

  interleaved() = default;
  /// Errors  precondition_error for codecs whose rows are not those of one token and one head
  interleaved(cellar::block_geometry const& g, cellar::i64 blocks) : geometry_(g), blocks_(blocks) {
    for (int p = 0; p < cellar::plane_count; ++p) {
      cellar::expects(g.rows[p] == g.rows[0], "interleaved: keys and values must have a row for each token; choose codecs whose token_group is 1");
      cellar::expects(!g.is_shared[p], "interleaved: rows over all heads have no place in it; choose codecs of one head");
      record_ += g.row_bytes[p];
    }
  }
  cellar::i64 bytes() const { return blocks_ * geometry_.block_bytes(); }
  cellar::i64 row_stride(cellar::plane) const { return geometry_.heads * record_; }
  cellar::i64 offset(cellar::plane p, cellar::physical_block block, int head, cellar::i64 row) const {
    cellar::i64 at = ((number(block) * geometry_.rows[0] + row) * geometry_.heads + head) * record_;
    for (int before = 0; before < int(p); ++before) at += geometry_.row_bytes[before];
    return at;
  }

 private:
  cellar::block_geometry geometry_;
  cellar::i64 blocks_ = 0, record_ = 0;  // bytes of a token and head
};
static_assert(cellar::physical_layout<interleaved>);

struct in_one_tensor : cellar::scheme_defaults<64> {
  static constexpr cellar::budget published{.window = 64};
  using layout = interleaved;
  using value_codec = cellar::codec::int8<>;  // with scales, so that all four planes have bytes
};

/// The laws of a layout: rows do not overlap, and fill bytes() exactly.
bool holds_every_byte_once(cellar::block_geometry const& g, cellar::i64 blocks) {
  interleaved const layout{g, blocks};
  std::vector<cellar::i64> used;
  for (int p = 0; p < cellar::plane_count; ++p)
    for (cellar::i64 block = 0; block < blocks; ++block)
      for (int head = 0; head < g.heads; ++head)
        for (cellar::i64 row = 0; row < g.rows[p]; ++row) {
          cellar::i64 const at = layout.offset(cellar::plane(p), cellar::physical_block(block), head, row);
          for (cellar::i64 i = 0; i < g.row_bytes[p]; ++i) used.push_back(at + i);
        }
  std::sort(used.begin(), used.end());
  for (cellar::i64 byte = 0; byte < layout.bytes(); ++byte)
    if (byte >= cellar::i64(used.size()) || used[std::size_t(byte)] != byte) return false;
  return cellar::i64(used.size()) == layout.bytes();
}

int main() {
  problem const p = random_problem(2);
  bool const is_lawful = holds_every_byte_once(cellar::memory_map<in_one_tensor>{p.shape}.geometry(), 5);
  double const error = relative_error(decode<in_one_tensor>(p), exact(p));
  std::printf("every byte once: %s\nrelative error %.4f\n", is_lawful ? "yes" : "no", error);
  return is_lawful && error < 0.02 ? 0 : 1;
}
