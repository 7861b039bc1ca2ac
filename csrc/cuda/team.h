// A team: the thread blocks that jointly process one request, or one row.
//
// On GPUs of compute capability 9.0 or later a team is a cluster of 1, 2, 4 or 8 blocks, which can access each other's shared
// memory; elsewhere it is a single block. Passes over a row treat the crews of all blocks as one crew. Each block's conductor runs
// the whole scheme: all get the same results, so they need not communicate. Only the first block (rank 0) writes the kernel's
// outputs. Barriers: of a block's crew; of a block's conductor and crew; of the team's crews.
#pragma once
#include "protocol.h"

namespace SPS_NAMESPACE {

SPS_DEVICE int thread_id() {
  int id = static_cast<int>(threadIdx.x);
#if defined(__CUDACC__)
  asm volatile("" : "+r"(id));  // otherwise everything derived from it would stay in registers between orders
#endif
  return id;
}

#if defined(__CUDACC__)
SPS_DEVICE constexpr int thread_count() { return kCrew; }
SPS_DEVICE void named_barrier(int id, int count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
SPS_DEVICE int team_size() {
  int size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
SPS_DEVICE int team_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
SPS_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Called by all threads, conductors too, before anything else: no block may access another's memory before that one has started.
SPS_DEVICE void start_team(Scratch& s) {
  if (team_size() == 1) return;
  if (thread_id() == 0) {
    s.turn = 0;
    for (int i = 0; i < 2; ++i)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&s.arrivals[i])), "r"(team_size()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The hardware's cluster barrier would include the conductors. Here the blocks count each other's crews: each block signals to all
// that its crew has arrived, and waits for as many arrivals as there are blocks. Two counters alternate: a block may reach the next
// barrier while an arrival at this one is still in flight to a third block, which must not confuse the two.
//
// Memory ordering. Before: bar.sync orders the whole crew's writes before the arrivals of the first lanes, and a release at cluster
// scope covers everything ordered before it, not only this thread's writes, so no additional fence is needed. `turn` itself is
// written by lane 0, while another lane's arrival may let this block proceed: __syncwarp orders the two. After: each thread's wait
// acquires at cluster scope.
SPS_DEVICE void team_barrier(Scratch& s) {
  if (team_size() == 1) return named_barrier(1, thread_count());
  const uint32_t turn = s.turn, mine = shared_address(&s.arrivals[turn & 1]);
  named_barrier(1, thread_count());
  if (thread_id() == 0) s.turn = turn + 1;
  __syncwarp();
  if (thread_id() < team_size())
    asm volatile(
        "{\n\t.reg .b32 theirs;\n\t"
        "mapa.shared::cluster.u32 theirs, %0, %1;\n\t"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [theirs];\n\t}" ::"r"(mine),
        "r"(thread_id())
        : "memory");
  asm volatile(
      "{\n\t.reg .pred complete;\n\t"
      "TRY: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%0], %1;\n\t"
      "@!complete bra TRY;\n\t}" ::"r"(mine),
      "r"(turn >> 1 & 1)
      : "memory");
  __syncwarp();
}

// The same place in the shared memory of another block.
template <class T>
SPS_DEVICE T& at_rank(T& mine, int rank) {
  uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(&mine), "r"(rank));
  return *reinterpret_cast<T*>(theirs);
}

// Let the next launch begin while this one runs (device.h). And: wait until the preceding launch has ended and its writes are visible.
SPS_DEVICE void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
SPS_DEVICE void await_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
SPS_DEVICE constexpr int team_size() { return 1; }
SPS_DEVICE constexpr int team_rank() { return 0; }
SPS_DEVICE void start_team(Scratch&) {}
SPS_DEVICE void team_barrier(Scratch&) { named_barrier(1, thread_count()); }
template <class T>
SPS_DEVICE T& at_rank(T& mine, int) {
  return mine;
}
SPS_DEVICE void let_next_begin() {}
SPS_DEVICE void await_launch_before() {}
#endif
SPS_DEVICE void prefetch(const void* p) { asm volatile("prefetch.L1 [%0];" ::"l"(p)); }
#define SPS_CREW_BARRIER() named_barrier(1, thread_count())
#define SPS_MEET() named_barrier(2, kBlock)
#define SPS_TEAM_BARRIER(s) team_barrier(s)
#define SPS_START_TEAM(s) start_team(s)
#endif  // otherwise csrc/emulator/team.h has defined these

SPS_DEVICE bool conducts() { return thread_id() >= thread_count(); }

// This thread's index in the team, and the number of the team's threads. The index of this block's team.
SPS_DEVICE int team_thread() { return team_rank() * thread_count() + thread_id(); }
SPS_DEVICE int team_threads() { return team_size() * thread_count(); }
SPS_DEVICE int64_t team_index() { return static_cast<unsigned>(blockIdx.x) / static_cast<unsigned>(team_size()); }

}  // namespace SPS_NAMESPACE
