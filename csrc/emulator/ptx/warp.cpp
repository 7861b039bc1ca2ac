// A warp: what its lanes know, and how they run.
#include <algorithm>

#include "code.h"

namespace ptx {

std::string lanes_text(uint32_t lanes) {
  if (lanes == kAll) return "all lanes";
  std::string text;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    int last = l;
    while (last < 31 && (lanes >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(l) + (last > l ? "-" + std::to_string(last) : "");
    l = last;
  }
  return (text.find_first_of(",-") == std::string::npos ? "lane " : "lanes ") + text;
}
std::string place_text(const Warp& w) { return "block " + std::to_string(w.block.index[0]) + ", warp " + std::to_string(w.index); }
std::string here(const Program& p, int pc) {
  const int line = p.code[static_cast<size_t>(pc)].line;
  return "line " + std::to_string(line) + ": " + p.text(line);
}

// -- a warp --------------------------------------------------------------------------------------------------------

Warp::Warp(Machine& machine, const Program& program, Block& block, int index, int slot, char* registers)
    : machine(machine),
      program(program),
      block(block),
      index(index),
      slot(slot),
      registers(registers),
      constants(program.constants.data()) {
  const Grid& grid = *machine.grid;
  const uint32_t* const n = grid.threads;
  const uint32_t threads = n[0] * n[1] * n[2], first = static_cast<uint32_t>(index) * 32;
  if (threads - first < 32) live = (1u << (threads - first)) - 1;
  local.resize(program.local * 32);
  Group all;
  all.lanes = live;
  groups.push_back(all);
  const std::map<std::string, uint32_t> alike = {{"%ntid.x", n[0]},
                                                 {"%ntid.y", n[1]},
                                                 {"%ntid.z", n[2]},
                                                 {"%ctaid.x", block.index[0]},
                                                 {"%ctaid.y", block.index[1]},
                                                 {"%ctaid.z", block.index[2]},
                                                 {"%nctaid.x", grid.blocks[0]},
                                                 {"%nctaid.y", grid.blocks[1]},
                                                 {"%nctaid.z", grid.blocks[2]},
                                                 {"%warpid", static_cast<uint32_t>(index)},
                                                 {"%smid", static_cast<uint32_t>(slot)},
                                                 {"%cluster_ctarank", static_cast<uint32_t>(block.rank)},
                                                 {"%cluster_ctaid.x", static_cast<uint32_t>(block.rank)},
                                                 {"%cluster_nctarank", static_cast<uint32_t>(grid.cluster)},
                                                 {"%cluster_nctaid.x", static_cast<uint32_t>(grid.cluster)},
                                                 {"%clusterid.x", block.index[0] / static_cast<uint32_t>(grid.cluster)},
                                                 {"%nclusterid.x", grid.blocks[0] / static_cast<uint32_t>(grid.cluster)}};
  for (const Special& special : program.specials)
    for (uint32_t l = 0; l < 32; ++l) {
      const uint32_t t = first + l, below = (1u << l) - 1;
      const std::string& s = special.name;
      const auto found = alike.find(s);
      at<uint32_t>(special.place)[l] = found != alike.end()  ? found->second
                                       : s == "%tid.x"       ? t % n[0]
                                       : s == "%tid.y"       ? t / n[0] % n[1]
                                       : s == "%tid.z"       ? t / n[0] / n[1]
                                       : s == "%laneid"      ? l
                                       : s == "%lanemask_lt" ? below
                                       : s == "%lanemask_eq" ? 1u << l
                                       : s == "%lanemask_le" ? below | 1u << l
                                       : s == "%lanemask_ge" ? ~below
                                                             : ~below & ~(1u << l);
    }
}

void Warp::fail(const std::string& what, uint32_t lanes) const {
  const int pc = group ? group->pc : 0;
  throw Fault(here(program, pc) + " - " + what + " (" + place_text(*this) + (lanes ? ", " + lanes_text(lanes) : "") + ")");
}

// -- what lanes know of others ------------------------------------------------------------------------------------

void Warp::learn(const Clock& what, uint32_t lanes) {
  if (lanes == live) return clock.join(what);
  if (!ahead_lanes) ahead = clock;
  ahead.join(what), ahead_lanes |= lanes;
}
Clock Warp::told(uint32_t lanes) {
  Clock what = known(__builtin_ctz(lanes));
  for (uint32_t rest = lanes; rest; rest &= rest - 1) what.join(known(__builtin_ctz(rest)));
  what.ticks[static_cast<size_t>(slot)] = lanes == live ? tick : synced - 1;
  if (lanes != live)
    for (uint32_t rest = lanes; rest; rest &= rest - 1) what.add(user(__builtin_ctz(rest), 0).now);
  ++tick;
  return what;
}
void Warp::sync() {
  if (ahead_lanes) clock.join(ahead), ahead.clear(), ahead_lanes = 0;
  synced = ++tick;
}

// -- undefined values ------------------------------------------------------------------------------------------------

void Warp::set_undefined(int32_t place, uint32_t lanes, const std::string& why) {
  Undefined& u = undefined[place];
  u.lanes |= lanes;
  if (u.why.empty()) u.why = why;
}
void Warp::set_defined(int32_t place, uint32_t lanes) {
  const auto found = undefined.find(place);
  if (found != undefined.end() && !(found->second.lanes &= ~lanes)) undefined.erase(found);
}
void Warp::require(int32_t place, uint32_t lanes, const char* what) const {
  const auto found = undefined.find(place);
  if (found != undefined.end() && (found->second.lanes & lanes))
    fail(std::string(what) + " depends on " + found->second.why, found->second.lanes & lanes);
}
void Warp::check_defined(const Instruction& i, uint32_t lanes) const {
  if (i.loads || i.stores) require(i.a, lanes, "an address");
  if (i.strict || i.flow == Flow::kAligned)
    for (int n = 0; n < i.read; ++n) require(program.places[i.places + i.written + static_cast<uint32_t>(n)], lanes, "this");
}
// A result computed from an undefined value is undefined, except for a selection that does not choose it.
void Warp::spread_undefined(const Instruction& i, uint32_t lanes) {
  if (i.loads) return;  // set by the load itself
  uint32_t from = 0;
  std::string why;
  const int32_t* const places = &program.places[i.places];
  for (int n = i.written; n < i.written + i.read; ++n) {
    const auto found = undefined.find(places[n]);
    if (found == undefined.end()) continue;
    uint32_t reached = found->second.lanes & lanes;
    if (i.selects && places[n] != i.c) {
      const uint32_t p = *at<uint32_t>(i.c);
      reached &= (i.a == places[n] ? p : 0) | (i.b == places[n] ? ~p : 0);
    }
    if (reached) from |= reached, why = found->second.why;
  }
  if (from && i.flow == Flow::kLanes) from = lanes;  // from any lane
  for (int n = 0; n < i.written; ++n) {
    set_defined(places[n], lanes & ~from);
    if (from) set_undefined(places[n], from, why);
  }
}

bool Warp::ready(const Group& g) const {
  switch (g.wait.kind) {
    case Wait::kNone:
      return true;
    case Wait::kPhase:
      return (g.wait.block->phases[g.wait.at].phase & 1) != g.wait.parity;
    case Wait::kCluster:
      return block.cluster->turn != cluster_turn;
    default:
      return false;
  }
}
bool Warp::can_run() const {
  for (const Group& g : groups)
    if (ready(g)) return true;
  return false;
}

// The ready group that is earliest in the text; at the start of a turn round-robin, so that none starves. -1: none.
size_t Warp::pick(bool first) const {
  size_t best = SIZE_MAX;
  const size_t n = groups.size();
  for (size_t k = 0; k < n; ++k) {
    const size_t at = first ? (k + turn_) % n : k;
    if (!ready(groups[at])) continue;
    if (first) return at;
    if (best == SIZE_MAX || groups[at].pc < groups[best].pc) best = at;
  }
  return best;
}

// Whether another group is at the same instruction and waits only for lanes.
bool Warp::joins(size_t at) const {
  for (size_t n = 0; n < groups.size(); ++n)
    if (n != at && groups[n].pc == groups[at].pc && (groups[n].wait.kind == Wait::kNone || groups[n].wait.kind == Wait::kLanes))
      return true;
  return false;
}
// Merges these groups; returns the index of the merged one.
size_t Warp::merge(size_t at) {
  for (size_t n = groups.size(); n-- > 0;) {
    if (n == at || groups[n].pc != groups[at].pc) continue;
    if (groups[n].wait.kind != Wait::kNone && groups[n].wait.kind != Wait::kLanes) continue;
    groups[at].lanes |= groups[n].lanes;
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(n));
    if (n < at) --at;
  }
  return at;
}

void Warp::leave(size_t at, uint32_t lanes) {
  group = &groups[at];
  live &= ~lanes;
  block.cluster->threads -= __builtin_popcount(lanes);
  const int line = program.code[static_cast<size_t>(groups[at].pc)].line;
  for (Group& g : groups)
    if (g.wait.kind == Wait::kLanes && (g.wait.lanes & lanes)) {
      group = &g;
      fail("waits for " + lanes_text(g.wait.lanes & ~g.lanes) + ", some of which have left (line " + std::to_string(line) + ")",
           g.lanes);
    }
  if (live == 0 && block.left()) {
    Clock known;
    for (const auto& warp : block.warps) known.join(warp->clock), known.join(warp->ahead);
    for (const auto& [visitor, event] : block.visits)
      if (!known.knows(event))
        fail("block " + std::to_string(block.rank) +
             " of the cluster leaves while another may still use its shared memory, at line " + std::to_string(event.line) + ": " +
             program.text(event.line));
  }
  block.cluster->try_complete();
}

// Runs an instruction that several lanes execute together if all of them are here; otherwise waits. Returns whether it ran.
bool Warp::meet(Group& g, const Instruction& i, uint32_t lanes) {
  if (i.flow == Flow::kAligned) {
    if (lanes != g.lanes) fail(".aligned, but guarded by a predicate that lanes differ in", lanes);
    if (lanes == live) {
      if (!undefined.empty()) check_defined(i, lanes);
      i.run(*this, i, lanes);
      return true;
    }
    g.wait.kind = Wait::kLanes, g.wait.lanes = live;
    return false;
  }
  const uint32_t* const masks = at<uint32_t>(i.c);
  uint32_t missing = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (!(masks[l] >> l & 1)) fail("a lane that its own mask does not name", 1u << l);
    uint32_t same = 0;
    for (uint32_t others = lanes; others; others &= others - 1)
      if (masks[__builtin_ctz(others)] == masks[l]) same |= 1u << __builtin_ctz(others);
    missing |= masks[l] & ~same;
    if (masks[l] == kAll && same == kAll) break;
  }
  if (missing & ~live)
    fail("its mask names " + lanes_text(missing & ~live) + (program.code.empty() ? "" : ", absent: not started, or left"), lanes);
  if (missing) {
    g.wait.kind = Wait::kLanes, g.wait.lanes = lanes | missing;
    return false;
  }
  for (uint32_t rest = lanes; rest;) {
    const uint32_t mask = masks[__builtin_ctz(rest)];
    if (!undefined.empty()) require(i.c, mask, "a mask");
    i.run(*this, i, mask);
    if (!undefined.empty()) spread_undefined(i, mask);
    rest &= ~mask;
  }
  return true;
}

