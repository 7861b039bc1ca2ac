// The table's instructions that involve several lanes, warps, blocks or launches.
#include <algorithm>

#include "table.h"

namespace ptx {
namespace {

// -- lanes ---------------------------------------------------------------------------------------------------------

void sync_warp(Warp& w, const Instruction&, uint32_t lanes) {
  if (lanes == w.live) w.sync();  // the ordering within part of the lanes is not tracked
}

enum Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };
void shuffle(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t *const a = w.at<uint32_t>(i.a), *const b = w.at<uint32_t>(i.b), *const clamp = w.at<uint32_t>(i.e[0]);
  uint32_t result[32], inside = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest), by = static_cast<int>(b[l] & 31);
    const int segment = static_cast<int>(clamp[l] >> 8 & 31), limit = static_cast<int>(clamp[l] & 31);
    const int last = (l & segment) | (limit & ~segment & 31), first = l & segment;
    int from = i.kind == kUp ? l - by : i.kind == kDown ? l + by : i.kind == kButterfly ? l ^ by : first | (by & ~segment & 31);
    const bool in = i.kind == kUp ? from >= last : from <= last;
    if (!in) from = l;
    if (!(lanes >> from & 1)) w.fail("a shuffle from lane " + std::to_string(from) + ", which takes no part in it", 1u << l);
    result[l] = a[from], inside |= static_cast<uint32_t>(in) << l;
  }
  uint32_t* const d = w.at<uint32_t>(i.d);
  each(lanes, [&](int l) { d[l] = result[l]; });
  if (i.count > 1) set_predicate(w.at<uint32_t>(i.e[1]), lanes, inside);
}

void ballot(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t votes = *w.at<uint32_t>(i.a) & lanes;
  each(lanes, [&](int l) { w.at<uint32_t>(i.d)[l] = votes; });
}
enum Vote : uint8_t { kEvery, kAny, kUniform };
void vote(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t votes = *w.at<uint32_t>(i.a) & lanes;
  const bool yes = i.kind == kEvery ? votes == lanes : i.kind == kAny ? votes != 0 : votes == 0 || votes == lanes;
  set_predicate(w.at<uint32_t>(i.d), lanes, yes ? kAll : 0);
}
template <class T>
void match_any(Warp& w, const Instruction& i, uint32_t lanes) {
  const T* const a = w.at<T>(i.a);
  uint32_t result[32];
  for (int l = 0; l < 32; ++l) {
    result[l] = 0;
    for (int other = 0; other < 32; ++other)
      if ((lanes >> other & 1) && a[other] == a[l]) result[l] |= 1u << other;
  }
  each(lanes, [&](int l) { w.at<uint32_t>(i.d)[l] = result[l]; });
}
enum Reduction : uint8_t { kSum, kLeast, kMost, kAllOf, kAnyOf, kOdd };
template <class T>
void reduce(Warp& w, const Instruction& i, uint32_t lanes) {
  const T* const a = w.at<T>(i.a);
  T result = a[__builtin_ctz(lanes)];
  for (uint32_t rest = lanes & (lanes - 1); rest; rest &= rest - 1) {
    const T b = a[__builtin_ctz(rest)];
    switch (static_cast<Reduction>(i.kind)) {
      case kSum:
        result = static_cast<T>(static_cast<uint32_t>(result) + static_cast<uint32_t>(b));
        break;
      case kLeast:
        result = std::min(result, b);
        break;
      case kMost:
        result = std::max(result, b);
        break;
      case kAllOf:
        result &= b;
        break;
      case kAnyOf:
        result |= b;
        break;
      case kOdd:
        result ^= b;
        break;
    }
  }
  each(lanes, [&](int l) { w.at<T>(i.d)[l] = result; });
}
void active_lanes(Warp& w, const Instruction& i, uint32_t lanes) {
  each(lanes, [&](int l) { w.at<uint32_t>(i.d)[l] = lanes; });
}

// -- a block's barriers --------------------------------------------------------------------------------------------

// The value that is equal in all these lanes.
uint32_t uniform(Warp& w, int32_t place, uint32_t lanes, const char* what) {
  const uint32_t* const a = w.at<uint32_t>(place);
  const uint32_t value = a[__builtin_ctz(lanes)];
  for (uint32_t rest = lanes; rest; rest &= rest - 1)
    if (a[__builtin_ctz(rest)] != value) w.fail(std::string("lanes that differ in ") + what, lanes);
  return value;
}

