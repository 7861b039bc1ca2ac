// The table's loads, stores, atomics and address conversions.
#include <cstring>

#include "table.h"

namespace ptx {
namespace {

// What strong accesses to a place, and fences, pass from warp to warp.
void synchronise(Warp& w, const Instruction& i, const void* at, int lane) {
  std::map<const void*, Clock>& releases = w.machine.releases;
  if (writes(i.use) && (i.release || !w.fenced.empty())) releases[at].join(i.release ? w.told(1u << lane) : w.fenced);
  if (releases.empty()) return;
  const auto found = releases.find(at);
  if (found == releases.end()) return;
  if (i.acquire) w.learn(found->second, 1u << lane);
  else w.seen.join(found->second);
}

// T: the type in memory. Registers are at least as wide.
template <class T>
void put(Warp& w, int32_t place, int width, int lane, T value) {
  if (width == 2) w.at<uint16_t>(place)[lane] = static_cast<uint16_t>(value);
  else if (width == 4) w.at<uint32_t>(place)[lane] = static_cast<uint32_t>(value);
  else w.at<uint64_t>(place)[lane] = static_cast<uint64_t>(value);
}
template <class T>
T get(const Warp& w, int32_t place, int width, int lane) {
  if (width == 2) return static_cast<T>(w.at<uint16_t>(place)[lane]);
  if (width == 4) return static_cast<T>(w.at<uint32_t>(place)[lane]);
  return static_cast<T>(w.at<uint64_t>(place)[lane]);
}

template <class T>
void load(Warp& w, const Instruction& i, uint32_t lanes) {
  const int bytes = static_cast<int>(sizeof(T)) * i.count, width = i.kind;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const Place p = locate(w, i, address_of(w, i, l), bytes, l);
    T value[8];
    std::memcpy(value, p.host, static_cast<size_t>(bytes));
    for (int n = 0; n < i.count; ++n) {
      if (i.e[n] == kNowhere) continue;
      put(w, i.e[n], width, l, value[n]);
      if (!w.undefined.empty()) w.set_defined(i.e[n], 1u << l);
      const uint32_t mask = p.unwritten >> n * static_cast<int>(sizeof(T)) & static_cast<uint32_t>((1ull << sizeof(T)) - 1);
      if (mask)
        w.set_undefined(i.e[n], 1u << l,
                        name_of(w, p) + ", uninitialised: nobody has written it; read at line " + std::to_string(i.line));
    }
    if (i.use == Use::kStrongRead) synchronise(w, i, p.host, l);
  }
}
template <class T>
void store(Warp& w, const Instruction& i, uint32_t lanes) {
  const int bytes = static_cast<int>(sizeof(T)) * i.count, width = i.kind;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    T value[8];
    for (int n = 0; n < i.count; ++n) value[n] = get<T>(w, i.e[n], width, l);
    const Place p = locate(w, i, address_of(w, i, l), bytes, l, reinterpret_cast<const char*>(value));
    std::memcpy(p.host, value, static_cast<size_t>(bytes));
    if (!w.undefined.empty() && (p.block || (p.buffer && !p.buffer->known)))
      for (int n = 0; n < i.count; ++n) {
        const auto found = w.undefined.find(i.e[n]);
        if (found == w.undefined.end() || !(found->second.lanes >> l & 1)) continue;
        shadow_of(p).set_written(p.at + static_cast<size_t>(n) * sizeof(T), sizeof(T), false);
      }
    if (i.use == Use::kAtomic) synchronise(w, i, p.host, l);
  }
}

enum AtomicOp : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompare };
template <class T>
void atomic(Warp& w, const Instruction& i, uint32_t lanes) {
  const int turn = w.machine.settings.shuffle ? static_cast<int>(w.machine.random() & 31) : 0;  // the first lane is unspecified
  for (int n = 0; n < 32; ++n) {
    const int l = (n + turn) & 31;
    if (!(lanes >> l & 1)) continue;
    const Place p = locate(w, i, address_of(w, i, l), sizeof(T), l);
    if (p.unwritten) w.fail("an atomic on " + name_of(w, p) + ", uninitialised: nobody has written it", 1u << l);
    T old;
    std::memcpy(&old, p.host, sizeof(T));
    const T b = w.at<T>(i.b)[l];
    T now = old;
    switch (static_cast<AtomicOp>(i.bytes)) {
      case kAdd:
        if constexpr (std::is_integral<T>::value)
          now = static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(b));
        else now = old + b;
        break;
      case kMin:
        now = b < old ? b : old;
        break;
      case kMax:
        now = b > old ? b : old;
        break;
      case kExchange:
        now = b;
        break;
      case kCompare:
        now = std::memcmp(&old, &b, sizeof(T)) == 0 ? w.at<T>(i.c)[l] : old;
        break;
      default:
        if constexpr (std::is_integral<T>::value) now = i.bytes == kAnd ? old & b : i.bytes == kOr ? old | b : old ^ b;
    }
    std::memcpy(p.host, &now, sizeof(T));
    if (i.d != kNowhere) w.at<T>(i.d)[l] = old;
    synchronise(w, i, p.host, l);
  }
}

