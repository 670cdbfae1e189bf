#pragma once
#include "cellar/codec/concept.hpp"

namespace cellar::inline CELLAR_ABI::codec {

/// Values are the first value_dim channels of their keys, as in latent attention: they are what the key codec makes of these, and take no memory.
///
/// Bytes   none
/// Source  DeepSeek-V2, arXiv:2405.04434: a token's 512 latent channels are key and value of all query heads, beside 64 rotary ones of the key
struct in_keys {
  static constexpr bool is_in_keys = true;
  static constexpr bool is_exact = true;
  static constexpr scope head_scope = scope::one_head;
  static constexpr int token_group = 1;

  CELLAR_HD constexpr row_bytes bytes(i64) const { return {}; }
};
static_assert(stored_in_keys<in_keys>);

}  // namespace cellar::codec