template <bool kWaits>
void barrier(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t number = uniform(w, i.a, lanes, "the barrier's number");
  int threads = 0;
  for (const auto& warp : w.block.warps) threads += __builtin_popcount(warp->live);
  const int all = static_cast<int>(w.block.warps.size()) * 32;
  const int count = i.count > 1 ? static_cast<int>(uniform(w, i.b, lanes, "the barrier's count")) : (threads + 31) / 32 * 32;
  if (number > 15) w.fail("barrier " + std::to_string(number) + " of 16");
  NamedBarrier& b = w.block.barriers[number];
  const std::string name = "barrier " + std::to_string(number);
  if (count <= 0 || count % 32) w.fail(name + " for " + std::to_string(count) + " threads, which are no whole warps");
  if (count > all) w.fail(name + " for " + std::to_string(count) + " threads, of which the block has " + std::to_string(all));
  if (b.count && b.count != count)
    w.fail(name + " for " + std::to_string(count) + " threads, while others wait at it for " + std::to_string(b.count) + " (line " +
           std::to_string(b.line) + ")");
  if (!b.count) b.count = count, b.line = i.line;
  b.arrived += 32;
  w.sync();
  b.clock.join(w.told(lanes));
  if (b.arrived < count) {
    if (kWaits) w.then.kind = Wait::kBarrier, w.then.barrier = static_cast<int>(number);
    return;
  }
  for (const auto& warp : w.block.warps)
    for (Group& g : warp->groups)
      if (g.wait.kind == Wait::kBarrier && g.wait.barrier == static_cast<int>(number)) g.wait = Wait(), warp->clock.join(b.clock);
  if (kWaits) w.clock.join(b.clock);
  b = NamedBarrier();
}

// -- a cluster's barriers ------------------------------------------------------------------------------------------

void cluster_arrive(Warp& w, const Instruction& i, uint32_t lanes) {
  Cluster& cluster = *w.block.cluster;
  if (w.cluster_arrived) w.fail("a second barrier.cluster.arrive without a wait between", lanes);
  w.cluster_arrived = true, w.cluster_turn = cluster.turn;
  cluster.arrived += __builtin_popcount(lanes);
  if (i.release) cluster.arriving.join(w.told(lanes));
  cluster.try_complete();
}
void cluster_wait(Warp& w, const Instruction& i, uint32_t lanes) {
  Cluster& cluster = *w.block.cluster;
  if (!w.cluster_arrived) w.fail("barrier.cluster.wait before arrive", lanes);
  if (cluster.turn == w.cluster_turn) {
    w.wait.kind = Wait::kCluster;
    return;
  }
  w.cluster_arrived = false;
  if (i.acquire) w.learn(cluster.complete, lanes);
}

// -- mbarriers -----------------------------------------------------------------------------------------------------

uint32_t shared_address(Warp& w, const Instruction& i, int lane) {
  uint64_t a = address_of(w, i, lane);
  if ((a & kWindow) == kSharedWindow) a &= ~kWindow;
  if (a >> 32) w.fail("out of bounds: an mbarrier that is not in shared memory", 1u << lane);
  if (a & 7) w.fail("misaligned: an mbarrier", 1u << lane);
  return static_cast<uint32_t>(a);
}
MBarrier& mbarrier_at(Warp& w, const Instruction& i, int lane, Place& p) {
  p = in_shared(w, i, shared_address(w, i, lane), 8, lane);
  note(w, i, p, 8, lane, nullptr);
  const auto found = p.block->phases.find(static_cast<uint32_t>(p.at));
  if (found == p.block->phases.end()) w.fail("an mbarrier that was not initialised", 1u << lane);
  return found->second;
}
void mbarrier_init(Warp& w, const Instruction& i, uint32_t lanes) {
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const Place p = in_shared(w, i, shared_address(w, i, l), 8, l);
    note(w, i, p, 8, l, nullptr);
    const uint32_t count = w.at<uint32_t>(i.b)[l];
    if (count == 0 || count >= 1u << 20) w.fail("an mbarrier for " + std::to_string(count) + " arrivals", 1u << l);
    MBarrier& b = p.block->phases[static_cast<uint32_t>(p.at)];
    b = MBarrier();
    b.expected = b.pending = count;
  }
}
void mbarrier_arrive(Warp& w, const Instruction& i, uint32_t lanes) {
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Place p;
    MBarrier& b = mbarrier_at(w, i, l, p);
    if (i.release) b.arrived.join(w.told(1u << l));
    if (--b.pending == 0) ++b.phase, b.pending = b.expected, b.complete = b.arrived;
  }
}
template <bool kMayWait>
void mbarrier_wait(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t complete = 0;
  Clock learned;
  Place first{};
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Place p;
    const MBarrier& b = mbarrier_at(w, i, l, p);
    if (!first.block) first = p;
    if ((b.phase & 1) == w.at<uint32_t>(i.b)[l]) continue;
    complete |= 1u << l;
    if (i.acquire) learned.join(b.complete);
  }
  if (kMayWait && !complete) {
    w.wait.kind = Wait::kPhase, w.wait.block = first.block, w.wait.at = static_cast<uint32_t>(first.at);
    w.wait.parity = w.at<uint32_t>(i.b)[__builtin_ctz(lanes)];
    return;
  }
  if (complete && i.acquire) w.learn(learned, complete);
  set_predicate(w.at<uint32_t>(i.d), lanes, complete);
}

