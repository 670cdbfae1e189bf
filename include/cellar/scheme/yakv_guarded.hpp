#pragma once
#include "cellar/scheme/yakv_centred.hpp"
#include "cellar/select/until_missed.hpp"

namespace cellar::inline CELLAR_ABI::scheme {

/// Ours: yakv_centred that takes a quarter of its budget while that leaves at most Missed of a step's attention unread, as its landmarks tell, and more where
/// it does not, head by head; and says what it missed (cache::missed).
///
/// The landmarks' logits are weighed against the exact ones of what is near, which are formed twice.
template <int HeadDim, storage_scalar Scalar = bf16, class Missed = std::ratio<1, 20>, class Least = std::ratio<1, 4>>
struct yakv_guarded : yakv_centred<HeadDim, Scalar> {
  static constexpr bool estimates_missed = true;
  using reduce = cellar::select::max_of_attention;
  using select = cellar::select::until_missed<Missed, Least>;
};
static_assert(offloading_scheme<yakv_guarded<128>>);

}  // namespace cellar::scheme
