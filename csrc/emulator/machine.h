// The machine that runs CUDA kernels on the CPU: one fibre per CUDA thread, with barriers, warp exchanges and shared memory.
//
// Teams of blocks (clusters; csrc/cuda/team.h) run one after another in one OS thread, the blocks of a team concurrently. A fibre
// runs until it waits at a barrier or in a warp exchange; the scheduler then picks the next one, by index or in an order shuffled
// by a seed, so that missing barriers change results. Reported as errors: barriers that only part of the block or team reaches,
// threads that wait at different barriers or in different warp operations, lanes missing from a warp's mask, access to the shared
// memory of a block that has not begun or has exited, and deadlocks. Shared memory is a heap allocation of its exact size, filled
// with 0xA5 for every block and freed when its threads have exited, so that AddressSanitizer sees accesses beyond it.
// Not modelled: concurrent teams, asynchronous copies, memory ordering.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_on_cpu {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxBlocks = 8;  // threads per block, blocks per team
// Barriers of a block: one for all its threads, and two more. Barriers of a team: one for the crews, one for all threads.
constexpr int kBlockBarriers = 3, kTeamCrews = 3, kTeamStart = 4, kBarriers = 5;

// What a test may set for the launches of this process.
struct Settings {
  int threads = 0;       // threads of a block's crew; 0: as on a GPU
  uint32_t shuffle = 0;  // seed of the order in which threads run; 0: by index
  int team = 1;          // blocks per team
  bool ahead = false;    // all rows are read before the round (verify.cu)
  uint32_t perturb = 0;  // seed of errors in approximations (approximations.h); 0: none
};
inline Settings settings;

enum class State : uint8_t { kReady, kBarrier, kExchange, kDone };

struct Fibre {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kDone;
  uint32_t mask = 0;
  uint32_t exchanges = 0, barriers[kBarriers] = {}, meetings = 0;
  int barrier = 0, awaited = 0;  // the barrier it waits at, and the number of threads that meet there
  const char* where = "";
  void* watched = nullptr;  // ThreadSanitizer's
  dim3 index;
};

class Machine {
 public:
  dim3 grid, block;

  dim3 block_index() {
    const Unwatched unwatched;
    return dim3(first_block_.x + current_ / count_, first_block_.y, first_block_.z);
  }
  int team_size() const {
    const Unwatched unwatched;
    return team_;
  }
  int team_rank() const {
    const Unwatched unwatched;
    return current_ / count_;
  }
  dim3& thread_index() {
    const Unwatched unwatched;
    return fibres_[current_].index;
  }
  int lane() const {
    const Unwatched unwatched;
    return current_ % kWarp;
  }

