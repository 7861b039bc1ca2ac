// What a GPU allows a kernel, found at the first call on it, and how a kernel is launched.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "shape.h"

namespace SPS_NAMESPACE {

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "specsample: ", what, ": ", cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr which, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device attributes");
  return value;
}
inline int processors(int32_t device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

// How a kernel is launched; see Kernel::launch (device.h).
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
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction,
                  "specsample: the CUDA kernels have no code for this GPU, of compute capability ",
                  attribute(cudaDevAttrComputeCapabilityMajor, device), ".", attribute(cudaDevAttrComputeCapabilityMinor, device),
                  ": specsample.build_info() says for which they were compiled; backend='triton' compiles for this one");
  check(error, "kernel attributes");
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

}  // namespace SPS_NAMESPACE