void to_generic(Warp& w, const Instruction& i, uint32_t lanes) {  // cvta.shared
  const uint64_t window = i.space == Space::kShared  ? kSharedWindow
                          : i.space == Space::kLocal ? kLocalWindow
                          : i.space == Space::kParam ? kParamWindow
                                                     : 0;
  each(lanes, [&](int l) { w.at<uint64_t>(i.d)[l] = w.at<uint64_t>(i.a)[l] | window; });
}
void from_generic(Warp& w, const Instruction& i, uint32_t lanes) {  // cvta.to.shared
  const uint64_t window = i.space == Space::kShared  ? kSharedWindow
                          : i.space == Space::kLocal ? kLocalWindow
                          : i.space == Space::kParam ? kParamWindow
                                                     : 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t a = w.at<uint64_t>(i.a)[l];
    if (i.space == Space::kShared && (a & kWindow) != window)
      w.fail("cvta.to.shared of an address that is not in shared memory: " + hex(a), 1u << l);
    w.at<uint64_t>(i.d)[l] = a & ~window;
  }
}
template <class T>
void map_address(Warp& w, const Instruction& i, uint32_t lanes) {
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const T a = w.at<T>(i.a)[l] + static_cast<T>(i.offset);
    const uint32_t rank = w.at<uint32_t>(i.b)[l];
    if (rank >= w.block.cluster->blocks.size())
      w.fail("mapa: rank " + std::to_string(rank) + " of " + std::to_string(w.block.cluster->blocks.size()) + " blocks", 1u << l);
    if (sizeof(T) == 8 && (static_cast<uint64_t>(a) & kWindow) != kSharedWindow)
      w.fail("mapa of an address that is not in shared memory: " + hex(a), 1u << l);
    const T place = static_cast<T>(a & ~static_cast<T>(255u << kRankShift));
    w.at<T>(i.d)[l] = place | static_cast<T>(rank + 1) << kRankShift;
  }
}
void nothing(Warp&, const Instruction&, uint32_t) {}

Action load_of(const Type& t) {
  const bool sign = t.kind == 's';
  switch (t.bytes()) {
    case 1:
      return sign ? Action(load<int8_t>) : load<uint8_t>;
    case 2:
      return sign ? Action(load<int16_t>) : load<uint16_t>;
    case 4:
      return sign ? Action(load<int32_t>) : load<uint32_t>;
    case 8:
      return load<uint64_t>;
  }
  return nullptr;
}
Action store_of(const Type& t) {
  switch (t.bytes()) {
    case 1:
      return store<uint8_t>;
    case 2:
      return store<uint16_t>;
    case 4:
      return store<uint32_t>;
    case 8:
      return store<uint64_t>;
  }
  return nullptr;
}
Action atomic_of(const Type& t) {
  if (t.bits == 32) return t.kind == 'f' ? Action(atomic<float>) : t.kind == 's' ? atomic<int32_t> : atomic<uint32_t>;
  if (t.bits == 64) return t.kind == 'f' ? Action(atomic<double>) : t.kind == 's' ? atomic<int64_t> : atomic<uint64_t>;
  return nullptr;
}

// The elements of a load or store: a register, a value, or several.
void elements(Decoder& c, const Operand& o, bool is_load) {
  Instruction& i = *c.i;
  const std::vector<Operand>& of = o.kind == Operand::kVector ? o.of : std::vector<Operand>{o};
  if (static_cast<int>(of.size()) != i.count) c.fail("a wrong number of elements");
  int width = 0;
  for (const Operand& each : of)
    if (const int wide = c.width(each)) width = wide;
  if (width == 0) width = std::max(2, c.type.bytes());
  if (width < c.type.bytes()) c.fail("a register too narrow");
  i.kind = static_cast<uint8_t>(width);
  for (size_t n = 0; n < of.size(); ++n) i.e[n] = of[n].name == "_" && is_load ? kNowhere : c.place(of[n], width, is_load);
}

struct Ordering {
  const char* text;
  bool strong, acquire, release;
};
const std::vector<std::pair<const char*, Space>> kSpaces = {{"", Space::kGeneric},
                                                            {".global", Space::kGlobal},
                                                            {".shared", Space::kShared},
                                                            {".shared::cta", Space::kShared},
                                                            {".shared::cluster", Space::kCluster},
                                                            {".local", Space::kLocal},
                                                            {".param", Space::kParam},
                                                            {".const", Space::kConst}};
const std::vector<std::string> kScopes = {".cta", ".cluster", ".gpu", ".sys"};

}  // namespace

