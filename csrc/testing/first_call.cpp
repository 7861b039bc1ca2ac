// The first call on a GPU (csrc/cuda/capacity.h) with a fake CUDA run time that fails where told to. Prints one line per call:
// the exception, or the numbers of teams of two and of eight blocks.
#include "../cuda/capacity.h"

#include <cstdio>
#include <stdexcept>

namespace {
bool capturing = false, failing = false, old = false;
int loaded = 0;
}  // namespace

extern "C" {
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = 90, ++loaded;
  if (old) return cudaErrorNoKernelImageForDevice;
  return failing || capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = which == cudaDevAttrMultiProcessorCount ? 132 : old ? 7 : 9, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  return *clusters = 132 / static_cast<int>(config->gridDim.x), cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "as it was told"; }
}

int main() {
  using namespace specsample;
  const int row = 0, verify = 0;
  Kernels::all().add(&row), Kernels::all().add(&verify);
  const auto call = [](const char* when, const void* kernel) {
    const int before = loaded;
    try {
      const Capacity capacity = Kernels::all().capacity(kernel, 0, nullptr);
      std::printf("%s: %d and %d teams, %d loaded\n", when, capacity.of[2], capacity.of[8], loaded - before);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", when, error.what());
    }
  };
  capturing = true, call("captured first", &row);
  capturing = false, old = true, call("old", &row);
  old = false, failing = true, call("failing", &row);
  failing = false, call("again", &row);
  capturing = true, call("captured later", &verify);
}
