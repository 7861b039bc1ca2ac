// Clusters, the order in which warps run, and the report when none can go on.
#include <algorithm>
#include <cstdlib>

#include "code.h"

namespace ptx {

// -- blocks, clusters ----------------------------------------------------------------------------------------------

bool Block::left() const {
  for (const auto& warp : warps)
    if (warp->live) return false;
  return true;
}

void Cluster::try_complete() {
  if (arrived == 0 || arrived < threads) return;
  ++turn, arrived = 0;
  complete = arriving;
  arriving.clear();
}

// -- the machine ---------------------------------------------------------------------------------------------------

Buffer& Machine::add(void* data, size_t bytes, const std::string& name, bool writable, bool known) {
  auto b = std::make_unique<Buffer>();
  b->data = static_cast<char*>(data), b->bytes = bytes, b->name = name, b->writable = writable, b->known = known;
  last_ = nullptr;
  return *(buffers[reinterpret_cast<uintptr_t>(data)] = std::move(b));
}
void Machine::remove(void* data) {
  last_ = nullptr;
  buffers.erase(reinterpret_cast<uintptr_t>(data));
}

void Machine::start(Cluster& cluster, uint32_t number, int first_slot) {
  const uint32_t threads = grid->threads[0] * grid->threads[1] * grid->threads[2];
  const int warps = static_cast<int>((threads + 31) / 32);
  cluster.threads = static_cast<int>(threads) * grid->cluster;
  for (int rank = 0; rank < grid->cluster; ++rank) {
    cluster.blocks.push_back(std::make_unique<Block>());
    Block& block = *cluster.blocks.back();
    block.cluster = &cluster, block.rank = rank;
    const uint32_t flat = number * static_cast<uint32_t>(grid->cluster) + static_cast<uint32_t>(rank);
    block.index[0] = flat % grid->blocks[0], block.index[1] = flat / grid->blocks[0] % grid->blocks[1];
    block.index[2] = flat / grid->blocks[0] / grid->blocks[1];
    block.memory.resize(program->shared + grid->shared);
    for (char& c : block.memory) c = static_cast<char>(random());  // as left by the previous owner
    block.shadow = std::make_unique<Shadow>(block.memory.size(), false);
    for (int n = 0; n < warps; ++n) {
      const int slot = first_slot + rank * warps + n;
      while (static_cast<int>(registers_.size()) <= slot) {
        char* const memory = static_cast<char*>(std::calloc(register_bytes_ + 256, 1));  // untouched pages cost nothing
        if (!memory) throw std::bad_alloc();
        registers_.emplace_back(memory, std::free);
        ticks_.push_back(0);
      }
      char* const memory = registers_[static_cast<size_t>(slot)].get();
      char* const aligned = memory + (256 - reinterpret_cast<uintptr_t>(memory) % 256) % 256;
      block.warps.push_back(std::make_unique<Warp>(*this, *program, block, n, slot, aligned));
      Warp& w = *block.warps.back();
      w.clock.ticks.assign(static_cast<size_t>(wait_entry) + 1, 0);
      w.first = w.tick = w.synced = ++ticks_[static_cast<size_t>(slot)];
    }
  }
}

void Machine::finish_launch() {
  for (auto& [address, b] : buffers) {
    if (b->shadow) b->shadow->forget_uses();
    if (waited || b->pending.empty()) b->pending = std::move(b->written);
    else
      for (size_t n = 0; n < b->written.size(); ++n) b->pending[n] |= b->written[n];
    b->written.clear(), b->stored = b->constant = 0;
  }
  releases.clear();
  grid = nullptr, program = nullptr;
}

void Machine::launch(const Program& what, const Grid& how) {
  const uint32_t threads = how.threads[0] * how.threads[1] * how.threads[2];
  const uint64_t blocks = static_cast<uint64_t>(how.blocks[0]) * how.blocks[1] * how.blocks[2];
  if (threads == 0 || threads > 1024 || (what.block_limit && threads > static_cast<uint32_t>(what.block_limit)))
    throw Fault("a block of " + std::to_string(threads) + " threads; the kernel allows " +
                std::to_string(what.block_limit ? what.block_limit : 1024));
  if (how.cluster < 1 || how.cluster > 8 || how.blocks[0] % static_cast<uint32_t>(how.cluster))
    throw Fault("clusters of " + std::to_string(how.cluster) + " blocks in a grid of " + std::to_string(how.blocks[0]));
  if (how.cluster > 1 && what.version < 90) throw Fault("a cluster before sm_90");
  if (how.params.size() != what.params)
    throw Fault(std::to_string(how.params.size()) + " bytes of parameters, the kernel has " + std::to_string(what.params));
  if (program != nullptr) throw Fault("a launch within a launch");
  if (register_bytes_ < what.register_bytes) registers_.clear(), ticks_.clear(), register_bytes_ = what.register_bytes;
  grid = &how, program = &what, random_ = settings.shuffle * 2654435761u + 1, waited = !how.early, steps = 0;
  if (!how.early)
    for (auto& [address, b] : buffers) b->pending.clear();
  const int warps = static_cast<int>((threads + 31) / 32) * how.cluster;
  const uint32_t clusters = static_cast<uint32_t>(blocks / static_cast<uint32_t>(how.cluster));
  const size_t at_once = std::min<size_t>(clusters, std::max<size_t>(1, static_cast<size_t>(settings.resident / how.cluster)));
  wait_entry = static_cast<int>(at_once) * warps;
  try {
    std::vector<std::unique_ptr<Cluster>> resident(at_once);
    std::vector<Warp*> order;
    uint32_t next = 0;
    for (;;) {
      bool changed = false, progress = false, all = true;
      for (size_t n = 0; n < at_once; ++n) {
        if (resident[n] && resident[n]->threads == 0) {
          for (const auto& block : resident[n]->blocks)
            for (const auto& warp : block->warps) ticks_[static_cast<size_t>(warp->slot)] = warp->tick + 1;
          resident[n].reset(), changed = true;
        }
        if (!resident[n] && next < clusters) {
          resident[n] = std::make_unique<Cluster>();
          start(*resident[n], next++, static_cast<int>(n) * warps), changed = true;
        }
        all &= !resident[n];
      }
      if (all) break;
      if (changed) {
        order.clear();
        for (const auto& cluster : resident)
          if (cluster)
            for (const auto& block : cluster->blocks)
              for (const auto& warp : block->warps) order.push_back(warp.get());
      }
      if (settings.shuffle)
        for (size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[random() % n]);
      for (Warp* warp : order)
        if (warp->live) progress |= warp->run(settings.shuffle ? 20 + static_cast<int>(random() % 2000) : 20000);
      if (!progress) {
        std::vector<Cluster*> stuck;
        for (const auto& cluster : resident)
          if (cluster) stuck.push_back(cluster.get());
        report_deadlock(stuck);
      }
      if (steps > settings.steps) throw Fault("no end after " + std::to_string(steps) + " instructions of warps");
    }
  } catch (...) {
    finish_launch();
    throw;
  }
  finish_launch();
}

// Reports the cause: lanes that must run together but have diverged; otherwise what each warp waits for.
void Machine::report_deadlock(const std::vector<Cluster*>& resident) const {
  std::string text;
  int told = 0;
  for (const Cluster* cluster : resident)
    for (const auto& block : cluster->blocks)
      for (const auto& warp : block->warps)
        for (const Group& g : warp->groups) {
          const Instruction& i = program->code[static_cast<size_t>(g.pc)];
          if (g.wait.kind == Wait::kLanes) {
            std::string others;
            for (const Group& other : warp->groups)
              if (&other != &g)
                others += "; " + lanes_text(other.lanes) + " wait behind line " +
                          std::to_string(program->code[static_cast<size_t>(other.pc)].line);
            throw Fault(
                here(*program, g.pc) + " - " +
                (i.flow == Flow::kAligned ? ".aligned, but reached divergently" : "deadlock: not all lanes of its mask come") +
                ", by " + lanes_text(g.lanes) + others + " (" + place_text(*warp) + ")");
          }
          const int at = g.wait.kind == Wait::kBarrier && g.pc > 0 ? g.pc - 1 : g.pc;
          if (++told > 6) continue;
          text += (text.empty() ? "" : "; ") + place_text(*warp) + " waits at " + here(*program, at);
          if (g.wait.kind == Wait::kBarrier) {
            const NamedBarrier& b = block->barriers[g.wait.barrier];
            text += ", barrier " + std::to_string(g.wait.barrier) + ": " + std::to_string(b.arrived) + " of " +
                    std::to_string(b.count) + " threads have come";
          }
          if (g.wait.kind == Wait::kPhase) {
            const MBarrier& b = g.wait.block->phases[g.wait.at];
            text += ", mbarrier: " + std::to_string(b.expected - b.pending) + " of " + std::to_string(b.expected) +
                    " arrivals have come";
          }
        }
  for (const Cluster* cluster : resident)
    for (const auto& block : cluster->blocks) {
      int gone = 0;
      for (const auto& warp : block->warps) gone += !warp->live;
      if (gone)
        text += "; of block " + std::to_string(block->index[0]) +
                (gone == static_cast<int>(block->warps.size()) ? " all warps" : " " + std::to_string(gone) + " warps") +
                " have left";
    }
  throw Fault("deadlock: " + text);
}

}  // namespace ptx
