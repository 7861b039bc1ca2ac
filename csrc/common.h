// What every header of the package includes: the host/device marker and the constants of the number formats.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SPS_HD __host__ __device__ __forceinline__
#else
#define SPS_HD inline
#endif

// On a GPU a warp runs a scheme's walk, all its lanes with the same values. Where the walk keeps state in memory, the lanes
// share the work and wait for each other. SPS_CUDA_ON_CPU: GPU code compiled for the CPU (csrc/emulator).
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

// Every device's code has a namespace of its own, the headers that all share included: one extension holds the objects of all
// devices, and of two functions of one name the linker keeps one.
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
// +inf logits are read as the largest float: they share all the mass equally, and no arithmetic meets inf - inf.
constexpr float kLargest = FLT_MAX;

}  // namespace SPS_NAMESPACE
