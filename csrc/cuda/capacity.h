// What a GPU allows a kernel, determined at the first call on that device, and how a kernel is launched.
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
  int of[kMaxTeam + 1] = {};  // by size: how many teams of so many blocks can run at once

  // Blocks per team (team.h): the most for which all teams run at once, so that none waits for another, and for which a row is
  // long enough to give each thread work.
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
  // A kernel compiled from the PTX of an older architecture cannot use clusters.
  capacity.teams = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9 && attributes.ptxVersion >= 90;
  for (int team = 2; capacity.teams && team <= kMaxTeam; team *= 2) {
    const Setting setting(team, team, false, nullptr);
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &setting.config) != cudaSuccess) {
      cudaGetLastError();  // clears the error: no clusters of this size
      break;
    }
    capacity.of[team] = std::min(clusters, processors(device) / team);
  }
  return capacity;
}

// All kernels of the extension, with each kernel's capacity on each device. The first call on a device queries all of them, which
// loads them: a stream that is being captured into a graph may then use any of them, and must not load one.
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
    std::map<const void*, Capacity> capacities;  // stored only once complete, so that a failure here is retried
    for (const void* each : kernels_) capacities[each] = find_capacity(each, device);
    return known_.emplace(device, std::move(capacities)).first->second.at(kernel);
  }

 private:
  std::mutex mutex_;
  std::vector<const void*> kernels_;
  std::map<int32_t, std::map<const void*, Capacity>> known_;
};

}  // namespace SPS_NAMESPACE
