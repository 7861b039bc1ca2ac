// The emulator's version of what csrc/cuda/team.h defines for a GPU. Included before the kernels' sources.
#pragma once
#include "cuda.h"

#include "../cuda/protocol.h"

#define SPS_SHARED(name) Scratch& name = cuda_on_cpu::machine.shared<Scratch>()
#define SPS_CREW_BARRIER() cuda_on_cpu::machine.barrier(1, thread_count(), SPS_HERE)
#define SPS_MEET() cuda_on_cpu::machine.barrier(2, static_cast<int>(blockDim.x), "conductor and crew")
#define SPS_TEAM_BARRIER(s) cuda_on_cpu::machine.team_barrier(thread_count(), SPS_HERE)
#define SPS_START_TEAM(s) cuda_on_cpu::machine.start_team(SPS_HERE)

namespace SPS_NAMESPACE {

inline int thread_count() { return static_cast<int>(blockDim.x) - kConductor; }  // as set by a test
inline int team_size() { return cuda_on_cpu::machine.team_size(); }
inline int team_rank() { return cuda_on_cpu::machine.team_rank(); }
template <class T>
T& at_rank(T& mine, int rank) {
  return cuda_on_cpu::machine.at_rank(mine, rank);
}
inline void let_next_begin() {}
inline void await_launch_before() {}
inline void prefetch(const void* p) { static_cast<void>(*static_cast<const volatile char*>(p)); }

// `teams` teams of `team` blocks, with crews of `crew` threads.
template <class Args>
void launch(void (*kernel)(Args), int64_t teams, const Args& args, int team, int crew) {
  const dim3 grid(static_cast<unsigned>(teams * team)), block(crew + kConductor);
  cuda_on_cpu::machine.launch(grid, block, [&] { kernel(args); }, team);
}

}  // namespace SPS_NAMESPACE
