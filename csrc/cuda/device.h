// CUDA as a device of the ops: what csrc/arguments.h asks of each, and launches on the current stream. Nothing here waits for the GPU.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "debug.h"
#include "rows.h"

#define SPS_LIBRARY specsample
#define SPS_DISPATCH_KEY CUDA
#define SPS_DEVICE_SCHEMES SPS_CUDA_SCHEMES

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cuda";
constexpr int64_t kMaxVocab = 1 << 24;  // rows.h
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index(const torch::stable::Tensor& t) { return t.get_device_index(); }
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
inline Capacity find_capacity(const void* kernel, int32_t device) {
  Capacity capacity;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "kernel attributes");
  // A kernel made from the text of an older architecture knows blocks alone.
  capacity.teams = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9 && attributes.ptxVersion >= 90;
  for (int team = 2; capacity.teams && team <= kMaxTeam; team *= 2) {
    const Setting setting(team, team, false, nullptr);
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &setting.config) != cudaSuccess) {
      cudaGetLastError();  // none of this size
      break;
    }
    capacity.of[team] = std::min(clusters, processors(device) / team);
  }
  return capacity;
}

// All kernels of the extension, each with what it was found to be allowed on a device. The first call on a device asks for all of
// them, which loads them: a stream that is being captured into a graph may come to any of them first, and must not load it.
class Kernels {
 public:
  static Kernels& all() {
    static Kernels kernels;
    return kernels;
  }
  void add(const void* kernel) { kernels_.push_back(kernel); }  // before main
  Capacity capacity(const void* kernel, int32_t device, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(device);
    if (found != known_.end()) return found->second.at(kernel);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capture), "stream capture");
    STD_TORCH_CHECK(capture == cudaStreamCaptureStatusNone,
                    "specsample: the first call on a device cannot be captured into a CUDA graph, since it loads the kernels; call "
                    "any function on this device once before");
    std::map<const void*, Capacity> capacities;  // known only once all of it is: what throws here is tried again
    for (const void* each : kernels_) capacities[each] = find_capacity(each, device);
    return known_.emplace(device, std::move(capacities)).first->second.at(kernel);
  }

 private:
  std::mutex mutex_;
  std::vector<const void*> kernels_;
  std::map<int32_t, std::map<const void*, Capacity>> known_;
};

// A kernel that takes Args: one object for each, made before main.
template <class Args>
class Kernel {
 public:
  explicit Kernel(void (*kernel)(Args)) : kernel_(kernel) { Kernels::all().add(address()); }

  // `teams` teams on a device, on its current stream. `early`: they may begin before the launch before has ended, and wait for it
  // themselves (await_launch_before); they do so once all of that launch's blocks let them (let_next_begin).
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
