// The table's comparisons, selections, moves and conversions.
#include <cmath>

#include "approximate.h"
#include "table.h"

namespace ptx {
namespace {

template <class T, int kHow>
inline bool holds(T a, T b) {
  if constexpr (kHow == 0) return a == b;
  if constexpr (kHow == 1) return a != b && a == a && b == b;
  if constexpr (kHow == 2) return a < b;
  if constexpr (kHow == 3) return a <= b;
  if constexpr (kHow == 4) return a > b;
  if constexpr (kHow == 5) return a >= b;
  return a == a && b == b;
}
template <class T, int kHow, bool kOrNaN>
void compare(Warp& w, const Instruction& i, uint32_t lanes) {
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  uint32_t values = 0;
  for (int l = 0; l < 32; ++l)
    values |= static_cast<uint32_t>(holds<T, kHow>(a[l], b[l]) || (kOrNaN && (a[l] != a[l] || b[l] != b[l]))) << l;
  set_predicate(w.at<uint32_t>(i.d), lanes, values);
  if (i.count > 1) set_predicate(w.at<uint32_t>(i.e[0]), lanes, ~values);
}
template <class T, bool kOrNaN = false>
Action comparison(const std::string& how) {
  const char* names[] = {"eq", "ne", "lt", "le", "gt", "ge"};
  const Action actions[] = {compare<T, 0, kOrNaN>, compare<T, 1, kOrNaN>, compare<T, 2, kOrNaN>,
                            compare<T, 3, kOrNaN>, compare<T, 4, kOrNaN>, compare<T, 5, kOrNaN>};
  for (int n = 0; n < 6; ++n)
    if (how == names[n]) return actions[n];
  return nullptr;
}
template <class T>
Action float_comparison(const std::string& how) {
  if (how == "num") return compare<T, 6, false>;
  return how.size() == 3 ? comparison<T, true>(how.substr(0, 2)) : comparison<T>(how);
}
void move_predicate(Warp& w, const Instruction& i, uint32_t lanes) {
  set_predicate(w.at<uint32_t>(i.d), lanes, *w.at<uint32_t>(i.a));
}
template <class T>
void select(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  const uint32_t p = *w.at<uint32_t>(i.c);
  each(lanes, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

// -- moves and conversions -----------------------------------------------------------------------------------------

template <class T>
void move(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T* const a = w.at<T>(i.a);
  each(lanes, [&](int l) { d[l] = a[l]; });
}
template <class Whole, class Part>
void pack(Warp& w, const Instruction& i, uint32_t lanes) {
  Whole* const d = w.at<Whole>(i.d);
  for (int n = 0; n < i.count; ++n) {
    const Part* const part = w.at<Part>(i.e[n]);
    const int by = n * 8 * static_cast<int>(sizeof(Part));
    each(lanes, [&](int l) { d[l] = (n ? d[l] : 0) | static_cast<Whole>(static_cast<Whole>(part[l]) << by); });
  }
}
template <class Whole, class Part>
void unpack(Warp& w, const Instruction& i, uint32_t lanes) {
  const Whole* const a = w.at<Whole>(i.a);
  for (int n = 0; n < i.count; ++n) {
    if (i.e[n] == kNowhere) continue;
    Part* const part = w.at<Part>(i.e[n]);
    each(lanes, [&](int l) { part[l] = static_cast<Part>(a[l] >> n * 8 * static_cast<int>(sizeof(Part))); });
  }
}

uint64_t lane_bits(const Warp& w, int32_t place, int width, int lane) {
  return width == 2 ? w.at<uint16_t>(place)[lane] : width == 4 ? w.at<uint32_t>(place)[lane] : w.at<uint64_t>(place)[lane];
}
double as_double(const Type& type, uint64_t bits) {
  if (type.kind == 'h') return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
  if (type.bits == 16) return half_to_float(static_cast<uint16_t>(bits));
  return type.bits == 32 ? __builtin_bit_cast(float, static_cast<uint32_t>(bits)) : __builtin_bit_cast(double, bits);
}
// One lane's conversion. round: "n" to nearest even, "z" towards zero, "m" down, "p" up; upper case: to an integer.
uint64_t converted(const Type& to, const Type& from, char round, uint64_t bits) {
  if (is_integer(from)) {
    int64_t value = static_cast<int64_t>(bits);
    if (from.bits < 64) {
      const int up = 64 - from.bits;
      value = from.kind == 's' ? static_cast<int64_t>(bits << up) >> up : static_cast<int64_t>(bits << up >> up);
    }
    if (is_integer(to)) return static_cast<uint64_t>(value);
    const bool negative = from.kind == 's';
    if (to.bits == 64)
      return __builtin_bit_cast(uint64_t,
                                negative ? static_cast<double>(value) : static_cast<double>(static_cast<uint64_t>(value)));
    return __builtin_bit_cast(uint32_t, negative ? static_cast<float>(value) : static_cast<float>(static_cast<uint64_t>(value)));
  }
  double x = as_double(from, bits);
  if (round == 'N') x = std::nearbyint(x);
  if (round == 'Z') x = std::trunc(x);
  if (round == 'M') x = std::floor(x);
  if (round == 'P') x = std::ceil(x);
  if (is_integer(to)) {  // clamped
    if (x != x) return to.bits == 64 ? 1ull << 63 : 0;
    const bool sign = to.kind == 's';
    const double limit = std::ldexp(1.0, to.bits - (sign ? 1 : 0)), least = sign ? -limit : 0;
    if (x >= limit) return sign ? (1ull << (to.bits - 1)) - 1 : ~0ull >> (64 - to.bits);
    if (x < least) x = least;
    return sign ? static_cast<uint64_t>(static_cast<int64_t>(x)) : static_cast<uint64_t>(x);
  }
  if (to.bits == 64) return __builtin_bit_cast(uint64_t, x);
  const float single = clean(static_cast<float>(x));
  if (to.bits == 32) return __builtin_bit_cast(uint32_t, single);
  return to.kind == 'h' ? float_to_bfloat(single) : float_to_half(single);
}
void convert(Warp& w, const Instruction& i, uint32_t lanes) {
  const int width = i.width;  // of the source register
  const char round = static_cast<char>(i.kind);
  each(lanes, [&](int l) {
    const uint64_t bits = converted(i.to, i.from, round, lane_bits(w, i.a, width, l));
    if (i.count == 2) w.at<uint16_t>(i.d)[l] = static_cast<uint16_t>(bits);
    else if (i.count == 4) w.at<uint32_t>(i.d)[l] = static_cast<uint32_t>(bits);
    else w.at<uint64_t>(i.d)[l] = bits;
  });
}
// The common conversions, between registers as wide as their types.
template <class D, class S>
void cast(Warp& w, const Instruction& i, uint32_t lanes) {
  D* const d = w.at<D>(i.d);
  const S* const a = w.at<S>(i.a);
  each(lanes, [&](int l) { d[l] = clean(static_cast<D>(a[l])); });
}
void half_to_single(Warp& w, const Instruction& i, uint32_t lanes) {
  float* const d = w.at<float>(i.d);
  const uint16_t* const a = w.at<uint16_t>(i.a);
  each(lanes, [&](int l) { d[l] = half_to_float(a[l]); });
}

void decode_mov(Decoder& c) {
  c.operands(2);
  Instruction& i = *c.i;
  const int bytes = c.type.kind == 'p' ? 0 : c.type.bytes();
  const bool packs = c.operand(1).kind == Operand::kVector, unpacks = c.operand(0).kind == Operand::kVector;
  if (packs || unpacks) {
    const std::vector<Operand>& parts = c.operand(packs ? 1 : 0).of;
    i.count = static_cast<uint8_t>(parts.size());
    const int each = bytes / static_cast<int>(parts.size());
    for (size_t n = 0; n < parts.size(); ++n) i.e[n] = parts[n].name == "_" ? kNowhere : c.place(parts[n], each, unpacks);
    (packs ? i.d : i.a) = packs ? c.target(0, bytes) : c.source(1, bytes);
    if (bytes == 8 && each == 4) i.run = packs ? Action(pack<uint64_t, uint32_t>) : unpack<uint64_t, uint32_t>;
    if (bytes == 8 && each == 2) i.run = packs ? Action(pack<uint64_t, uint16_t>) : unpack<uint64_t, uint16_t>;
    if (bytes == 4 && each == 2) i.run = packs ? Action(pack<uint32_t, uint16_t>) : unpack<uint32_t, uint16_t>;
    return;
  }
  i.d = c.target(0, bytes), i.a = c.source(1, bytes);
  i.run = bytes == 0   ? Action(move_predicate)
          : bytes == 2 ? move<uint16_t>
          : bytes == 4 ? move<uint32_t>
          : bytes == 8 ? move<uint64_t>
                       : nullptr;
}

void decode_cvt(Decoder& c, char round) {
  c.operands(2);
  Instruction& i = *c.i;
  i.to = c.type, i.from = c.second;
  const Operand& source = c.operand(1);
  const int own = std::max(2, i.from.bytes()), width = source.kind == Operand::kNumber ? own : c.width(source);
  const int wide = c.width(c.operand(0));
  const bool floats = !is_integer(i.to) && !is_integer(i.from);
  if (!c.second || width < own || wide < i.to.bytes()) c.fail("unknown conversion");
  if (!is_integer(i.to) && (i.to.bits == 16 || is_integer(i.from) || i.to.bits < i.from.bits) && round != 'n')
    c.fail("unknown rounding");
  if (is_integer(i.to) && !is_integer(i.from) && !std::isupper(static_cast<unsigned char>(round))) c.fail("unknown rounding");
  if (!is_integer(i.to) && is_integer(i.from) && i.to.bits == 16) c.fail("unknown type");
  if (floats && i.from.bits == 64 && i.to.bits == 16) c.fail("unknown type");  // would round twice
  i.d = c.target(0, wide), i.a = c.source(1, width);
  i.width = static_cast<uint8_t>(width), i.count = static_cast<uint8_t>(wide), i.kind = static_cast<uint8_t>(round);
  i.run = convert;
  if (width != i.from.bytes() || wide != i.to.bytes()) return;
  const auto is = [&](const char* to, const char* from) {
    const Type t = Type::of(to), f = Type::of(from);
    return i.to.kind == t.kind && i.to.bits == t.bits && i.from.kind == f.kind && i.from.bits == f.bits;
  };
  if (is("u32", "u16")) i.run = cast<uint32_t, uint16_t>;
  if (is("u32", "u64")) i.run = cast<uint32_t, uint64_t>;
  if (is("u16", "u32")) i.run = cast<uint16_t, uint32_t>;
  if (is("u64", "u32")) i.run = cast<uint64_t, uint32_t>;
  if (is("s64", "s32")) i.run = cast<int64_t, int32_t>;
  if (is("f64", "f32") && round == 0) i.run = cast<double, float>;
  if (is("f32", "f64") && round == 'n') i.run = cast<float, double>;
  if (is("f32", "u32") && round == 'n') i.run = cast<float, uint32_t>;
  if (is("f32", "s32") && round == 'n') i.run = cast<float, int32_t>;
  if (is("f32", "f16") && round == 0) i.run = half_to_single;
}

}  // namespace

void add_moves(Table& table) {
  for (const char* name : {"eq", "ne", "lt", "le", "gt", "ge", "ltu", "leu", "gtu", "geu", "equ", "neu", "num"}) {
    const std::string how = name;
    table["setp." + how] = [how](Decoder& c) {
      const Type t = c.type;
      c.operands(3);
      c.i->d = c.target(0, 0), c.i->a = c.source(1, t.bytes()), c.i->b = c.source(2, t.bytes());
      if (!c.operand(0).also.empty()) {
        Operand other;
        other.kind = Operand::kName, other.name = c.operand(0).also;
        c.i->count = 2, c.i->e[0] = c.place(other, 0, true);
      }
      if (t.kind == 'f')
        c.i->run = t.bits == 32 ? float_comparison<float>(how) : t.bits == 64 ? float_comparison<double>(how) : nullptr;
      else if (t.kind == 's')
        c.i->run = t.bits == 16 ? comparison<int16_t>(how) : t.bits == 32 ? comparison<int32_t>(how) : comparison<int64_t>(how);
      else if (is_integer(t))
        c.i->run = t.bits == 16 ? comparison<uint16_t>(how) : t.bits == 32 ? comparison<uint32_t>(how) : comparison<uint64_t>(how);
    };
  }
  table["selp"] = [](Decoder& c) {
    const int bytes = c.type.bytes();
    c.operands(4);
    c.i->d = c.target(0, bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, bytes), c.i->c = c.source(3, 0);
    c.i->selects = true;
    c.i->run = bytes == 2 ? Action(select<uint16_t>) : bytes == 4 ? select<uint32_t> : select<uint64_t>;
  };
  table["mov"] = decode_mov;
  table["cvt"] = [](Decoder& c) { decode_cvt(c, 0); };
  table["cvt.rn"] = [](Decoder& c) { decode_cvt(c, 'n'); };
  const char roundings[] = {'n', 'z', 'm', 'p'};
  for (char r : roundings)
    table[std::string("cvt.r") + r + "i"] = [r](Decoder& c) { decode_cvt(c, static_cast<char>(std::toupper(r))); };
}

}  // namespace ptx
