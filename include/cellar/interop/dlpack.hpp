#pragma once
/// Opt-in: views from and to DLPack tensors, as PyTorch, JAX, NumPy and others exchange them. Needs the header dlpack/dlpack.h, nothing to link.
#if !__has_include(<dlpack/dlpack.h>)
#error "cellar: interop/dlpack.hpp needs dlpack/dlpack.h: install DLPack's header (Debian, Ubuntu: libdlpack-dev) or put it on the include path"
#endif
#include <dlpack/dlpack.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

/// Nothing is copied or owned: a view of a tensor lives as long as the tensor's memory, so release a DLManagedTensor after the last use of its view.
///
/// The memory must be the host's own (kDLCPU) or pinned by CUDA (kDLCUDAHost). Strides are element counts on both sides; none (null) means packed.
namespace cellar::inline CELLAR_ABI::interop {

/// The element type of a tensor for a storage type: f32, f16 and bf16.
template <storage_scalar T>
constexpr DLDataType dlpack_type() {
  return {std::uint8_t(std::is_same_v<T, bf16> ? kDLBfloat : kDLFloat), std::uint8_t(8 * sizeof(T)), 1};
}

namespace detail {

inline std::string name_of(DLDataType t) {
  std::string const kind = t.code == kDLFloat    ? "float"
                           : t.code == kDLBfloat ? "bfloat"
                           : t.code == kDLInt    ? "int"
                           : t.code == kDLUInt   ? "uint"
                                                 : "code " + std::to_string(t.code) + " of bits ";
  return kind + std::to_string(t.bits) + (t.lanes == 1 ? "" : " in " + std::to_string(t.lanes) + " lanes");
}

/// The tensor's first element, after every check that does not depend on the view.
template <int Rank, class T>
T* check_tensor(DLTensor const& x) {
  auto const refuse = [](std::string const& what) { cellar::detail::raise(precondition_error("from DLPack: " + what)); };
  if (x.ndim != Rank) refuse("the tensor has " + std::to_string(x.ndim) + " dimensions, the view " + std::to_string(Rank) + "; reshape it");
  if (x.device.device_type != kDLCPU && x.device.device_type != kDLCUDAHost)
    refuse("the tensor is on a device (type " + std::to_string(int(x.device.device_type)) + "), the host needs kDLCPU or kDLCUDAHost; copy it there");
  DLDataType const wanted = dlpack_type<std::remove_const_t<T>>();
  if (x.dtype.code != wanted.code || x.dtype.bits != wanted.bits || x.dtype.lanes != wanted.lanes)
    refuse("the tensor's elements are " + name_of(x.dtype) + ", the view's are " + name_of(wanted) + "; convert it, or view it as what it is");
  expects(x.shape != nullptr, "from DLPack: the shape is null");
  bool is_empty = false;
  for (int i = 0; i < Rank; ++i) {
    if (x.shape[i] < 0) refuse("extent " + std::to_string(i) + " is negative");
    is_empty |= x.shape[i] == 0;
  }
  expects(!x.strides || x.shape[Rank - 1] <= 1 || x.strides[Rank - 1] == 1,
          "from DLPack: elements of the innermost dimension are not side by side (stride 1); make the tensor contiguous, or permute its dimensions");
  if (is_empty) return nullptr;
  expects(x.data != nullptr, "from DLPack: the data pointer is null");
  auto* const first = static_cast<std::byte*>(x.data) + x.byte_offset;
  expects(reinterpret_cast<std::uintptr_t>(first) % alignof(T) == 0, "from DLPack: data and byte_offset are not aligned for the element type");
  return reinterpret_cast<T*>(first);
}

/// Shape and strides of a tensor of that rank.
inline DLTensor borrowed_tensor(void const* data, DLDataType type, int rank, std::int64_t* shape, std::int64_t* strides) {
  DLTensor x{};
  x.data = const_cast<void*>(data);
  x.device = {kDLCPU, 0};
  x.ndim = rank;
  x.dtype = type;
  x.shape = shape;
  x.strides = strides;
  return x;
}

}  // namespace detail

/// Shapes  tensor [count]
/// Errors  precondition_error for another number of dimensions, element type or device, for memory that is not contiguous, aligned or there
template <class T>
  requires storage_scalar<std::remove_const_t<T>> row_view<T> row_from_dlpack(DLTensor const& tensor) {
    T* const data = detail::check_tensor<1, T>(tensor);
    return {data, tensor.shape[0]};
  }

/// Shapes  tensor [rows, columns]; rows may lie apart
/// Errors  precondition_error as of row_from_dlpack, for rows that are not contiguous; where columns are not those of the type
template <class T, int Columns = dynamic>
  requires storage_scalar<std::remove_const_t<T>> matrix_view<T, Columns> matrix_from_dlpack(DLTensor const& tensor) {
    T* const data = detail::check_tensor<2, T>(tensor);
    i64 const columns = tensor.shape[1];
    expects(Columns == dynamic || columns == Columns, "matrix_from_dlpack: the second extent is not the view's number of columns");
    return {data, tensor.shape[0], tensor.strides ? tensor.strides[0] : columns, columns};
  }

/// Shapes  tensor [tokens, heads, head_dim]; tokens and heads may lie apart, in any order
/// Errors  precondition_error as of row_from_dlpack, for channels that are not contiguous; where heads or head_dim exceed an int
template <class T>
  requires storage_scalar<std::remove_const_t<T>> heads_view<T> heads_from_dlpack(DLTensor const& tensor) {
    T* const data = detail::check_tensor<3, T>(tensor);
    i64 const heads = tensor.shape[1], channels = tensor.shape[2];
    expects(heads <= std::numeric_limits<int>::max() && channels <= std::numeric_limits<int>::max(), "heads_from_dlpack: heads or head_dim exceed an int");
    return {
        data, tensor.shape[0], int(heads), int(channels), tensor.strides ? tensor.strides[0] : heads * channels, tensor.strides ? tensor.strides[1] : channels};
  }

/// Where a borrowed tensor's shape and strides lie; it must outlive the tensor.
struct dlpack_storage {
  std::int64_t shape[3] = {}, strides[3] = {};
};

/// A tensor that borrows a view's memory, on kDLCPU. Whoever is given a tensor of a view of const must not write to it: DLPack cannot say so.
///
/// Shapes  [count], [rows, columns], [tokens, heads, head_dim]
/// Effects writes `storage`; the tensor points into it
template <class T>
  requires storage_scalar<std::remove_const_t<T>> DLTensor to_dlpack(row_view<T> x, dlpack_storage& storage) {
    storage = {{x.count}, {1}};
    return detail::borrowed_tensor(x.data, dlpack_type<std::remove_const_t<T>>(), 1, storage.shape, storage.strides);
  }
template <class T, int Columns>
  requires storage_scalar<std::remove_const_t<T>> DLTensor to_dlpack(matrix_view<T, Columns> x, dlpack_storage& storage) {
    storage = {{x.rows, x.columns()}, {x.stride, 1}};
    return detail::borrowed_tensor(x.data, dlpack_type<std::remove_const_t<T>>(), 2, storage.shape, storage.strides);
  }
template <class T>
  requires storage_scalar<std::remove_const_t<T>> DLTensor to_dlpack(heads_view<T> x, dlpack_storage& storage) {
    storage = {{x.tokens, x.heads, x.head_dim}, {x.token_stride, x.head_stride, 1}};
    return detail::borrowed_tensor(x.data, dlpack_type<std::remove_const_t<T>>(), 3, storage.shape, storage.strides);
  }

}  // namespace cellar::interop
