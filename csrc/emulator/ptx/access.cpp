// Whether a lane may access an address, and how the access is ordered with others.
#include <cstdio>
#include <cstring>

#include "table.h"

namespace ptx {
std::string hex(uint64_t x) {
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

namespace {
const char* name_of(Use use) {
  return use == Use::kRead ? "read" : use == Use::kWrite ? "write" : use == Use::kAtomic ? "atomic" : "volatile read";
}

}  // namespace

Place in_shared(Warp& w, const Instruction& i, uint32_t address, int bytes, int lane) {
  const uint32_t rank = address >> kRankShift, at = address & ((1u << kRankShift) - 1);
  Block* block = &w.block;
  if (rank) {
    const auto& blocks = w.block.cluster->blocks;
    if (rank > blocks.size())
      w.fail("shared memory of block " + std::to_string(rank - 1) + ", which the cluster does not have", 1u << lane);
    block = blocks[rank - 1].get();
  }
  const bool remote = block != &w.block;
  if (remote && i.space == Space::kShared) w.fail("ld or st.shared of another block's shared memory", 1u << lane);
  if (at < kSharedBase || at + static_cast<uint32_t>(bytes) > block->memory.size())
    w.fail("out of bounds: " + std::to_string(bytes) + " bytes at " + hex(at) + " of " + std::to_string(block->memory.size()) +
               " bytes of shared memory",
           1u << lane);
  if (remote) {
    const std::string of = "shared memory of block " + std::to_string(block->rank) + " of the cluster, which ";
    if (block->left()) w.fail(of + "has left", 1u << lane);
    bool knows = false;
    for (const auto& other : block->warps) knows |= w.known(lane).knows_any(static_cast<size_t>(other->slot), other->first);
    if (!knows) w.fail(of + "need not have begun", 1u << lane);
    block->visits[w.slot] = w.user(lane, i.line).now;
  }
  return Place{block->memory.data() + at, nullptr, block, at, 0};
}

namespace {
Place in_global(Warp& w, const Instruction& i, uint64_t address, int bytes, int lane) {
  Buffer* b = w.machine.find(address);
  const size_t at = b ? address - reinterpret_cast<uintptr_t>(b->data) : 0;
  if (!b || at + static_cast<size_t>(bytes) > b->bytes) {
    std::string what = "out of bounds: " + std::to_string(bytes) + " bytes at " + hex(address);
    if (b) what += ", " + std::to_string(at) + " bytes into " + b->name + " of " + std::to_string(b->bytes);
    else {
      auto after = w.machine.buffers.upper_bound(address);
      if (after != w.machine.buffers.begin()) {
        const Buffer& before = *std::prev(after)->second;
        what += ", " + std::to_string(address - reinterpret_cast<uintptr_t>(before.data) - before.bytes) + " bytes behind " +
                before.name + " of " + std::to_string(before.bytes);
      }
    }
    w.fail(what, 1u << lane);
  }
  if (writes(i.use) && !b->writable) w.fail("a write to " + b->name + ", which may only be read", 1u << lane);
  if (!b->pending.empty() && w.known(lane).ticks[static_cast<size_t>(w.machine.wait_entry)] == 0)
    for (int n = 0; n < bytes; ++n)
      if (b->pending[at + static_cast<size_t>(n)])
        w.fail(
            std::string("a ") + name_of(i.use) + " of what the launch before wrote to " + b->name + ", without griddepcontrol.wait",
            1u << lane);
  int& mine = writes(i.use) ? b->stored : b->constant;
  const int other = writes(i.use) ? b->constant : b->stored;
  if (writes(i.use) || i.constant) {
    mine = i.line;
    if (other && (i.constant || writes(i.use)))
      w.fail("ld.global.nc of " + b->name + ", which this launch writes; see line " + std::to_string(other), 1u << lane);
  }
  return Place{b->data + at, b, nullptr, at, 0};
}

}  // namespace

std::string name_of(const Warp& w, const Place& p) {
  if (p.buffer) return "byte " + std::to_string(p.at) + " of " + p.buffer->name;
  return "byte " + std::to_string(p.at - kSharedBase) + " of " + (p.block == &w.block ? "" : "another block's ") + "shared memory";
}
Shadow& shadow_of(const Place& p) {
  std::unique_ptr<Shadow>& held = p.block ? p.block->shadow : p.buffer->shadow;
  if (!held) held = std::make_unique<Shadow>(p.buffer->bytes, p.buffer->known);
  return *held;
}

uint32_t note(Warp& w, const Instruction& i, const Place& p, int bytes, int lane, const char* value) {
  Shadow& shadow = shadow_of(p);
  const uint32_t unwritten = i.use == Use::kWrite ? 0 : shadow.unwritten(p.at, bytes, i.used);
  if (writes(i.use)) {
    shadow.set_written(p.at, bytes);
    if (p.buffer) p.buffer->note_stored(p.at, bytes);
  }
  if (!w.machine.settings.races) return unwritten;
  const User user = w.user(lane, i.line);
  const Event &now = user.now, *const found = shadow.use(p.at, bytes, i.used, i.use, user);
  if (!found) return unwritten;
  // Lanes that write the same value to one place in one instruction do not conflict.
  if (found->warp == now.warp && found->line == now.line && i.use == Use::kWrite && value &&
      std::memcmp(value, p.host, static_cast<size_t>(bytes)) == 0)
    return unwritten;
  const std::string who = found->warp == now.warp ? "lane " + std::to_string(found->lane) + " of the same warp" : "another warp";
  w.fail(std::string("race: a ") + name_of(i.use) + " of " + name_of(w, p) + "; line " + std::to_string(found->line) + " (" +
             w.program.text(found->line) + ") used it in " + who + ", and nothing orders the two",
         1u << lane);
}
uint64_t address_of(const Warp& w, const Instruction& i, int lane) {
  const uint64_t base = i.width == 4 ? w.at<uint32_t>(i.a)[lane] : w.at<uint64_t>(i.a)[lane];
  return base + static_cast<uint64_t>(i.offset);
}

Place locate(Warp& w, const Instruction& i, uint64_t address, int bytes, int lane, const char* value) {
  if (address & static_cast<uint64_t>(bytes - 1))
    w.fail("misaligned: " + std::to_string(bytes) + " bytes at " + hex(address), 1u << lane);
  uint64_t window = address & kWindow;
  Space space = i.space;
  if (space == Space::kGeneric) {
    space = window == kSharedWindow  ? Space::kCluster
            : window == kLocalWindow ? Space::kLocal
            : window == kParamWindow ? Space::kParam
                                     : Space::kGlobal;
    if (space != Space::kGlobal) address &= ~kWindow;
  }
  if (space == Space::kShared || space == Space::kCluster) {
    if (address >> 32) w.fail("out of bounds: not an address of shared memory: " + hex(address), 1u << lane);
    Place p = in_shared(w, i, static_cast<uint32_t>(address), bytes, lane);
    p.unwritten = note(w, i, p, bytes, lane, value);
    return p;
  }
  if (space == Space::kGlobal || space == Space::kConst) {
    Place p = in_global(w, i, address, bytes, lane);
    if (!i.constant || !p.buffer->known) p.unwritten = note(w, i, p, bytes, lane, value);
    return p;
  }
  const bool local = space == Space::kLocal;
  const size_t size = local ? w.program.local : w.machine.grid->params.size();
  if (address + static_cast<uint64_t>(bytes) > size)
    w.fail("out of bounds: " + std::to_string(bytes) + " bytes at " + std::to_string(address) + " of " + std::to_string(size) +
               (local ? " of local memory" : " of the parameters"),
           1u << lane);
  if (local) return Place{w.local.data() + static_cast<size_t>(lane) * size + address, nullptr, nullptr, 0, 0};
  if (writes(i.use)) w.fail("a write to a parameter", 1u << lane);
  return Place{const_cast<char*>(w.machine.grid->params.data()) + address, nullptr, nullptr, 0, 0};
}

}  // namespace ptx
