// The table of opcodes: the action for each, by its text without types. In five parts.
#pragma once
#include "code.h"

namespace ptx {

using Table = std::map<std::string, Entry>;
void add_arithmetic(Table& table);
void add_bits(Table& table);
void add_moves(Table& table);
void add_memory(Table& table);
void add_meetings(Table& table);  // between lanes, warps, blocks and launches

// What a lane's access refers to, once found to be allowed.
struct Place {
  char* host;
  Buffer* buffer;  // the global memory,
  Block* block;    // or the block whose shared memory it is,
  size_t at;       // and the offset in it
  uint32_t unwritten;  // undefined bytes of a read, one bit each
};
Place in_shared(Warp& w, const Instruction& i, uint32_t address, int bytes, int lane);
// value: the value to be written, if any.
Place locate(Warp& w, const Instruction& i, uint64_t address, int bytes, int lane, const char* value = nullptr);
// Reports races, notes the use. Returns the bytes read that are undefined.
uint32_t note(Warp& w, const Instruction& i, const Place& p, int bytes, int lane, const char* value);
Shadow& shadow_of(const Place& p);
std::string name_of(const Warp& w, const Place& p);
std::string hex(uint64_t x);
uint64_t address_of(const Warp& w, const Instruction& i, int lane);

inline bool is_integer(const Type& t) { return t.kind == 'b' || t.kind == 'u' || t.kind == 's'; }

// d = F::of(a, …) on lanes, with T in registers of its own width.
template <class F, class T>
void one(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T* const a = w.at<T>(i.a);
  each(lanes, [&](int l) { d[l] = F::of(a[l]); });
}
template <class F, class T>
void two(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  each(lanes, [&](int l) { d[l] = F::of(a[l], b[l]); });
}
template <class F, class T>
void three(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b), *const c = w.at<T>(i.c);
  each(lanes, [&](int l) { d[l] = F::of(a[l], b[l], c[l]); });
}

// A NaN result is the canonical one, as PTX specifies for single precision and below.
inline float clean(float x) { return x == x ? x : __builtin_bit_cast(float, 0x7FFFFFFFu); }
inline double clean(double x) { return x; }
template <class T>
inline T clean(T x) {
  return x;
}

constexpr int32_t kNowhere = INT32_MAX;  // the place of "_"

// The action for the opcode's type.
#define PTX_INTEGERS(action, F)                                                        \
  (t.bits == 16   ? (t.kind == 's' ? Action(action<F, int16_t>) : action<F, uint16_t>) \
   : t.bits == 32 ? (t.kind == 's' ? Action(action<F, int32_t>) : action<F, uint32_t>) \
   : t.bits == 64 ? (t.kind == 's' ? Action(action<F, int64_t>) : action<F, uint64_t>) \
                  : nullptr)
#define PTX_BITS(action, F) \
  (t.bits == 16 ? Action(action<F, uint16_t>) : t.bits == 32 ? action<F, uint32_t> : t.bits == 64 ? action<F, uint64_t> : nullptr)
#define PTX_FLOATS(action, F) (t.bits == 32 ? Action(action<F, float>) : t.bits == 64 ? action<F, double> : nullptr)

// An entry with this many sources, all of the opcode's type.
template <class Pick>
Entry of(int sources, const Pick& pick) {
  return [sources, pick](Decoder& c) {
    const Type t = c.type;
    if (c.second || t.kind == 'h' || t.kind == 'p' || t.pair) c.fail("unknown type");
    c.operands(static_cast<size_t>(sources) + 1);
    c.i->d = c.target(0, t.bytes());
    int32_t* const places[] = {&c.i->a, &c.i->b, &c.i->c};
    for (int n = 0; n < sources; ++n) *places[n] = c.source(static_cast<size_t>(n) + 1, t.bytes());
    c.i->run = pick(t);
  };
}
#define PTX_ANY(n, action, F) of(n, [](Type t) { return t.kind == 'f' ? PTX_FLOATS(action, F) : PTX_INTEGERS(action, F); })
#define PTX_INT(n, action, F) of(n, [](Type t) { return is_integer(t) ? PTX_INTEGERS(action, F) : nullptr; })
#define PTX_FLOAT(n, action, F) of(n, [](Type t) { return t.kind == 'f' ? PTX_FLOATS(action, F) : nullptr; })
#define PTX_SINGLE(n, action) of(n, [](Type t) { return t.kind == 'f' && t.bits == 32 ? Action(action) : nullptr; })

}  // namespace ptx
