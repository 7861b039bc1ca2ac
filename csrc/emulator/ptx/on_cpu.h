// Included before csrc/cuda when its host code is built for the stand-in: CPU tensors count as the device's. The rest of that code
// is the shipped one.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "../../common.h"

#define SPS_LIBRARY specsample_ptx
#define SPS_DISPATCH_KEY CPU

extern "C" int specsample_ptx_current_device();

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cpu";
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index(const torch::stable::Tensor&) { return specsample_ptx_current_device(); }

}  // namespace SPS_NAMESPACE
