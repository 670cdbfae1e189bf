#pragma once
#include <cstddef>
#include <type_traits>

#include "cellar/core/math.hpp"

/// Non-owning views. All are trivially copyable, all strides are 64-bit element counts.
namespace cellar::inline CELLAR_ABI {

inline constexpr int dynamic = -1;

namespace detail {
/// What a view of T converts to: the same of T const. A template, since nvcc warns of a conversion to the own type even where it is constrained away.
template <class U, class T>
concept const_of = std::is_same_v<U, T const> && !std::is_const_v<T>;
}  // namespace detail

/// A contiguous run of `count` elements.
template <class T>
struct row_view {
  T* data = nullptr;
  i64 count = 0;

  CELLAR_HD T& operator[](i64 i) const { return data[i]; }
  CELLAR_HD T* begin() const { return data; }
  CELLAR_HD T* end() const { return data + count; }
  template <detail::const_of<T> U>
  CELLAR_HD operator row_view<U>() const {
    return {data, count};
  }
};

/// [rows, columns]; columns are contiguous and, unless `dynamic`, part of the type.
template <class T, int Columns = dynamic>
struct matrix_view {
  T* data = nullptr;
  i64 rows = 0;
  i64 stride = Columns == dynamic ? 0 : Columns;  ///< Elements from one row to the next.
  i64 dynamic_columns = Columns;

  CELLAR_HD i64 columns() const {
    if constexpr (Columns == dynamic)
      return dynamic_columns;
    else
      return Columns;
  }
  CELLAR_HD T* row(i64 r) const { return data + r * stride; }
  CELLAR_HD T& operator()(i64 r, i64 c) const { return data[r * stride + c]; }
  template <detail::const_of<T> U>
  CELLAR_HD operator matrix_view<U, Columns>() const {
    return {data, rows, stride, dynamic_columns};
  }
};

/// Token rows of several heads, [tokens, heads, head_dim], as engines hold queries, keys and values. The innermost is contiguous.
template <class T>
struct heads_view {
  T* data = nullptr;
  i64 tokens = 0;
  int heads = 0;
  int head_dim = 0;
  i64 token_stride = 0;  ///< Elements from one token to the next.
  i64 head_stride = 0;   ///< Elements from one head to the next.

  CELLAR_HD T* row(i64 token, int head) const { return data + token * token_stride + head * head_stride; }
  template <detail::const_of<T> U>
  CELLAR_HD operator heads_view<U>() const {
    return {data, tokens, heads, head_dim, token_stride, head_stride};
  }
};

/// Scalars that engines hold keys and values in, named at run time.
enum class scalar_type : std::uint8_t { f32, f16, bf16 };
template <storage_scalar T>
inline constexpr scalar_type type_of = std::is_same_v<T, float> ? scalar_type::f32
                                       : std::is_same_v<T, f16> ? scalar_type::f16
                                                                : scalar_type::bf16;

/// A heads_view whose scalar is a fact of run time: what reads it once is compiled once.
struct any_heads_view {
  void const* data = nullptr;
  scalar_type type = scalar_type::f32;
  i64 tokens = 0;
  int heads = 0;
  int head_dim = 0;
  i64 token_stride = 0;
  i64 head_stride = 0;

  any_heads_view() = default;
  template <class T>
    requires storage_scalar<std::remove_const_t<T>> CELLAR_HD any_heads_view(heads_view<T> const& x)
        : data(x.data),
          type(type_of<std::remove_const_t<T>>),
          tokens(x.tokens),
          heads(x.heads),
          head_dim(x.head_dim),
          token_stride(x.token_stride),
          head_stride(x.head_stride) {}

    /// The view in T, which must be its type.
    template <storage_scalar T>
    CELLAR_HD heads_view<T const> as() const {
      return {static_cast<T const*>(data), tokens, heads, head_dim, token_stride, head_stride};
    }
    /// f(the view in its type)
    template <class F>
    decltype(auto) visit(F const& f) const {
      if (type == scalar_type::f16) return f(as<f16>());
      if (type == scalar_type::bf16) return f(as<bf16>());
      return f(as<float>());
    }
};

/// True for a view of that many heads and channels whose strides are not zero where there are several rows.
template <class T>
CELLAR_HD bool is_rows_of(T const& x, int heads, int head_dim) {
  return x.data && x.tokens > 0 && x.heads == heads && x.head_dim == head_dim && (x.tokens == 1 || x.token_stride != 0) && (heads == 1 || x.head_stride != 0);
}

/// The packed view: [tokens, heads, head_dim] without gaps.
template <class T>
CELLAR_HD heads_view<T> packed_heads(T* data, i64 tokens, int heads, int head_dim) {
  return {data, tokens, heads, head_dim, i64(heads) * head_dim, head_dim};
}

}  // namespace cellar
