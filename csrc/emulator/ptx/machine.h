// The machine: warps of 32 lanes that run the instructions of a kernel (code.h), in blocks, in clusters of blocks, in a grid.
//
// Lanes of a warp at the same instruction form a group and run it together. A branch may split a group; groups that meet at the
// head of a basic block merge. The group at the earliest instruction in the text goes first, so that lanes reconverge soon. Results
// do not depend on that: what needs several lanes (shuffles, bar.warp.sync) waits for those in its mask, as on GPUs with a program
// counter per thread, and what is .aligned waits for all lanes and is a fault if they cannot arrive.
//
// All blocks of a cluster, and as many clusters as are resident, take turns: a warp runs until it waits or its turn is over. When
// none can go on, the report says what each waits for.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shadow.h"
#include "text.h"

namespace ptx {

constexpr uint32_t kAll = 0xFFFFFFFFu;

// Addresses. Global ones are the host's. Generic addresses of other spaces carry the space in the top byte. In shared memory, bits
// 24 to 31 of an address name a block of the cluster, by its rank + 1; 0 is the block's own.
constexpr uint64_t kSharedWindow = 1ull << 56, kLocalWindow = 2ull << 56, kParamWindow = 3ull << 56, kWindow = 255ull << 56;
constexpr uint32_t kSharedBase = 1024;  // the first byte of a kernel's shared memory: 0 is not an address
constexpr int kRankShift = 24;
enum class Space : uint8_t { kGeneric, kGlobal, kShared, kCluster, kLocal, kParam, kConst };

// Memory that a kernel may touch.
struct Buffer {
  char* data = nullptr;
  size_t bytes = 0;
  std::string name;
  bool writable = true, known = true;  // known: its bytes are defined before any kernel writes to it
  std::unique_ptr<Shadow> shadow;
  std::vector<uint8_t> pending;  // bytes written by a launch that the next one might not see yet; empty: none
  std::vector<uint8_t> written;  // by this launch; empty: none
  int stored = 0, constant = 0;  // lines of this launch that stored to it, and that read it by ld.global.nc
  void note_stored(size_t at, int count) {
    if (written.empty()) written.resize(bytes);
    for (int i = 0; i < count; ++i) written[at + static_cast<size_t>(i)] = 1;
  }
};

struct Program;
struct Instruction;
struct Block;
struct Cluster;
class Machine;

struct Wait {
  enum Kind : uint8_t { kNone, kLanes, kBarrier, kPhase, kCluster } kind = kNone;
  uint32_t lanes = 0;  // kLanes: lanes that must be here together
  int barrier = 0;  // kBarrier: its number
  Block* block = nullptr;  // kPhase: the mbarrier's block
  uint32_t at = 0, parity = 0;  // and its place there
};

struct Group {
  int pc = 0;
  uint32_t lanes = 0;
  Wait wait;
};

// Lanes of a register that are undefined: such a value may be loaded, copied and left unused (compilers load ahead of a test), but
// nothing may depend on it.
struct Undefined {
  uint32_t lanes = 0;
  std::string why;
};

class Warp {
 public:
  Machine& machine;
  const Program& program;
  Block& block;
  const int index, slot;  // of the block's warps; of the entries of clocks
  char* const registers;
  const char* const constants;
  uint32_t live = kAll;
  uint32_t first = 0, tick = 0, synced = 0;  // ticks: of its start; the current one; the one at which its lanes were last in order
  Clock clock;  // what all lanes know
  Clock ahead;  // and what only some lanes have learned since they were last in order
  uint32_t ahead_lanes = 0;
  Clock fenced, seen;  // released by strong writes since the last fence; acquired by strong reads since then
  std::vector<char> local;  // of all lanes
  uint64_t cluster_turn = 0;
  bool cluster_arrived = false;
  std::map<int32_t, Undefined> undefined;  // by the register's place
  std::vector<Group> groups;
  Group* group = nullptr;  // the one that is running
  Wait wait;  // set by an instruction that cannot proceed yet: it is run again
  Wait then;  // set by one that is done but whose group waits

  Warp(Machine& machine, const Program& program, Block& block, int index, int slot, char* registers);

