#pragma once
#include <type_traits>

/// f(std::integral_constant<int, D>) for head dimensions of every kind: powers of two, multiples of 8 with odd factors, the ends of the range.
template <class F>
void for_head_dims(F const& f) {
  [&]<int... D>(std::integer_sequence<int, D...>) { (f(std::integral_constant<int, D>{}), ...); }
  (std::integer_sequence<int, 8, 24, 64, 80, 96, 128, 200, 256>{});
}
