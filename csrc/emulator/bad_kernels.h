// Kernels with one mistake each, and their correct counterparts: the checks of csrc/emulator must catch every mistake.
#pragma once
#include "../cuda/block.h"

namespace SPS_NAMESPACE {

struct BadArgs {
  const float* in;
  float* out;
  int count;  // of both
};

struct BadScratch {
  float value[64];
};

// out[i] = in[count - 1 - i], through shared memory. One block of `count` <= 64 threads.
template <bool kBarrier>
__global__ void reverse_kernel(BadArgs a) {
  BadScratch& s = cuda_on_cpu::machine.shared<BadScratch>();
  s.value[threadIdx.x] = a.in[threadIdx.x];
  if (kBarrier) __syncthreads();
  a.out[threadIdx.x] = s.value[a.count - 1 - static_cast<int>(threadIdx.x)];
}

// The same twice with the same shared memory, which a fast thread must not overwrite while a slow one still reads.
template <bool kBarrier>
__global__ void reverse_twice_kernel(BadArgs a) {
  BadScratch& s = cuda_on_cpu::machine.shared<BadScratch>();
  for (int round = 0; round < 2; ++round) {
    s.value[threadIdx.x] = a.in[threadIdx.x];
    __syncthreads();
    a.out[threadIdx.x] = s.value[a.count - 1 - static_cast<int>(threadIdx.x)];
    if (kBarrier) __syncthreads();
  }
}

__global__ inline void divergent_barrier_kernel(BadArgs a) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  a.out[threadIdx.x] = 1;
}

__global__ inline void early_exit_kernel(BadArgs a) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  a.out[threadIdx.x] = 1;
}

// The last warp orders the others to reverse the input, and copies their result.
template <bool kMeets>
__global__ void order_kernel(BadArgs a) {
  BadScratch& s = cuda_on_cpu::machine.shared<BadScratch>();
  const int crew = thread_count(), i = thread_id();
  if (conducts()) {
    SPS_MEET();
    if (kMeets) SPS_MEET();
    for (int j = i - crew; j < a.count; j += kConductor) a.out[j] = s.value[j];
  } else {
    SPS_MEET();
    for (int j = i; j < a.count; j += crew) s.value[j] = a.in[a.count - 1 - j];
    SPS_CREW_BARRIER();
    if (kMeets) SPS_MEET();
  }
}

__global__ inline void uneven_meeting_kernel(BadArgs a) {  // the crew meets once more than the last warp
  if (!conducts()) SPS_MEET();
  SPS_MEET();
  a.out[threadIdx.x] = 1;
}

// out[i] = in[count - 1 - i] by a team, each block reading what another wrote: block r has the elements from r count / team on.
enum class Team { kGood, kNoStart, kNoBarrier, kLeaves, kUneven };

template <Team kHow>
__global__ void team_kernel(BadArgs a) {
  BadScratch& s = cuda_on_cpu::machine.shared<BadScratch>();
  if (kHow != Team::kNoStart) SPS_START_TEAM(s);
  if (conducts()) return;
  const int part = a.count / team_size(), other = team_size() - 1 - team_rank(), first = team_rank() * part;
  for (int i = thread_id(); i < part; i += thread_count()) s.value[i] = a.in[first + i];
  if (kHow != Team::kNoBarrier && kHow != Team::kNoStart) SPS_TEAM_BARRIER(s);
  for (int i = thread_id(); i < part; i += thread_count()) a.out[first + i] = at_rank(s.value[part - 1 - i], other);
  if (kHow != Team::kLeaves) SPS_TEAM_BARRIER(s);
  if (kHow == Team::kUneven && team_rank() == 0) SPS_TEAM_BARRIER(s);
}

__global__ inline void half_a_warp_kernel(BadArgs a) {
  float v = a.in[threadIdx.x];
  if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(kFullWarp, v, 1);
  a.out[threadIdx.x] = v;
}

__global__ inline void read_beyond_the_row_kernel(BadArgs a) {
  a.out[threadIdx.x] = a.in[a.count - 31 + static_cast<int>(threadIdx.x % 32)];
}

__global__ inline void write_beyond_shared_memory_kernel(BadArgs a) {
  BadScratch& s = cuda_on_cpu::machine.shared<BadScratch>();
  float* value = s.value;
  value[threadIdx.x + 64 - a.count + 1] = a.in[threadIdx.x];
  __syncthreads();
  a.out[threadIdx.x] = value[threadIdx.x];
}

}  // namespace SPS_NAMESPACE
