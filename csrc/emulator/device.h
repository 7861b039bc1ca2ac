// The emulator as a device of the ops: the definitions that csrc/arguments.h requires of each. Included before csrc/cuda's sources.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "team.h"

#include "../cuda/debug.h"

#define SPS_LIBRARY specsample_cuda_on_cpu
#define SPS_DISPATCH_KEY CPU
#define SPS_DEVICE_SCHEMES SPS_CUDA_SCHEMES

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cpu";
constexpr int64_t kMaxVocab = 1 << 24;
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index(const torch::stable::Tensor&) { return 0; }
inline Rows rows_at(const char* data, int64_t vocab, int64_t stride, Dtype dtype) { return Rows{data, vocab, stride, dtype}; }
inline int processors(int32_t) { return cuda_on_cpu::settings.ahead ? INT32_MAX : 0; }

template <class Args>
class Kernel {
 public:
  explicit Kernel(void (*kernel)(Args)) : kernel_(kernel) {}
  void launch(const Args& args, int64_t teams, int64_t, int32_t, bool early = false) const {
    if (teams == 0) return;
    const cuda_on_cpu::Settings& chosen = cuda_on_cpu::settings;
    const int team = overrides().team > 0 ? overrides().team : chosen.team;
    trace_launch(teams, team, early && overrides().early != 0);
    SPS_NAMESPACE::launch(kernel_, teams, args, team, chosen.threads ? chosen.threads : kCrew);
  }

 private:
  void (*kernel_)(Args);
};

}  // namespace SPS_NAMESPACE
