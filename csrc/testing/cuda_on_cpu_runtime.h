// The counterpart of csrc/cuda/runtime.h for CUDA code that runs on the CPU: the ops register in a library of their own.
#pragma once
#include "../cuda/kernels.h"

#define SPS_LIBRARY specsample_cuda_on_cpu
#define SPS_DISPATCH_KEY CPU

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cpu";
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index(const torch::stable::Tensor&) { return 0; }

inline int processors(int32_t) { return cuda_on_cpu::settings.ahead ? INT32_MAX : 0; }

template <class Args>
void launch(void (*kernel)(Args), const torch::stable::Tensor&, int64_t teams, int64_t, const Args& args, bool = false) {
  if (teams == 0) return;
  const int crew = cuda_on_cpu::settings.threads ? cuda_on_cpu::settings.threads : kCrew, team = cuda_on_cpu::settings.team;
  cuda_on_cpu::machine.launch(dim3(static_cast<unsigned>(teams * team)), dim3(crew + kConductor), [&] { kernel(args); }, team);
}

}  // namespace SPS_NAMESPACE
