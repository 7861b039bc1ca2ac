// CUDA as a device of the ops: what csrc/arguments.h requires of each, and launches on the current stream. Never waits for the GPU.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "../library.h"
#include "capacity.h"
#include "debug.h"
#include "protocol.h"

#if !defined(SPS_DISPATCH_KEY)  // else csrc/emulator/ptx/on_cpu.h was included first
#define SPS_LIBRARY SPS_OPS
#define SPS_DISPATCH_KEY CUDA

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cuda";
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index(const torch::stable::Tensor& t) { return t.get_device_index(); }

}  // namespace SPS_NAMESPACE
#endif
#define SPS_DEVICE_SCHEMES SPS_CUDA_SCHEMES

namespace SPS_NAMESPACE {

constexpr int64_t kMaxVocab = 1 << 24;  // rows.h
inline Rows rows_at(const char* data, int64_t vocab, int64_t stride, Dtype dtype) { return Rows{data, vocab, stride, dtype}; }

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

// A kernel that takes Args: one static object per kernel, constructed before main.
template <class Args>
class Kernel {
  static_assert(sizeof(Args) <= 4096, "what every driver and architecture takes of a kernel's arguments");

 public:
  explicit Kernel(void (*kernel)(Args)) : kernel_(kernel) { Kernels::all().add(address()); }

  // Launch `teams` teams on a device's current stream. `early`: they may begin before the preceding launch has ended, as soon as all
  // its blocks allow it (let_next_begin), and then wait for it themselves (await_launch_before).
  void launch(const Args& args, int64_t teams, int64_t vocab, int32_t device, bool early = false) const {
    if (teams == 0) return;
    STD_TORCH_CHECK(teams <= INT32_MAX, "specsample: more than 2^31 - 1 rows in one call");
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream(device);
    const Capacity capacity = Kernels::all().capacity(address(), device, stream);
    const int asked = overrides().team, team = asked > 0 ? asked : capacity.team(teams, vocab);
    STD_TORCH_CHECK(team == 1 || capacity.of[team] > 0, "SPECSAMPLE_TEAM: this GPU, or this build for it, has no teams of ", team);
    early = early && capacity.teams && overrides().early != 0;
    trace_launch(teams, team, early);
    const Setting setting(teams * team, team, early, stream);
    check(cudaLaunchKernelEx(&setting.config, kernel_, args), "CUDA launch failed");
  }

 private:
  const void* address() const { return reinterpret_cast<const void*>(kernel_); }
  void (*kernel_)(Args);
};

}  // namespace SPS_NAMESPACE
