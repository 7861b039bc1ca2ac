// The crew as a unit: reductions and values computed once.
//
// Every function here is collective: all threads of the crew call it, with the same control flow, and all of them get the
// result. Nothing depends on how many threads there are, down to the last bit: floating-point sums are sums of tiles
// (sums.h), and what the threads themselves merge is a maximum, a count or a sum of integers.
#pragma once
#include "state.h"

namespace specsample {

constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

SPS_DEVICE int thread_id() {
  int id = static_cast<int>(threadIdx.x);
#if defined(__CUDACC__)
  asm volatile("" : "+r"(id));  // or all that is made of it would be held in registers from one order to the next
#endif
  return id;
}
#if defined(__CUDACC__)
SPS_DEVICE constexpr int thread_count() { return kCrew; }
#else
inline int thread_count() { return static_cast<int>(blockDim.x) - kConductor; }  // as a test chooses
#endif
SPS_DEVICE bool conducts() { return thread_id() >= thread_count(); }
// Barriers: of the crew, and of all, which conductor and crew reach at different places.
#if defined(__CUDACC__)
SPS_DEVICE void named_barrier(int id, int count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }
#define SPS_CREW_BARRIER() named_barrier(1, thread_count())
#define SPS_MEET() named_barrier(2, kBlock)
#else
#define SPS_CREW_BARRIER() cuda_on_cpu::machine.barrier(1, thread_count(), SPS_HERE)
#define SPS_MEET() cuda_on_cpu::machine.barrier(2, static_cast<int>(blockDim.x), "conductor and crew")
#endif

// Shares the work on a coupling (coupling.h).
struct Crew {
  static constexpr bool kOne = false;
  SPS_DEVICE int rank() const { return thread_id(); }
  SPS_DEVICE int size() const { return thread_count(); }
  SPS_DEVICE void barrier() const { SPS_CREW_BARRIER(); }
};

SPS_DEVICE int lane_id() { return thread_id() & 31; }
SPS_DEVICE int warp_id() { return thread_id() >> 5; }
SPS_DEVICE int warp_count() { return thread_count() >> 5; }

template <class T>
SPS_DEVICE T warp_max(T v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) {
    const T other = __shfl_xor_sync(kFullWarp, v, bits);
    v = other > v ? other : v;
  }
  return v;
}
template <class T>
SPS_DEVICE T warp_sum(T v) {  // the same bits in every lane: both sides of an exchange add the same two numbers
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) v += __shfl_xor_sync(kFullWarp, v, bits);
  return v;
}

// A number that one thread computes: exp and log in double are dear on small GPUs.
template <class F>
SPS_DEVICE double once(Scratch& s, const F& f) {
  if (thread_id() == 0) s.once = f();
  SPS_CREW_BARRIER();
  const double value = s.once;
  SPS_CREW_BARRIER();
  return value;
}

SPS_DEVICE float block_max(Scratch& s, float v) {
  v = warp_max(v);
  if (lane_id() == 0) s.real[warp_id()] = v;
  SPS_CREW_BARRIER();
  v = s.real[0];
  for (int w = 1; w < warp_count(); ++w) v = s.real[w] > v ? s.real[w] : v;
  SPS_CREW_BARRIER();
  return v;
}

SPS_DEVICE int64_t block_sum(Scratch& s, int64_t v) {
  v = warp_sum(static_cast<long long>(v));
  if (lane_id() == 0) s.whole[warp_id()] = v;
  SPS_CREW_BARRIER();
  v = 0;
  for (int w = 0; w < warp_count(); ++w) v += s.whole[w];
  SPS_CREW_BARRIER();
  return v;
}

SPS_DEVICE Best block_best(Scratch& s, Best v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) {
    const double score = __shfl_xor_sync(kFullWarp, v.score, bits);
    const long long id = __shfl_xor_sync(kFullWarp, static_cast<long long>(v.id), bits);
    v.merge(Best{score, id});
  }
  if (lane_id() == 0) s.best[warp_id()] = v;
  SPS_CREW_BARRIER();
  v = s.best[0];
  for (int w = 1; w < warp_count(); ++w) v.merge(s.best[w]);
  SPS_CREW_BARRIER();
  return v;
}

// Floats as integers in the same order (-0 below 0), for atomicMax.
SPS_DEVICE int ordered(float x) {
  const int b = static_cast<int>(__float_as_uint(x));
  return b < 0 ? b ^ 0x7FFFFFFF : b;
}
SPS_DEVICE float from_ordered(int b) { return __uint_as_float(static_cast<uint32_t>(b < 0 ? b ^ 0x7FFFFFFF : b)); }

// A value of shared memory that other threads are raising meanwhile: any of its values will do.
SPS_DEVICE int current(const int& value) {
#if defined(__CUDACC__)
  return *const_cast<const volatile int*>(&value);
#else
  return __atomic_load_n(&value, __ATOMIC_RELAXED);
#endif
}

}  // namespace specsample
