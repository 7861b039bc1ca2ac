// The CUDA run time as the ops use it: current device and stream, launches.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "kernels.h"

#define SPS_LIBRARY specsample
#define SPS_DISPATCH_KEY CUDA

namespace specsample {

constexpr const char* kDeviceName = "cuda";
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index(const torch::stable::Tensor& t) { return t.get_device_index(); }

// The symbol lives in libtorch_cuda, which a CPU build of torch lacks, so it is looked up at first use.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    const char* name = "aoti_torch_get_current_cuda_stream";
    void* found = dlsym(RTLD_DEFAULT, name);
    if (!found)
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) found = dlsym(library, name);
    return reinterpret_cast<Getter>(found);
  }();
  STD_TORCH_CHECK(getter != nullptr, "specsample: this torch was built without CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "specsample: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

// `blocks` blocks of a kernel on the device of `like`, on the current stream.
template <class Args>
void launch(void (*kernel)(Args), const torch::stable::Tensor& like, int64_t blocks, const Args& args) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "specsample: more than 2^31 - 1 rows in one call");
  const int32_t device = device_index(like);
  const torch::stable::accelerator::DeviceGuard guard(device);
  kernel<<<static_cast<unsigned>(blocks), kBlock, 0, current_stream(device)>>>(args);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "specsample: CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace specsample
