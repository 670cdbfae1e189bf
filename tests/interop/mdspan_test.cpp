// Views from and to mdspan-like types: a minimal one of this file, with the members that std::mdspan and the reference implementation have, and std::mdspan.
#include "cellar/interop/mdspan.hpp"

#include <numeric>
#include <vector>

#include "catch.hpp"

using namespace cellar;
using namespace cellar::interop;

namespace {

template <class Index, std::size_t... Static>
struct extents {
  static constexpr std::size_t rank = sizeof...(Static), fixed[] = {Static...};
  std::array<Index, rank> of{};

  extents() = default;
  explicit extents(std::array<Index, rank> const& e) : of(e) {}
};
inline constexpr std::size_t any = std::size_t(-1);

/// The members of an mdspan with layout_stride that are read here.
template <class T, class Extents, class Index = int, class Reference = T&>
struct span_like {
  using element_type = T;
  using reference = Reference;
  using extents_type = Extents;
  using index_type = Index;
  struct mapping_type {
    Extents extents;
    std::array<Index, Extents::rank> strides;
    mapping_type(Extents const& e, std::array<Index, Extents::rank> const& s) : extents(e), strides(s) {}
  };

  span_like(T* data, mapping_type const& m, bool has_strides = true) : data_(data), mapping_(m), has_strides_(has_strides) {}
  static constexpr std::size_t rank() { return Extents::rank; }
  static constexpr std::size_t static_extent(std::size_t i) { return Extents::fixed[i]; }
  Index extent(std::size_t i) const { return mapping_.extents.of[i]; }
  Index stride(std::size_t i) const { return mapping_.strides[i]; }
  bool is_strided() const { return has_strides_; }
  T* data_handle() const { return data_; }

 private:
  T* data_;
  mapping_type mapping_;
  bool has_strides_;
};
template <class T>
using span1 = span_like<T, extents<int, any>>;
template <class T>
using span2 = span_like<T, extents<int, any, any>>;
template <class T>
using span3 = span_like<T, extents<int, any, any, any>>;

template <class M, std::size_t Rank>
M make(typename M::element_type* data, std::array<int, Rank> e, std::array<int, Rank> s, bool has_strides = true) {
  return M(data, typename M::mapping_type(typename M::extents_type(e), s), has_strides);
}

// What does not fit is no candidate: other ranks, and accessors that compute their elements.
template <class M>
concept is_heads = requires(M const& m) {
  heads_from_mdspan(m);
};
static_assert(is_heads<span3<float>> && !is_heads<span2<float>> && !is_heads<float*>);
static_assert(!is_heads<span_like<float, extents<int, any, any, any>, int, float>>);

}  // namespace

TEST_CASE("an mdspan of heads is the same memory") {
  std::vector<float> x(200);
  std::iota(x.begin(), x.end(), 0.f);
  auto const view = heads_from_mdspan(make<span3<float>, 3>(x.data(), {4, 3, 8}, {40, 10, 1}));
  CHECK(view.tokens == 4);
  CHECK(view.heads == 3);
  CHECK(view.head_dim == 8);
  CHECK(view.row(3, 2)[7] == 3 * 40 + 2 * 10 + 7);
  // Heads outermost, as [heads, tokens, head_dim] permuted.
  CHECK(heads_from_mdspan(make<span3<float const>, 3>(x.data(), {4, 3, 8}, {8, 32, 1})).row(1, 2) == x.data() + 8 + 64);
}

TEST_CASE("an mdspan of rows is the same memory") {
  std::vector<float> x(64);
  auto const view = matrix_from_mdspan<8>(make<span2<float>, 2>(x.data(), {4, 8}, {16, 1}));
  CHECK(view.rows == 4);
  CHECK(view.columns() == 8);
  CHECK(view.row(2) == x.data() + 32);
  CHECK(matrix_from_mdspan(make<span2<float>, 2>(x.data(), {4, 8}, {16, 1})).columns() == 8);
  auto const row = row_from_mdspan(make<span1<float>, 1>(x.data(), {5}, {1}));
  CHECK(row.count == 5);
  CHECK(row.data == x.data());
  CHECK(row_from_mdspan(make<span1<float>, 1>(nullptr, {0}, {1})).count == 0);
  CHECK(row_from_mdspan(make<span1<float>, 1>(x.data(), {1}, {7})).count == 1);  // one element is contiguous
}

