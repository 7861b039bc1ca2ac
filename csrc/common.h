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

namespace specsample {

constexpr double kInfinity = HUGE_VAL;
constexpr double kLog2e = 1.4426950408889634;
// +inf logits are read as the largest float: they share all the mass equally, and no arithmetic meets inf - inf.
constexpr float kLargest = FLT_MAX;

}  // namespace specsample
