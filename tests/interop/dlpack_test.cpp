// Views of DLPack tensors: every element type, and everything that may be wrong with one.
#include "catch.hpp"

#if __has_include(<dlpack/dlpack.h>)
#include <vector>

#include "cellar/interop/dlpack.hpp"

using namespace cellar;
using namespace cellar::interop;

namespace {

/// A tensor [3, 2, 8] with rows apart, that one line of a test spoils.
template <class T>
struct tensor_of : DLTensor {
  std::vector<T> memory = std::vector<T>(100);
  std::int64_t extents[4] = {3, 2, 8, 1}, steps[4] = {20, 10, 1, 1};

  explicit tensor_of(int rank = 3) : DLTensor{} {
    data = memory.data();
    device = {kDLCPU, 0};
    ndim = rank;
    dtype = dlpack_type<T>();
    shape = extents + (3 - rank);
    strides = steps + (3 - rank);
  }
};

template <class T>
void check_type(int code, int bits) {
  tensor_of<T> x;
  x.dtype = {std::uint8_t(code), std::uint8_t(bits), 1};
  auto const heads = heads_from_dlpack<T const>(x);
  CHECK(heads.row(2, 1) == x.memory.data() + 50);
  CHECK(heads.tokens == 3);
  CHECK(heads.heads == 2);
  CHECK(heads.head_dim == 8);
  x.strides = nullptr;
  CHECK(heads_from_dlpack<T>(x).row(2, 1) == x.memory.data() + 40);
  tensor_of<T> rows(2), row(1);
  CHECK(matrix_from_dlpack<T>(rows).row(1) == rows.memory.data() + 10);
  CHECK(matrix_from_dlpack<T>(rows).columns() == 8);
  CHECK(matrix_from_dlpack<T const, 8>(rows).rows == 2);
  rows.strides = nullptr;
  CHECK(matrix_from_dlpack<T>(rows).row(1) == rows.memory.data() + 8);
  CHECK(row_from_dlpack<T>(row).count == 8);
  row.byte_offset = 3 * sizeof(T);
  CHECK(row_from_dlpack<T>(row).data == row.memory.data() + 3);

  dlpack_storage storage;
  auto const back = heads_from_dlpack<T const>(to_dlpack(heads, storage));
  CHECK(back.row(2, 1) == heads.row(2, 1));
  CHECK(back.heads == 2);
  matrix_view<T, 8> const matrix{x.memory.data(), 3, 11};
  CHECK(matrix_from_dlpack<T, 8>(to_dlpack(matrix, storage)).row(2) == matrix.row(2));
  CHECK(row_from_dlpack<T>(to_dlpack(row_view<T>{x.memory.data(), 5}, storage)).count == 5);
}

}  // namespace

TEST_CASE("DLPack tensors of every storage type are viewed, and views lent as tensors") {
  check_type<float>(kDLFloat, 32);
  check_type<f16>(kDLFloat, 16);
  check_type<bf16>(kDLBfloat, 16);
}

TEST_CASE("DLPack tensors that are no view of the type are refused") {
  auto const refused = [](char const* words, auto const& spoil) {
    tensor_of<float> x;
    spoil(x);
    CHECK_THROWS_WITH(heads_from_dlpack<float>(x), contains(words));
  };
  refused("the tensor has 2 dimensions, the view 3", [](DLTensor& x) { x.ndim = 2; });
  refused("the tensor has 4 dimensions, the view 3", [](DLTensor& x) { x.ndim = 4; });
  refused("on a device (type 2)", [](DLTensor& x) { x.device.device_type = kDLCUDA; });
  refused("float16, the view's are float32", [](DLTensor& x) { x.dtype.bits = 16; });
  refused("bfloat16, the view's are float32", [](DLTensor& x) { x.dtype = {kDLBfloat, 16, 1}; });
  refused("int32, the view's are float32", [](DLTensor& x) { x.dtype.code = kDLInt; });
  refused("uint32, the view's are float32", [](DLTensor& x) { x.dtype.code = kDLUInt; });
  refused("code 5", [](DLTensor& x) { x.dtype.code = kDLComplex; });
  refused("float32 in 4 lanes", [](DLTensor& x) { x.dtype.lanes = 4; });
  refused("shape is null", [](DLTensor& x) { x.shape = nullptr; });
  refused("extent 1 is negative", [](DLTensor& x) { x.shape[1] = -1; });
  refused("innermost", [](DLTensor& x) { x.strides[2] = 2; });
  refused("data pointer is null", [](DLTensor& x) { x.data = nullptr; });
  refused("aligned", [](DLTensor& x) { x.byte_offset = 2; });
  refused("exceed an int", [](DLTensor& x) { x.shape[1] = std::int64_t{1} << 31; });
  refused("exceed an int", [](DLTensor& x) { x.shape[2] = std::int64_t{1} << 40; });
  tensor_of<bf16> b;
  CHECK_THROWS_WITH(heads_from_dlpack<f16>(b), contains("bfloat16, the view's are float16"));
  CHECK_THROWS_WITH(row_from_dlpack<bf16>(b), contains("the tensor has 3 dimensions, the view 1"));
  tensor_of<float> rows(2);
  CHECK_THROWS_WITH((matrix_from_dlpack<float, 16>(rows)), contains("number of columns"));
}

TEST_CASE("DLPack tensors that are empty, pinned or of one channel are views") {
  tensor_of<float> x;
  x.device.device_type = kDLCUDAHost;
  CHECK(heads_from_dlpack<float>(x).data == x.memory.data());
  x.shape[0] = 0;
  x.data = nullptr;
  CHECK(heads_from_dlpack<float>(x).tokens == 0);
  tensor_of<float> one;
  one.shape[2] = 1;
  one.strides[2] = 13;
  CHECK(heads_from_dlpack<float>(one).head_dim == 1);
}
#else
TEST_CASE("DLPack tensors") { skip("dlpack/dlpack.h is not here (Debian, Ubuntu: libdlpack-dev)"); }
#endif
