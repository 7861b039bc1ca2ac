// The team as a unit: reductions, and values computed once.
//
// Every function here is collective: all threads of the team's crews (of one crew, where noted) call it with the same control
// flow, and all of them get the result. Results do not depend on the number of threads or blocks, down to the last bit:
// floating-point sums are sums of tiles (sums.h), and the threads themselves merge only maxima, counts and sums of integers.
#pragma once
#include "team.h"

namespace SPS_NAMESPACE {

constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

// Shares the work on a coupling (coupling.h) among a crew's threads.
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

// A number computed by one thread of a crew: exp and log in double are expensive on small GPUs.
template <class F>
SPS_DEVICE double once(Scratch& s, const F& f) {
  if (thread_id() == 0) s.once = f();
  SPS_CREW_BARRIER();
  const double value = s.once;
  SPS_CREW_BARRIER();
  return value;
}

// Writes a value that all lanes of a warp hold to the same place in every block's shared memory.
template <class T>
SPS_DEVICE void tell(T& place, const T& value) {
  if (lane_id() < team_size()) at_rank(place, lane_id()) = value;
}

// This warp's index in the team, and the number of the team's warps.
SPS_DEVICE int team_warp() { return team_rank() * warp_count() + warp_id(); }
SPS_DEVICE int team_warps() { return team_size() * warp_count(); }

SPS_DEVICE float team_max(Scratch& s, float v) {
  tell(s.real[team_warp()], warp_max(v));
  SPS_TEAM_BARRIER(s);
  v = -HUGE_VALF;
  for (int w = lane_id(); w < team_warps(); w += 32) v = s.real[w] > v ? s.real[w] : v;
  v = warp_max(v);
  SPS_TEAM_BARRIER(s);
  return v;
}

// The sum over one block's crew.
SPS_DEVICE int64_t crew_sum(Scratch& s, int64_t v) {
  v = warp_sum(static_cast<long long>(v));
  if (lane_id() == 0) s.whole[warp_id()] = v;
  SPS_CREW_BARRIER();
  v = 0;
  for (int w = 0; w < warp_count(); ++w) v += s.whole[w];
  SPS_CREW_BARRIER();
  return v;
}

SPS_DEVICE Best warp_best(Best v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) {
    const double score = __shfl_xor_sync(kFullWarp, v.score, bits);
    const long long id = __shfl_xor_sync(kFullWarp, static_cast<long long>(v.id), bits);
    v.merge(Best{score, id});
  }
  return v;
}
SPS_DEVICE Best team_best(Scratch& s, Best v) {
  tell(s.best[team_warp()], warp_best(v));
  SPS_TEAM_BARRIER(s);
  v = Best::none();
  for (int w = lane_id(); w < team_warps(); w += 32) v.merge(s.best[w]);
  v = warp_best(v);
  SPS_TEAM_BARRIER(s);
  return v;
}

// One bin, summed over the histograms in the shared memory of the team's blocks.
SPS_DEVICE unsigned long long team_bin(Scratch& s, int i) {
  unsigned long long sum = 0;
  for (int rank = 0; rank < team_size(); ++rank) sum += at_rank(s.histogram[i], rank);
  return sum;
}

// Merge the blocks' counts in s.histogram, so that every block has the sums over all. Each bin is summed by one thread, which
// alone reads and writes it in all blocks.
SPS_DEVICE void merge_histograms(Scratch& s, int bins) {
  SPS_TEAM_BARRIER(s);
  if (team_size() > 1) {
    for (int i = team_thread(); i < bins; i += team_threads()) {
      const unsigned long long sum = team_bin(s, i);
      for (int rank = 0; rank < team_size(); ++rank) at_rank(s.histogram[i], rank) = sum;
    }
    SPS_TEAM_BARRIER(s);
  }
}

// A float as an integer that orders the same way (-0 below 0), for atomicMax.
SPS_DEVICE int ordered(float x) {
  const int b = static_cast<int>(__float_as_uint(x));
  return b < 0 ? b ^ 0x7FFFFFFF : b;
}
SPS_DEVICE float from_ordered(int b) { return __uint_as_float(static_cast<uint32_t>(b < 0 ? b ^ 0x7FFFFFFF : b)); }

// A value in shared memory that other threads may be raising concurrently: any of its values is acceptable.
SPS_DEVICE int current(const int& value) {
#if defined(__CUDACC__)
  return *const_cast<const volatile int*>(&value);
#else
  return __atomic_load_n(&value, __ATOMIC_RELAXED);
#endif
}

}  // namespace SPS_NAMESPACE
