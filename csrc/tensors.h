// What the ops of every device do with tensors, through the stable ABI.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "common.h"

namespace SPS_NAMESPACE {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Tensor compact(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Uninitialised memory. Through the C shim: torch::stable::new_empty looks its operator up by name at every call.
inline Tensor empty_on(int32_t device_type, int32_t device_index, std::initializer_list<int64_t> sizes, ScalarType type) {
  std::vector<int64_t> size(sizes), stride(sizes);
  int64_t step = 1;
  for (size_t i = size.size(); i-- > 0; step *= size[i]) stride[i] = step;
  const int32_t dtype = type == ScalarType::Long  ? aoti_torch_dtype_int64()
                        : type == ScalarType::Int ? aoti_torch_dtype_int32()
                                                  : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(), dtype,
                                                         device_type, device_index, &handle));
  return Tensor(handle);
}

// The entry of that name in a device's table of schemes or kinds.
template <class Entry, size_t n>
const Entry& entry_of(const Entry (&table)[n], const std::string& name, const char* argument, const char* device) {
  for (const Entry& entry : table)
    if (name == entry.name) return entry;
  STD_TORCH_CHECK(false, argument, ": the ", device, " backend has no ", name);
  return table[0];
}

}  // namespace SPS_NAMESPACE