TEST_CASE("an mdspan that is no view is refused") {
  float x[64] = {};
  CHECK_THROWS_WITH(heads_from_mdspan(make<span3<float>, 3>(x, {2, 2, 8}, {16, 1, 2})), contains("innermost"));
  CHECK_THROWS_WITH(matrix_from_mdspan(make<span2<float>, 2>(x, {4, 8}, {1, 4})), contains("innermost"));  // column-major
  CHECK_THROWS_WITH(row_from_mdspan(make<span1<float>, 1>(x, {4}, {2})), contains("innermost"));
  CHECK_THROWS_WITH(row_from_mdspan(make<span1<float>, 1>(x, {4}, {1}, false)), contains("no strides"));
  CHECK_THROWS_WITH(row_from_mdspan(make<span1<float>, 1>(nullptr, {4}, {1})), contains("null"));
  CHECK_THROWS_WITH(matrix_from_mdspan<16>(make<span2<float>, 2>(x, {4, 8}, {8, 1})), contains("number of columns"));
  using wide = span_like<float, extents<i64, any, any, any>, i64>;
  i64 const many = i64{1} << 32;
  CHECK_THROWS_WITH(heads_from_mdspan(wide(x, {extents<i64, any, any, any>({1, many, 8}), {8, 8, 1}})), contains("exceed an int"));
  CHECK_THROWS_WITH(heads_from_mdspan(wide(x, {extents<i64, any, any, any>({1, 1, many}), {8, 8, 1}})), contains("exceed an int"));
}

TEST_CASE("views become mdspans, and come back") {
  std::vector<float> x(200);
  heads_view<float> const heads{x.data(), 4, 3, 8, 40, 10};
  auto const back = heads_from_mdspan(to_mdspan<span3<float>>(heads));
  CHECK(back.row(3, 2) == heads.row(3, 2));
  CHECK(back.tokens == 4);
  CHECK(back.heads == 3);
  CHECK(back.head_dim == 8);
  CHECK(to_mdspan<span3<float const>>(heads).data_handle() == x.data());
  auto const matrix = to_mdspan<span2<float>>(matrix_view<float, 8>{x.data(), 4, 20});
  CHECK(matrix.extent(1) == 8);
  CHECK(matrix.stride(0) == 20);
  CHECK(to_mdspan<span1<float>>(row_view<float>{x.data(), 7}).extent(0) == 7);
  using of_8 = span_like<float, extents<int, any, 8>>;
  CHECK(to_mdspan<of_8>(matrix_view<float, 8>{x.data(), 4}).extent(0) == 4);
  CHECK_THROWS_WITH((to_mdspan<of_8>(matrix_view<float, 16>{x.data(), 4})), contains("static extent"));
  CHECK_THROWS_WITH((to_mdspan<span1<float>>(row_view<float>{x.data(), i64{1} << 40})), contains("index_type"));
}

TEST_CASE("std::mdspan") {
#ifdef __cpp_lib_mdspan
  std::vector<float> x(96);
  std::mdspan<float, std::dextents<std::size_t, 3>> const packed(x.data(), 4, 3, 8);
  auto const view = heads_from_mdspan(packed);
  CHECK(view.row(3, 2) == x.data() + 3 * 24 + 16);
  auto const back = to_mdspan(view);
  CHECK(&back[3, 2, 1] == view.row(3, 2) + 1);
  CHECK(matrix_from_mdspan<8>(std::mdspan<float, std::extents<int, 12, 8>>(x.data())).rows == 12);
  CHECK_THROWS_WITH(matrix_from_mdspan(std::mdspan<float, std::extents<int, 12, 8>, std::layout_left>(x.data())), contains("innermost"));
  CHECK(to_mdspan(row_view<float>{x.data(), 7}).extent(0) == 7);
  CHECK(to_mdspan(matrix_view<float, 8>{x.data(), 4, 20}).stride(0) == 20);
#else
  skip("the standard library has no <mdspan>");
#endif
}