// -- launches, fences ----------------------------------------------------------------------------------------------

void await_launch_before(Warp& w, const Instruction&, uint32_t lanes) {
  Clock over;
  over.ticks.resize(static_cast<size_t>(w.machine.wait_entry) + 1);
  over.ticks.back() = 1, w.machine.waited = true;
  w.learn(over, lanes);
}
void nothing(Warp&, const Instruction&, uint32_t) {}
void fence(Warp& w, const Instruction&, uint32_t lanes) {
  w.learn(w.seen, lanes), w.seen.clear();
  w.fenced = w.told(lanes);
}

}  // namespace

void add_meetings(Table& table) {
  const auto lanes = [](Decoder& c, size_t mask) { c.i->flow = Flow::kLanes, c.i->c = c.source(mask, 4); };
  table["bar.warp.sync"] = [=](Decoder& c) {
    c.operands(1);
    lanes(c, 0), c.i->run = sync_warp;
  };
  const std::pair<const char*, Shuffle> shuffles[] = {{"up", kUp}, {"down", kDown}, {"bfly", kButterfly}, {"idx", kIndex}};
  for (const auto& [name, how] : shuffles) {
    const Shuffle kind = how;
    table[std::string("shfl.sync.") + name] = [=](Decoder& c) {
      c.operands(5);
      c.i->d = c.target(0, 4), c.i->a = c.source(1, 4), c.i->b = c.source(2, 4), c.i->e[0] = c.source(3, 4);
      lanes(c, 4), c.i->kind = kind, c.i->run = shuffle;
      if (c.operand(0).also.empty()) return;
      Operand also;
      also.kind = Operand::kName, also.name = c.operand(0).also;
      c.i->count = 2, c.i->e[1] = c.place(also, 0, true);
    };
  }
  table["vote.sync.ballot"] = [=](Decoder& c) {
    c.operands(3);
    c.i->d = c.target(0, 4), c.i->a = c.source(1, 0), lanes(c, 2), c.i->run = ballot;
  };
  const std::pair<const char*, Vote> votes[] = {{"all", kEvery}, {"any", kAny}, {"uni", kUniform}};
  for (const auto& [name, how] : votes) {
    const Vote kind = how;
    table[std::string("vote.sync.") + name] = [=](Decoder& c) {
      c.operands(3);
      c.i->d = c.target(0, 0), c.i->a = c.source(1, 0), lanes(c, 2), c.i->kind = kind, c.i->run = vote;
    };
  }
  table["match.any.sync"] = [=](Decoder& c) {
    c.operands(3);
    c.i->d = c.target(0, 4), c.i->a = c.source(1, c.type.bytes()), lanes(c, 2);
    c.i->run = c.type.bits == 32 ? Action(match_any<uint32_t>) : match_any<uint64_t>;
  };
  const std::pair<const char*, Reduction> reductions[] = {{"add", kSum},   {"min", kLeast}, {"max", kMost},
                                                          {"and", kAllOf}, {"or", kAnyOf},  {"xor", kOdd}};
  for (const auto& [name, how] : reductions) {
    const Reduction kind = how;
    table[std::string("redux.sync.") + name] = [=](Decoder& c) {
      c.operands(3);
      if (!is_integer(c.type) || c.type.bits != 32) c.fail("unknown type");
      c.i->d = c.target(0, 4), c.i->a = c.source(1, 4), lanes(c, 2), c.i->kind = kind;
      c.i->run = c.type.kind == 's' ? Action(reduce<int32_t>) : reduce<uint32_t>;
    };
  }
  table["activemask"] = [](Decoder& c) {
    c.operands(1);
    c.i->d = c.target(0, 4), c.i->run = active_lanes;
  };

  const auto barriers = [&](const char* name, Action action) {
    table[name] = [=](Decoder& c) {
      c.operands(1, 2);
      c.i->flow = Flow::kAligned, c.i->a = c.source(0, 4), c.i->run = action;
      if (c.count() > 1) c.i->count = 2, c.i->b = c.source(1, 4);
    };
  };
  for (const char* name : {"bar.sync", "barrier.sync.aligned"}) barriers(name, barrier<true>);
  for (const char* name : {"bar.arrive", "barrier.arrive.aligned"}) barriers(name, barrier<false>);

  for (const char* name :
       {"barrier.cluster.arrive.aligned", "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned"}) {
    const bool release = std::string(name).find("relaxed") == std::string::npos;
    table[name] = [=](Decoder& c) { c.i->flow = Flow::kAligned, c.i->release = release, c.i->run = cluster_arrive; };
  }
  for (const char* name : {"barrier.cluster.wait.aligned", "barrier.cluster.wait.acquire.aligned"})
    table[name] = [](Decoder& c) { c.i->flow = Flow::kAligned, c.i->acquire = true, c.i->run = cluster_wait; };

  const std::pair<const char*, Space> spaces[] = {
      {"", Space::kCluster}, {".shared", Space::kShared}, {".shared::cta", Space::kShared}, {".shared::cluster", Space::kCluster}};
  for (const auto& [space, where] : spaces) {
    const Space in = where;
    table[std::string("mbarrier.init") + space] = [=](Decoder& c) {
      c.operands(2);
      c.i->space = in, c.i->use = Use::kWrite, c.i->strict = true;
      c.address(0), c.i->b = c.source(1, 4), c.i->run = mbarrier_init;
    };
    for (const char* order : {"", ".release.cta", ".release.cluster", ".relaxed.cta", ".relaxed.cluster"}) {
      const bool release = std::string(order).find("relaxed") == std::string::npos;
      table[std::string("mbarrier.arrive") + order + space] = [=](Decoder& c) {
        c.operands(2);
        if (c.operand(0).name != "_") c.fail("the state that an arrival returns");
        c.i->space = in, c.i->use = Use::kAtomic, c.i->release = release, c.i->strict = true;
        c.address(1), c.i->run = mbarrier_arrive;
      };
    }
    for (const char* wait : {"try_wait", "test_wait"})
      for (const char* order : {"", ".acquire.cta", ".acquire.cluster", ".relaxed.cta", ".relaxed.cluster"}) {
        const bool acquire = std::string(order).find("relaxed") == std::string::npos, may_wait = wait[1] == 'r';
        table[std::string("mbarrier.") + wait + ".parity" + order + space] = [=](Decoder& c) {
          c.operands(3);
          c.i->space = in, c.i->use = Use::kAtomic, c.i->acquire = acquire, c.i->strict = true;
          c.i->d = c.target(0, 0), c.address(1), c.i->b = c.source(2, 4);
          c.i->run = may_wait ? mbarrier_wait<true> : mbarrier_wait<false>;
        };
      }
  }

  table["griddepcontrol.wait"] = [](Decoder& c) { c.i->run = await_launch_before; };
  for (const char* name : {"griddepcontrol.launch_dependents", "fence.mbarrier_init.release.cluster", "nanosleep"})
    table[name] = [](Decoder& c) { c.i->run = nothing; };
  for (const char* name : {"membar.cta", "membar.gl", "membar.sys"}) table[name] = [](Decoder& c) { c.i->run = fence; };
  for (const char* order : {"sc", "acq_rel"})
    for (const char* scope : {"cta", "cluster", "gpu", "sys"})
      table[std::string("fence.") + order + "." + scope] = [](Decoder& c) { c.i->run = fence; };
}

const Entry* entry_of(const std::string& key) {
  static const Table table = [] {
    Table t;
    add_arithmetic(t), add_bits(t), add_moves(t), add_memory(t), add_meetings(t);
    return t;
  }();
  const auto found = table.find(key);
  return found == table.end() ? nullptr : &found->second;
}

}  // namespace ptx
