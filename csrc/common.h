// Included by every header of the package: the host/device marker and the constants of the number formats.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SPS_HD __host__ __device__ __forceinline__
#else
#define SPS_HD inline
#endif

// On a GPU one warp runs a scheme's walk, all its lanes with the same values. If the walk keeps state in memory, the lanes
// share the work and synchronise. SPS_CUDA_ON_CPU: GPU code compiled for the CPU (csrc/emulator).
#if defined(__CUDA_ARCH__) || defined(SPS_CUDA_ON_CPU)
#define SPS_GPU 1
#define SPS_THREAD static_cast<int>(threadIdx.x & 31)
#define SPS_THREADS 32
#define SPS_BARRIER() __syncwarp()
#else
#define SPS_GPU 0
#define SPS_THREAD 0
#define SPS_THREADS 1
#define SPS_BARRIER() (void)0
#endif

// The code of each device has its own namespace, including the shared headers: one extension contains the objects of all
// devices, and the linker keeps only one of two functions with the same name.
#if defined(SPS_CUDA_ON_CPU)
#define SPS_NAMESPACE specsample::emulator
namespace specsample {
inline namespace emulator {}
}  // namespace specsample
#elif defined(__CUDACC__)
#define SPS_NAMESPACE specsample::cuda
namespace specsample {
inline namespace cuda {}
}  // namespace specsample
#else
#define SPS_NAMESPACE specsample::cpu
namespace specsample {
inline namespace cpu {}
}  // namespace specsample
#endif

namespace SPS_NAMESPACE {

constexpr double kInfinity = HUGE_VAL;
constexpr double kLog2e = 1.4426950408889634;
// +inf logits are read as the largest float: they share all mass equally, and inf - inf never occurs.
constexpr float kLargest = FLT_MAX;

}  // namespace SPS_NAMESPACE
