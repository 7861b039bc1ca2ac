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

// On a GPU every thread of a block runs a scheme's walk, with the same values. Where the walk keeps state in memory, the
// threads share the work and wait for each other. SPS_CUDA_ON_CPU: GPU code compiled for the CPU (csrc/testing/cuda_on_cpu.h).
#if defined(__CUDA_ARCH__) || defined(SPS_CUDA_ON_CPU)
#define SPS_THREAD static_cast<int>(threadIdx.x)
#define SPS_THREADS static_cast<int>(blockDim.x)
#define SPS_BARRIER() __syncthreads()
#else
#define SPS_THREAD 0
#define SPS_THREADS 1
#define SPS_BARRIER() (void)0
#endif

namespace specsample {

constexpr double kInfinity = HUGE_VAL;
constexpr double kLog2e = 1.4426950408889634;
// +inf logits are read as the largest float: they share all the mass equally, and no arithmetic meets inf - inf.
constexpr float kLargest = FLT_MAX;

}  // namespace specsample
