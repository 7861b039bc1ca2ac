// Converts the ops' arguments to what kernels take, for every device, with checks for callers of torch.ops (the Python functions check
// first, and more helpfully), through the stable ABI. Include a device's header first, with its Rows, names and limits: csrc/cpu/device.h.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <string>
#include <vector>

#include "call.h"

namespace SPS_NAMESPACE {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Numbers = std::vector<double>;

// Uninitialised memory on the device of `like`. Uses the C shim, because torch::stable::new_empty looks up its operator by name in
// every call.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  std::vector<int64_t> size(sizes), stride(sizes);
  int64_t step = 1;
  for (size_t i = size.size(); i-- > 0; step *= size[i]) stride[i] = step;
  const int32_t dtype = type == ScalarType::Long  ? aoti_torch_dtype_int64()
                        : type == ScalarType::Int ? aoti_torch_dtype_int32()
                                                  : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(), dtype,
                                                  device_type(), device_index(like), &handle));
  return Tensor(handle);
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The index of a name in a table of schemes or kinds.
template <class Entry, size_t n>
int place_of(const Entry (&table)[n], const std::string& name, const char* argument) {
  for (size_t i = 0; i < n; ++i)
    if (name == table[i].name) return static_cast<int>(i);
  STD_TORCH_CHECK(false, argument, ": the ", kDeviceName, " backend has no ", name);
  return -1;
}

// Logits [rows, V], or [B, R, V] seen from request 0.
inline Rows rows_of(const Tensor& logits, int64_t dim, const char* name) {
  STD_TORCH_CHECK(logits.dim() == dim, name, ": expected ", dim == 2 ? "[rows, V]" : "[B, R, V]", ", got ", logits.dim(),
                  " dimensions");
  STD_TORCH_CHECK(on_device(logits), name, ": expected a tensor on ", kDeviceName);
  const int64_t vocab = logits.size(dim - 1);
  STD_TORCH_CHECK(vocab <= 1 || logits.stride(dim - 1) == 1, name, ": expected a contiguous last dimension");
  STD_TORCH_CHECK(vocab < kMaxVocab, name, ": expected a vocabulary below ", kMaxVocab, ", got ", vocab);
  const ScalarType type = logits.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  ": expected float32, bfloat16 or float16");
  return rows_at(static_cast<const char*>(logits.const_data_ptr()), vocab,
                 logits.stride(dim - 2) * static_cast<int64_t>(logits.element_size()),
                 type == ScalarType::Float      ? kFloat32
                 : type == ScalarType::BFloat16 ? kBfloat16
                                                : kFloat16);
}

// Contiguous versions of arguments, kept alive until the op returns (on a GPU, stream order protects their memory afterwards).
class Kept {
 public:
  template <class T>
  const T* data(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(on_device(t), name, ": expected a tensor on ", kDeviceName);
    tensors_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return static_cast<const T*>(tensors_.back().const_data_ptr());
  }
  PerRow per_row(int64_t number, const OptionalTensor& values, int64_t count, int64_t step, const char* name) {
    if (!values) return PerRow{number, step, nullptr};
    STD_TORCH_CHECK(values->scalar_type() == ScalarType::Long && values->numel() == count, name, ": expected int64 with ", count,
                    " values");
    return PerRow{0, 0, data<int64_t>(*values, name)};
  }
  // Four numbers, or float64 [4, n] for n rows, n being `count` or `other`.
  Samplings samplings(const Numbers& numbers, const OptionalTensor& rows, int64_t count, int64_t other, const char* name) {
    STD_TORCH_CHECK(numbers.size() == 4, name, ": expected 4 numbers, got ", numbers.size());
    const Sampling plain{numbers[0], numbers[1], numbers[2], numbers[3]};
    if (!rows) return Samplings{plain, nullptr, 0};
    const std::string n = std::to_string(count) + (other == count ? "" : " or " + std::to_string(other));
    STD_TORCH_CHECK(rows->dim() == 2 && rows->size(0) == 4 && rows->scalar_type() == ScalarType::Double &&
                        (rows->size(1) == count || rows->size(1) == other),
                    name, ": expected float64 [4, ", n, "]");
    return Samplings{plain, data<double>(*rows, name), rows->size(1)};
  }
  // At least `count` values, in one list for all requests or, if `batch` >= 0, one per request.
  NodeInts node_ints(const OptionalTensor& values, int64_t count, int64_t batch, const char* name) {
    if (!values) return NodeInts{Ints(), 0, 0};
    const ScalarType type = values->scalar_type();
    const int64_t dim = values->dim();
    STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int, name, ": expected int64 or int32");
    STD_TORCH_CHECK((dim == 1 || (dim == 2 && values->size(0) == batch)) && values->size(dim - 1) >= count, name, ": expected ",
                    count, " values, for all requests or for each");
    return NodeInts{Ints{data<void>(*values, name), type == ScalarType::Long}, values->numel(), dim == 1 ? 0 : values->size(1)};
  }

 private:
  std::vector<Tensor> tensors_;
};

}  // namespace SPS_NAMESPACE
