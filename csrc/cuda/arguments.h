// From the ops' arguments to what the kernels take: checks for callers of torch.ops (the Python functions check first, and
// better), outputs, and launches on the current device and stream. Nothing here waits for the device.
#pragma once
#include "../tensors.h"
#include "kernels.h"
#if defined(SPS_CUDA_ON_CPU)
#include "../testing/cuda_on_cpu_runtime.h"
#else
#include "runtime.h"
#endif

namespace SPS_NAMESPACE {

// Uninitialised memory on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty_on(device_type(), device_index(like), sizes, type);
}

// Logits [rows, V], or [B, R, V] seen from request 0.
inline Rows rows_of(const Tensor& logits, const char* name) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, name, ": expected 2 or 3 dimensions, got ", dim);
  STD_TORCH_CHECK(on_device(logits), name, ": expected a tensor on ", kDeviceName);
  STD_TORCH_CHECK(logits.size(dim - 1) <= 1 || logits.stride(dim - 1) == 1, name, ": expected a contiguous last dimension");
  STD_TORCH_CHECK(logits.size(dim - 1) < (1 << 24), name, ": expected a vocabulary below 2^24");
  const ScalarType type = logits.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  ": expected float32, bfloat16 or float16");
  return Rows{static_cast<const char*>(logits.const_data_ptr()), logits.size(dim - 1),
              logits.stride(dim - 2) * static_cast<int64_t>(logits.element_size()),
              type == ScalarType::Float ? kFloat32 : type == ScalarType::BFloat16 ? kBfloat16 : kFloat16};
}

// Contiguous versions of arguments, alive until the launch (afterwards the stream's order protects their memory).
class Kept {
 public:
  const void* data(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(on_device(t), name, ": expected a tensor on ", kDeviceName);
    tensors_.push_back(compact(t));
    return tensors_.back().const_data_ptr();
  }
  PerRow per_row(int64_t number, const OptionalTensor& values, int64_t count, int64_t step, const char* name) {
    if (!values) return PerRow{number, step, nullptr};
    STD_TORCH_CHECK(values->scalar_type() == ScalarType::Long && values->numel() == count, name, ": expected int64 with ",
                    count, " values");
    return PerRow{0, 0, static_cast<const int64_t*>(data(*values, name))};
  }
  Samplings samplings(const std::vector<double>& numbers, const OptionalTensor& rows, const char* name) {
    STD_TORCH_CHECK(numbers.size() == 4, name, ": expected 4 numbers, got ", numbers.size());
    const Sampling plain{numbers[0], numbers[1], numbers[2], numbers[3]};
    if (!rows) return Samplings{plain, nullptr, 0};
    STD_TORCH_CHECK(rows->dim() == 2 && rows->size(0) == 4 && rows->scalar_type() == ScalarType::Double, name,
                    ": expected float64 [4, n]");
    return Samplings{plain, static_cast<const double*>(data(*rows, name)), rows->size(1)};
  }
  NodeInts node_ints(const OptionalTensor& values, const char* name) {
    if (!values) return NodeInts{Ints(), 0, 0};
    const ScalarType type = values->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int, name, ": expected int64 or int32");
    const bool shared = values->dim() == 1;
    return NodeInts{Ints{data(*values, name), type == ScalarType::Long}, values->numel(),
                    shared ? 0 : values->size(values->dim() - 1)};
  }

 private:
  std::vector<Tensor> tensors_;
};

}  // namespace SPS_NAMESPACE