bool Warp::run(int budget) {
  bool any = false;
  ++turn_;
  for (bool first = true; budget > 0 && !groups.empty(); first = false) {
    size_t at = pick(first && groups.size() > 1);
    if (at == SIZE_MAX) return any;
    groups[at].wait = Wait();
    if (groups.size() > 1) at = merge(at);
    const bool alone = groups.size() == 1;
    group = &groups[at];
    for (bool stop = false; !stop && budget > 0; --budget, ++machine.steps) {
      Group& g = *group;
      const Instruction& i = program.code[static_cast<size_t>(g.pc)];
      uint32_t lanes = g.lanes;
      if (i.guarded) {
        const uint32_t p = *this->at<uint32_t>(i.guard);
        if (!undefined.empty()) require(i.guard, lanes, i.flow == Flow::kBranch ? "a branch" : "a predicate");
        lanes &= i.unless ? ~p : p;
      }
      if (lanes) program.ran[static_cast<size_t>(g.pc)] = 1;
      switch (i.flow) {
        case Flow::kPlain:
          if (lanes) {
            if (!undefined.empty()) check_defined(i, lanes);
            i.run(*this, i, lanes);
            if (!undefined.empty()) spread_undefined(i, lanes);
            if (wait.kind) {
              if (lanes != g.lanes) fail("waits under a predicate that lanes differ in", lanes);
              g.wait = wait, wait = Wait(), stop = true;
              continue;
            }
          }
          ++g.pc;
          break;
        case Flow::kBranch: {
          const uint32_t rest = g.lanes & ~lanes;
          if (!lanes) {
            ++g.pc;
          } else if (!rest) {
            g.pc = i.target;
          } else {
            Group other;
            other.pc = i.target, other.lanes = lanes;
            ++g.pc, g.lanes = rest;
            groups.push_back(other);
            stop = true;
          }
          if (!alone) stop = true;
          break;
        }
        case Flow::kExit: {
          if (!lanes) {
            ++g.pc;
            break;
          }
          const uint32_t rest = g.lanes & ~lanes;
          g.lanes = lanes;
          leave(at, lanes);
          if (rest) groups[at].lanes = rest, ++groups[at].pc;
          else groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(at));
          stop = true;
          break;
        }
        default:
          if (!lanes) {
            ++g.pc;
            break;
          }
          if (joins(at)) {  // others wait here: join them, from the start
            stop = true;
            break;
          }
          if (i.flow == Flow::kLanes && lanes != g.lanes) {  // lanes that are not involved continue
            Group other;
            other.pc = g.pc + 1, other.lanes = g.lanes & ~lanes;
            g.lanes = lanes;
            groups.push_back(other);
            stop = true;
            break;
          }
          if (!meet(g, i, lanes)) {
            stop = true;
            break;
          }
          if (wait.kind) {
            g.wait = wait, wait = Wait(), stop = true;
          } else {
            ++g.pc;
            if (then.kind) g.wait = then, then = Wait(), stop = true;
          }
      }
      any = true;
      if (!alone && !stop && program.code[static_cast<size_t>(group->pc)].head) stop = true;
    }
    group = nullptr;
  }
  return any;
}

}  // namespace ptx