  template <class T>
  T* at(int32_t operand) const {
    return reinterpret_cast<T*>(operand >= 0 ? registers + operand : const_cast<char*>(constants) + ~operand);
  }
  // Runs a ready group; returns whether any instruction was run.
  bool run(int steps);
  bool can_run() const;
  User user(int lane, int line) const {
    const Event now{tick, static_cast<uint16_t>(slot), static_cast<uint8_t>(lane), line};
    return User{now, known(lane), synced};
  }
  const Clock& known(int lane) const { return ahead_lanes >> lane & 1 ? ahead : clock; }
  void learn(const Clock& what, uint32_t lanes);
  Clock told(uint32_t lanes);  // what these lanes release; excludes whatever they do from now on
  void sync();  // all lanes are in order
  [[noreturn]] void fail(const std::string& what, uint32_t lanes = 0) const;
  void set_undefined(int32_t place, uint32_t lanes, const std::string& why);
  void set_defined(int32_t place, uint32_t lanes);

 private:
  void require(int32_t place, uint32_t lanes, const char* what) const;
  void check_defined(const Instruction& i, uint32_t lanes) const;
  void spread_undefined(const Instruction& i, uint32_t lanes);
  bool ready(const Group& g) const;
  size_t pick(bool first) const;
  bool joins(size_t at) const;
  size_t merge(size_t at);
  bool meet(Group& g, const Instruction& i, uint32_t lanes);
  void leave(size_t at, uint32_t lanes);
  uint32_t turn_ = 0;
};

struct MBarrier {
  uint32_t expected = 0, pending = 0, phase = 0;  // phase: the number of complete phases
  Clock arrived, complete;
};
struct NamedBarrier {
  int count = 0, line = 0;  // line: of the first to arrive; 0: none has
  int arrived = 0;
  Clock clock;
};

struct Block {
  Cluster* cluster = nullptr;
  int rank = 0;  // in the cluster
  uint32_t index[3] = {};  // in the grid
  std::vector<char> memory;
  std::unique_ptr<Shadow> shadow;
  std::vector<std::unique_ptr<Warp>> warps;
  NamedBarrier barriers[16];
  std::map<uint32_t, MBarrier> phases;
  std::map<int, Event> visits;  // the last use of this block's memory by each warp of other blocks
  bool left() const;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int arrived = 0, threads = 0;  // at the cluster's barrier; that have not exited
  uint64_t turn = 0;
  Clock arriving, complete;
  void try_complete();
};

struct Grid {
  uint32_t blocks[3] = {1, 1, 1}, threads[3] = {1, 1, 1};
  int cluster = 1;
  size_t shared = 0;  // dynamic
  bool early = false;  // may begin before the previous launch has ended
  std::vector<char> params;
};

struct Settings {
  uint32_t shuffle = 0;  // seed of the order in which warps run; 0: by index
  uint32_t perturb = 0;  // seed of errors in approximations, within the documented bounds; 0: none
  int resident = 16;  // most blocks at once, or one cluster
  int races = 1;  // whether to look for races
  uint64_t steps = 4ull << 30;  // of warps, after which a launch is considered to hang
};

class Machine {
 public:
  Settings settings;
  std::map<uintptr_t, std::unique_ptr<Buffer>> buffers;  // by their first byte
  const Grid* grid = nullptr;
  const Program* program = nullptr;
  uint64_t steps = 0;
  int wait_entry = 0;  // of clocks: the entry for having passed griddepcontrol.wait
  bool waited = false;  // some warp of this launch has reached griddepcontrol.wait
  std::map<const void*, Clock> releases;  // what strong writes to a place release

  Buffer& add(void* data, size_t bytes, const std::string& name, bool writable = true, bool known = true);
  void remove(void* data);
  Buffer* find(uint64_t address) {
    if (last_ && address - reinterpret_cast<uintptr_t>(last_->data) < last_->bytes) return last_;
    auto at = buffers.upper_bound(address);
    if (at == buffers.begin()) return nullptr;
    Buffer& b = *(--at)->second;
    return address - reinterpret_cast<uintptr_t>(b.data) < b.bytes ? last_ = &b : nullptr;
  }
  // Throws a Fault.
  void launch(const Program& program, const Grid& grid);
  uint32_t random() { return random_ = random_ * 1664525u + 1013904223u, random_ >> 8; }

 private:
  void start(Cluster& cluster, uint32_t number, int first_slot);
  void finish_launch();
  [[noreturn]] void report_deadlock(const std::vector<Cluster*>& resident) const;

  Buffer* last_ = nullptr;
  uint32_t random_ = 1;
  std::vector<std::unique_ptr<char, void (*)(void*)>> registers_;
  size_t register_bytes_ = 0;
  std::vector<uint32_t> ticks_;  // per slot, kept from one block to the next
};

}  // namespace ptx