void add_memory(Table& table) {
  const std::pair<const char*, int> vectors[] = {{"", 1}, {".v2", 2}, {".v4", 4}, {".v8", 8}};
  std::vector<std::pair<std::string, Ordering>> loads = {{"", {}}, {".weak", {}}, {".volatile", {"", true, false, false}}},
                                                stores = loads;
  for (const std::string& scope : kScopes) {
    loads.push_back({".relaxed" + scope, {"", true, false, false}}), loads.push_back({".acquire" + scope, {"", true, true, false}});
    stores.push_back({".relaxed" + scope, {"", true, false, false}}),
        stores.push_back({".release" + scope, {"", true, false, true}});
  }
  const std::vector<std::string> hints = {
      "", ".nc", ".nc.L1::no_allocate", ".L1::no_allocate", ".nc.L1::evict_last", ".nc.L1::evict_first", ".cg", ".ca", ".cs"};
  for (const auto& [space, where] : kSpaces)
    for (const auto& [vector, count] : vectors) {
      const Space in = where;
      const uint8_t elements_each = static_cast<uint8_t>(count);
      for (const auto& [text, ordering] : loads)
        for (const std::string& hint : hints) {
          if (!hint.empty() && in != Space::kGlobal) continue;
          const Ordering how = ordering;
          const bool constant = hint.compare(0, 3, ".nc") == 0;
          table["ld" + text + space + hint + vector] = [=](Decoder& c) {
            c.operands(2);
            Instruction& i = *c.i;
            i.space = in, i.count = elements_each, i.constant = constant;
            i.use = how.strong ? Use::kStrongRead : Use::kRead, i.acquire = how.acquire;
            i.loads = true;
            elements(c, c.operand(0), true);
            c.address(1);
            i.run = load_of(c.type);
          };
        }
      for (const auto& [text, ordering] : stores) {
        const Ordering how = ordering;
        table["st" + text + space + vector] = [=](Decoder& c) {
          c.operands(2);
          Instruction& i = *c.i;
          i.space = in, i.count = elements_each;
          i.use = how.strong ? Use::kAtomic : Use::kWrite, i.release = how.release, i.stores = true;
          c.address(0);
          elements(c, c.operand(1), false);
          i.run = store_of(c.type);
        };
      }
    }

  std::vector<Ordering> orders = {{"", true, false, false},
                                  {".relaxed", true, false, false},
                                  {".acquire", true, true, false},
                                  {".release", true, false, true},
                                  {".acq_rel", true, true, true}};
  std::vector<std::string> scopes = kScopes;
  scopes.push_back("");
  const std::pair<const char*, AtomicOp> ops[] = {{"add", kAdd}, {"min", kMin}, {"max", kMax},       {"and", kAnd},
                                                  {"or", kOr},   {"xor", kXor}, {"exch", kExchange}, {"cas", kCompare}};
  for (const Ordering& ordering : orders)
    for (const std::string& scope : scopes)
      for (const auto& [space, where] : kSpaces) {
        if (where == Space::kParam || where == Space::kConst || where == Space::kLocal) continue;
        for (const auto& [op, which] : ops)
          for (const bool reduces : {false, true}) {
            if (reduces && (which == kExchange || which == kCompare)) continue;
            const Space in = where;
            const Ordering how = ordering;
            const AtomicOp does = which;
            const size_t first = reduces ? 0 : 1;
            table[std::string(reduces ? "red" : "atom") + ordering.text + scope + space + "." + op] = [=](Decoder& c) {
              c.operands(first + (does == kCompare ? 3 : 2));
              Instruction& i = *c.i;
              const int bytes = c.type.bytes();
              i.space = in, i.use = Use::kAtomic, i.acquire = how.acquire, i.release = how.release, i.bytes = does, i.strict = true;
              i.d = reduces || c.operand(0).name == "_" ? kNowhere : c.target(0, bytes);
              c.address(first);
              i.b = c.source(first + 1, bytes);
              if (does == kCompare) i.c = c.source(first + 2, bytes);
              if (c.type.kind == 'f' && (does == kAnd || does == kOr || does == kXor)) c.fail("unknown type");
              i.run = atomic_of(c.type);
            };
          }
      }

  for (const auto& [space, where] : kSpaces) {
    if (where == Space::kGeneric || where == Space::kCluster) continue;
    const Space in = where;
    for (const bool to : {false, true})
      table[std::string("cvta") + (to ? ".to" : "") + space] = [=](Decoder& c) {
        c.operands(2);
        c.i->space = in, c.i->d = c.target(0, 8), c.i->a = c.source(1, 8), c.i->run = to ? from_generic : to_generic;
      };
  }
  for (const char* name : {"mapa", "mapa.shared::cluster"})
    table[name] = [](Decoder& c) {
      c.operands(3);
      const int bytes = c.type.bytes();
      c.i->d = c.target(0, bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, 4);
      c.i->run = bytes == 4 ? Action(map_address<uint32_t>) : map_address<uint64_t>;
    };
  for (const char* name : {"prefetch.L1", "prefetch.L2", "prefetch.global.L1", "prefetch.global.L2"})
    table[name] = [](Decoder& c) {
      c.operands(1);
      c.address(0);
      c.i->run = nothing;  // whatever the address: a GPU ignores prefetches that it cannot reach
    };
}

}  // namespace ptx
