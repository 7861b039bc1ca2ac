// The CUDA run time as the ops use it: current device and stream, launches.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "kernels.h"

#define SPS_LIBRARY specsample
#define SPS_DISPATCH_KEY CUDA

namespace SPS_NAMESPACE {

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

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "specsample: ", what, ": ", cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr which, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device attributes");
  return value;
}
inline int processors(int32_t device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

// How a kernel is launched; see `launch`.
struct Setting {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2] = {};

  Setting(int64_t blocks, int team, bool early, cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(blocks)), config.blockDim = dim3(kBlock), config.stream = stream;
    config.attrs = attributes;
    if (team > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = static_cast<unsigned>(team), cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
    if (early) {
      cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization, overlap.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Setting(const Setting&) = delete;
};

// What the GPU and the compiled kernel allow.
struct Capacity {
  bool teams = false;         // the kernel was compiled for compute capability 9.0 or later
  int of[kMaxTeam + 1] = {};  // teams of so many blocks that run at once

  // Blocks of a team (team.h): the most for which there is room, so that no team waits for another, and for which a row is long
  // enough to give each thread something.
  int team(int64_t count, int64_t vocab) const {
    int size = kMaxTeam;
    while (size > 1 && (count > of[size] || vocab < static_cast<int64_t>(size) * kCrew * kUnit)) size /= 2;
    return size;
  }
};
template <class Args>
const Capacity& capacity_of(void (*kernel)(Args), int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, Capacity> known;  // a kernel's: this function is one for each type of arguments
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, fresh] = known.try_emplace(device);
  Capacity& capacity = found->second;
  if (fresh) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "kernel attributes");
    capacity.teams = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9 && attributes.ptxVersion >= 90;  // a kernel made from an older one's text knows blocks alone
    for (int team = 2; capacity.teams && team <= kMaxTeam; team *= 2) {
      const Setting setting(team, team, false, nullptr);
      int clusters = 0;
      if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &setting.config) != cudaSuccess) {
        cudaGetLastError();  // none of this size
        break;
      }
      capacity.of[team] = std::min(clusters, processors(device) / team);
    }
  }
  return capacity;
}

// `teams` teams of a kernel on the device of `like`, on the current stream. `early`: they may begin before the launch before has
// ended, and wait for it themselves (await_launch_before); they do so once all of that launch's blocks let them (let_next_begin).
template <class Args>
void launch(void (*kernel)(Args), const torch::stable::Tensor& like, int64_t teams, int64_t vocab, const Args& args,
            bool early = false) {
  if (teams == 0) return;
  STD_TORCH_CHECK(teams <= INT32_MAX, "specsample: more than 2^31 - 1 rows in one call");
  const int32_t device = device_index(like);
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Capacity& capacity = capacity_of(kernel, device);
  const int team = capacity.team(teams, vocab);
  const Setting setting(teams * team, team, early && capacity.teams, current_stream(device));
  check(cudaLaunchKernelEx(&setting.config, kernel, args), "CUDA launch failed");
}

}  // namespace SPS_NAMESPACE
