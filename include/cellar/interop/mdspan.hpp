#pragma once
/// Opt-in: views from and to std::mdspan (C++23), and any type like it, such as Kokkos::mdspan, the reference implementation.
///
///     [tokens, heads, head_dim]   rank 3   heads_view
///     [rows, columns]             rank 2   matrix_view
///     [count]                     rank 1   row_view
///
/// Nothing is copied: both sides name the same memory, which must outlive them. Strides are element counts on both sides.
#include <array>
#include <concepts>
#include <cstddef>
#include <limits>
#include <type_traits>
#if __has_include(<version>)
#include <version>
#endif
#ifdef __cpp_lib_mdspan
#include <mdspan>
#endif

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

namespace cellar::inline CELLAR_ABI::interop {

/// What is read of an mdspan: plain elements behind a pointer. An accessor that computes its elements is refused here.
template <class M>
concept mdspan_like = requires(M const& m, std::size_t i) {
  typename M::element_type;
  requires std::same_as<typename M::reference, typename M::element_type&>;
  { M::rank() } -> std::convertible_to<std::size_t>;
  { m.extent(i) } -> std::convertible_to<i64>;
  { m.stride(i) } -> std::convertible_to<i64>;
  { m.is_strided() } -> std::convertible_to<bool>;
  { m.data_handle() } -> std::convertible_to<typename M::element_type*>;
};
template <class M, std::size_t Rank>
concept mdspan_of_rank = mdspan_like<M> &&(M::rank() == Rank);

/// An mdspan-like type that can be made of a pointer, extents and strides: its layout is layout_stride.
template <class M, std::size_t Rank>
concept strided_mdspan = mdspan_of_rank<M, Rank> &&
    requires(typename M::element_type* data, typename M::extents_type extents, std::array<typename M::index_type, Rank> numbers) {
  requires std::constructible_from<typename M::extents_type, std::array<typename M::index_type, Rank>>;
  M(data, typename M::mapping_type(extents, numbers));
};

namespace detail {

template <std::size_t Rank, class M>
void check_mdspan(M const& m) {
  expects(m.is_strided(), "from mdspan: the layout has no strides; copy to one that has (layout_right, layout_stride)");
  expects(m.extent(Rank - 1) <= 1 || m.stride(Rank - 1) == 1,
          "from mdspan: elements of the innermost dimension are not side by side (stride 1); use layout_right, or permute the dimensions");
  bool is_empty = false;
  for (std::size_t i = 0; i < Rank; ++i) is_empty |= m.extent(i) == 0;
  expects(is_empty || static_cast<typename M::element_type*>(m.data_handle()) != nullptr, "from mdspan: the data handle is null");
}

inline bool fits_int(i64 n) { return n <= std::numeric_limits<int>::max(); }

template <class M, std::size_t Rank>
M make_mdspan(typename M::element_type* data, std::array<i64, Rank> const& extents, std::array<i64, Rank> const& strides) {
  using index = typename M::index_type;
  std::array<index, Rank> e{}, s{};
  for (std::size_t i = 0; i < Rank; ++i) {
    e[i] = index(extents[i]);
    s[i] = index(strides[i]);
    expects(i64(e[i]) == extents[i] && i64(s[i]) == strides[i], "to_mdspan: an extent or stride does not fit the index_type; use a wider one");
    if constexpr (requires { M::static_extent(i); })
      expects(M::static_extent(i) == std::size_t(-1) || i64(M::static_extent(i)) == extents[i], "to_mdspan: a static extent is not the view's");
  }
  return M(data, typename M::mapping_type(typename M::extents_type(e), s));
}

}  // namespace detail

/// Shapes  m [count]
/// Errors  precondition_error where m has no strides, is not contiguous, or has elements but no memory
template <mdspan_of_rank<1> M>
row_view<typename M::element_type> row_from_mdspan(M const& m) {
  detail::check_mdspan<1>(m);
  return {m.data_handle(), i64(m.extent(0))};
}

/// Shapes  m [rows, columns]; rows may lie apart
/// Errors  precondition_error as of row_from_mdspan, for rows that are not contiguous; where columns are not those of the type
template <int Columns = dynamic, mdspan_of_rank<2> M>
matrix_view<typename M::element_type, Columns> matrix_from_mdspan(M const& m) {
  detail::check_mdspan<2>(m);
  expects(Columns == dynamic || i64(m.extent(1)) == Columns, "matrix_from_mdspan: the second extent is not the view's number of columns");
  return {m.data_handle(), i64(m.extent(0)), i64(m.stride(0)), i64(m.extent(1))};
}

/// Shapes  m [tokens, heads, head_dim]; tokens and heads may lie apart, in any order
/// Errors  precondition_error as of row_from_mdspan, for channels that are not contiguous; where heads or head_dim exceed an int
template <mdspan_of_rank<3> M>
heads_view<typename M::element_type> heads_from_mdspan(M const& m) {
  detail::check_mdspan<3>(m);
  expects(detail::fits_int(i64(m.extent(1))) && detail::fits_int(i64(m.extent(2))), "heads_from_mdspan: heads or head_dim exceed an int");
  return {m.data_handle(), i64(m.extent(0)), int(m.extent(1)), int(m.extent(2)), i64(m.stride(0)), i64(m.stride(1))};
}

/// A view as an mdspan M, whose element type is the view's or its const.
///
/// Shapes  [count], [rows, columns], [tokens, heads, head_dim]
/// Errors  precondition_error where M's index_type or static extents do not fit the view
template <strided_mdspan<1> M, class T>
M to_mdspan(row_view<T> x) {
  return detail::make_mdspan<M, 1>(x.data, {x.count}, {1});
}
template <strided_mdspan<2> M, class T, int Columns>
M to_mdspan(matrix_view<T, Columns> x) {
  return detail::make_mdspan<M, 2>(x.data, {x.rows, x.columns()}, {x.stride, 1});
}
template <strided_mdspan<3> M, class T>
M to_mdspan(heads_view<T> x) {
  return detail::make_mdspan<M, 3>(x.data, {x.tokens, x.heads, x.head_dim}, {x.token_stride, x.head_stride, 1});
}

#ifdef __cpp_lib_mdspan
/// A view as a std::mdspan with its strides.
template <class T>
auto to_mdspan(row_view<T> x) {
  return to_mdspan<std::mdspan<T, std::dextents<i64, 1>, std::layout_stride>>(x);
}
template <class T, int Columns>
auto to_mdspan(matrix_view<T, Columns> x) {
  return to_mdspan<std::mdspan<T, std::dextents<i64, 2>, std::layout_stride>>(x);
}
template <class T>
auto to_mdspan(heads_view<T> x) {
  return to_mdspan<std::mdspan<T, std::dextents<i64, 3>, std::layout_stride>>(x);
}
#endif

}  // namespace cellar::interop
