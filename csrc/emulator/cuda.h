// CUDA C++ for an ordinary C++ compiler: the keywords, types and functions that the kernels use. Included before the kernels'
// sources, in place of CUDA's own headers.
#pragma once
#define SPS_CUDA_ON_CPU 1
#include "approximations.h"
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
  uint32_t x, y, z, w;
};

namespace cuda_on_cpu {

template <class T, class F>
T update(T* at, const F& f) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, f(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace cuda_on_cpu

#define SPS_TEXT_(x) #x
#define SPS_TEXT(x) SPS_TEXT_(x)
#define SPS_HERE __FILE__ ":" SPS_TEXT(__LINE__)

#define threadIdx (cuda_on_cpu::machine.thread_index())
#define blockIdx (cuda_on_cpu::machine.block_index())
#define blockDim (cuda_on_cpu::machine.block)
#define gridDim (cuda_on_cpu::machine.grid)
#define __syncthreads() cuda_on_cpu::machine.barrier(SPS_HERE)
#define __syncwarp() cuda_on_cpu::machine.meet_warp(SPS_HERE)
#define __shfl_xor_sync(mask, value, bits) \
  cuda_on_cpu::machine.exchange(mask, value, cuda_on_cpu::machine.lane() ^ (bits), SPS_HERE)
#define __shfl_up_sync(mask, value, by) \
  cuda_on_cpu::machine.exchange(mask, value, std::max(cuda_on_cpu::machine.lane() - static_cast<int>(by), 0), SPS_HERE)
#define __shfl_sync(mask, value, source) cuda_on_cpu::machine.exchange(mask, value, (source) & 31, SPS_HERE)
#define __ballot_sync(mask, predicate) cuda_on_cpu::machine.ballot(mask, predicate, SPS_HERE)

template <class T>
T atomicAdd(T* at, T value) {
  return cuda_on_cpu::update(at, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* at, T value) {
  return cuda_on_cpu::update(at, [=](T old) { return std::max(old, value); });
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
inline float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
inline uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __clz(int x) { return x ? __builtin_clz(static_cast<uint32_t>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<uint64_t>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