  template <class Body>
  void launch(dim3 grid_size, dim3 block_size, const Body& body, int team = 1) {
    grid = grid_size, block = block_size, body_ = body;
    count_ = static_cast<int>(block.x * block.y * block.z), team_ = team, total_ = team * count_;
    if (count_ < 1 || count_ > kMaxThreads) throw std::runtime_error("cuda_on_cpu: block of " + std::to_string(count_));
    if (team_ < 1 || team_ > kMaxBlocks || grid.x % team_ || (team_ > 1 && count_ % kWarp))
      throw std::runtime_error("cuda_on_cpu: team of " + std::to_string(team_));
    reserve();
    uint32_t state = settings.shuffle;
    order_.resize(total_);
    std::iota(order_.begin(), order_.end(), 0);
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; x += team_) {
          first_block_ = dim3(x, y, z);
          for (auto& memory : shared_) memory.reset();
          before(&started_);
          {
            const Unwatched unwatched;
            run_team(state);
          }
          after(&ended_);
        }
    body_ = nullptr;
  }

  // The block's shared memory: one object per kernel.
  template <class T>
  T& shared() {
    const Unwatched unwatched;
    auto& mine = shared_[current_ / count_];
    if (!mine) {
      void* memory = ::operator new(sizeof(T), std::align_val_t{alignof(T)});
      std::memset(memory, 0xA5, sizeof(T));
      mine = {memory, [](void* p) { ::operator delete(p, std::align_val_t{alignof(T)}); }};
    }
    return *static_cast<T*>(mine.get());
  }
  // The corresponding object in the shared memory of another block of the team.
  template <class T>
  T& at_rank(T& mine, int rank) {
    const Unwatched unwatched;
    const char* const here = static_cast<const char*>(shared_[current_ / count_].get());
    if (rank < 0 || rank >= team_) fail("a block that the team does not have", std::to_string(rank).c_str());
    if (live_in_[rank] == 0) fail("shared memory of a block that has left", std::to_string(rank).c_str());
    if (!shared_[rank]) fail("shared memory of a block that has not begun", std::to_string(rank).c_str());
    return *reinterpret_cast<T*>(static_cast<char*>(shared_[rank].get()) + (reinterpret_cast<const char*>(&mine) - here));
  }

  // Barrier `id` of `count` threads (0: all) of the block, or of the team.
  void barrier(int id, int count, const char* where) {
    char* event = nullptr;
    {
      const Unwatched unwatched;
      event = &barrier_[id < kBlockBarriers ? current_ / count_ : 0][id][fibres_[current_].barriers[id]++ & 1];
    }
    before(event);
    {
      const Unwatched unwatched;
      fibres_[current_].barrier = id, fibres_[current_].awaited = count ? count : count_;
      wait(State::kBarrier, 0, where);
    }
    after(event);
  }
  void barrier(const char* where) { barrier(0, 0, where); }
  void team_barrier(int crew, const char* where) { barrier(kTeamCrews, team_ * crew, where); }
  void start_team(const char* where) { barrier(kTeamStart, total_, where); }
  void meet_warp(const char* where) {
    char* warp = next(warp_[warp_index()], &Fibre::meetings);
    before(warp);
    {
      const Unwatched unwatched;
      meet(0xFFFFFFFFu, 0, where);
    }
    after(warp);
  }

  // The `value` of lane `source` of this warp, among the lanes of `mask`.
  template <class T>
  T exchange(uint32_t mask, T value, int source, const char* where) {
    static_assert(sizeof(T) <= 8);
    char* warp = next(warp_[warp_index()], &Fibre::meetings);
    before(warp);
    {
      const Unwatched unwatched;
      uint64_t bits = 0;
      std::memcpy(&bits, &value, sizeof(T));
      const uint64_t* slot = meet(mask, bits, where);
      if (!(mask >> source & 1)) fail("a lane outside the mask was read", where);
      std::memcpy(&value, &slot[source], sizeof(T));
    }
    after(warp);
    return value;
  }
  uint32_t ballot(uint32_t mask, bool predicate, const char* where) {
    char* warp = next(warp_[warp_index()], &Fibre::meetings);
    before(warp);
    uint32_t out = 0;
    {
      const Unwatched unwatched;
      const uint64_t* slot = meet(mask, predicate, where);
      for (int i = 0; i < kWarp; ++i)
        if (mask >> i & 1) out |= static_cast<uint32_t>(slot[i]) << i;
    }
    after(warp);
    return out;
  }

 private:
  int warp_index() const {
    const Unwatched unwatched;
    return current_ / kWarp;
  }
  // Two alternating events: a thread may reach the next barrier before another has left this one, and must not seem ordered by it.
  char* next(char (&event)[2], uint32_t Fibre::* count) {
    const Unwatched unwatched;
    return &event[(fibres_[current_].*count)++ & 1];
  }
  static bool differ(const char* a, const char* b) { return a != b && std::strcmp(a, b) != 0; }

  void reserve() {
    if (broken_) {  // fibres abandoned in the middle of a kernel after an error; their stacks are reused
      for (Fibre& f : fibres_) prepare(f.context, f.stack, entry), f.fake_stack = nullptr, f.state = State::kDone;
      broken_ = false;
    }
    fibres_.reserve(kMaxThreads * kMaxBlocks);
    while (static_cast<int>(fibres_.size()) < total_) {
      Fibre& f = fibres_.emplace_back();
      char* memory = static_cast<char*>(mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (memory == MAP_FAILED) throw std::bad_alloc();
      mprotect(memory, kGuard, PROT_NONE);
      f.stack = memory + kGuard;
      prepare(f.context, f.stack, entry);
    }
  }

  void run_team(uint32_t& random) {
    for (int i = 0; i < total_; ++i) {
      Fibre& f = fibres_[i];
      f.state = State::kReady, f.exchanges = f.meetings = 0;
      std::fill(f.barriers, f.barriers + kBarriers, 0);
      const unsigned thread = i % count_;
      f.index = dim3(thread % block.x, thread / block.x % block.y, thread / (block.x * block.y));
    }
    live_ = total_;
    std::fill(live_in_, live_in_ + team_, count_);
    while (live_ > 0) {
      if (settings.shuffle)
        for (int i = total_ - 1; i > 0; --i) {
          random = random * 1664525u + 1013904223u;
          std::swap(order_[i], order_[(random >> 8) % static_cast<uint32_t>(i + 1)]);
        }
      bool ran = false;
      for (int i : order_)
        if (fibres_[i].state == State::kReady) {
          ran = true;
          resume(i);
          if (!error_.empty()) stop();
        }
      for (int rank = 0; rank < team_; ++rank)
        for (int id = 0; id < kBlockBarriers; ++id) ran |= release_barrier(id, rank * count_, count_, live_in_[rank]);
      for (int id = kBlockBarriers; id < kBarriers; ++id) ran |= release_barrier(id, 0, total_, live_);
      if (ran) continue;
      error_ = "deadlock: " + waiting();
      stop();
    }
  }

  // For `count` threads from `first`, of which `live` have not exited.
  bool release_barrier(int id, int first, int count, int live) {
    int waiting_here = 0, awaited = 0;
    const char* where = nullptr;
    for (int i = first; i < first + count; ++i) {
      const Fibre& f = fibres_[i];
      if (f.state != State::kBarrier || f.barrier != id) continue;
      ++waiting_here, awaited = f.awaited;
      if (where && differ(where, f.where)) error_ = std::string("divergent barriers: ") + where + " and " + f.where;
      where = f.where;
    }
    if (waiting_here == 0 || waiting_here < std::min(awaited, live)) return false;
    if (waiting_here < awaited) error_ = std::string("a barrier after some threads have left: ") + where;
    if (waiting_here > awaited) error_ = std::string("more threads than a barrier awaits: ") + where;
    if (!error_.empty()) stop();
    for (int i = first; i < first + count; ++i)
      if (fibres_[i].state == State::kBarrier && fibres_[i].barrier == id) fibres_[i].state = State::kReady;
    return true;
  }

  // All lanes of the mask meet; returns the value of each.
  const uint64_t* meet(uint32_t mask, uint64_t value, const char* where) {
    const int me = current_, first = me / kWarp * kWarp;
    Fibre& f = fibres_[me];
    if (!(mask >> (me - first) & 1)) fail("the calling lane is not in the mask", where);
    // Two buffers: a lane can be one exchange ahead of another that still reads, never two.
    uint64_t* slot = slots_[first / kWarp][f.exchanges++ & 1];
    slot[me - first] = value;
    f.mask = mask, f.where = where, f.state = State::kExchange;
    for (int i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      if (first + i >= total_) fail("the mask names lanes that the block does not have", where);
      const Fibre& other = fibres_[first + i];
      if (other.state == State::kDone) fail("the mask names a lane that has left", where);
      if (other.state != State::kExchange) return wait(State::kExchange, mask, where), slot;
      if (differ(other.where, where) || other.mask != mask) fail("lanes of a warp in different operations", where);
    }
    for (int i = 0; i < kWarp; ++i)
      if (mask >> i & 1) fibres_[first + i].state = State::kReady;
    return slot;
  }

  void wait(State state, uint32_t mask, const char* where) {
    Fibre& f = fibres_[current_];
    f.state = state, f.mask = mask, f.where = where;
    to_scheduler();
  }
  [[noreturn]] void fail(const char* what, const char* where) {
    error_ = std::string(what) + ": " + where;
    to_scheduler();
    std::abort();  // never resumed
  }
  std::string waiting() const {
    std::string text;
    for (int i = 0; i < total_ && text.size() < 400; ++i)
      if (fibres_[i].state != State::kDone && (i % count_ == 0 || differ(fibres_[i].where, fibres_[i - 1].where)))
        text += "thread " + std::to_string(i % count_) + " of block " + std::to_string(i / count_) + " waits at " +
                fibres_[i].where + "; ";
    return text;
  }
  [[noreturn]] void stop() {
    broken_ = true;
    std::string message = "cuda_on_cpu: ";
    message.append(error_);
    error_.clear();
    throw std::runtime_error(message);
  }

  void resume(int i) {
    current_ = i;
    Fibre& f = fibres_[i];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&main_fake_stack_, f.stack, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
    if (!f.watched) f.watched = __tsan_create_fiber(0);
    main_watched_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(f.watched, __tsan_switch_to_fiber_no_sync);
#endif
    swap(main_, f.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
  }
  void to_scheduler() {
    Fibre& f = fibres_[current_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&f.fake_stack, main_bottom_, main_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(main_watched_, __tsan_switch_to_fiber_no_sync);
#endif
    swap(f.context, main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fibres_[current_].fake_stack, &main_bottom_, &main_size_);
#endif
  }
  static void entry();
  void leave() {
    fibres_[current_].state = State::kDone;
    --live_;
    if (--live_in_[current_ / count_] == 0) shared_[current_ / count_].reset();
    to_scheduler();
  }

  std::vector<Fibre> fibres_;
  std::vector<int> order_;
  std::function<void()> body_;
  struct Memory : std::unique_ptr<void, void (*)(void*)> {
    using Base = std::unique_ptr<void, void (*)(void*)>;
    Memory() : Base(nullptr, [](void*) {}) {}
    using Base::operator=;
  };
  Memory shared_[kMaxBlocks];
  std::string error_;
  uint64_t slots_[kMaxBlocks * kMaxThreads / kWarp][2][kWarp];
  dim3 first_block_;  // of the team
  int count_ = 1, team_ = 1, total_ = 1;  // threads per block, blocks per team, threads per team
  int current_ = 0, live_ = 0, live_in_[kMaxBlocks] = {};
  bool broken_ = false;
  char started_ = 0, ended_ = 0, barrier_[kMaxBlocks][kBarriers][2] = {};  // events
  char warp_[kMaxBlocks * kMaxThreads / kWarp][2] = {};
  void* main_watched_ = nullptr;
  Context main_;
  void* main_fake_stack_ = nullptr;
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
};
inline Machine machine;

// A fibre runs thread after thread, block after block.
inline void Machine::entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.main_bottom_, &machine.main_size_);
#endif
  for (;;) {
    after(&machine.started_);
    machine.body_();
    before(&machine.ended_);
    const Unwatched unwatched;
    machine.leave();
  }
}

}  // namespace cuda_on_cpu
