// The table's arithmetic instructions.
#include <cmath>

#include "approximate.h"
#include "table.h"

namespace ptx {
namespace {

template <class T>
struct Unsigned {
  using type = std::make_unsigned_t<T>;
};
template <>
struct Unsigned<float> {
  using type = float;
};
template <>
struct Unsigned<double> {
  using type = double;
};
template <class T>
using Raw = typename Unsigned<T>::type;  // in which nothing overflows

struct Add {
  template <class T>
  static T of(T a, T b) {
    return clean(static_cast<T>(static_cast<Raw<T>>(a) + static_cast<Raw<T>>(b)));
  }
};
struct Sub {
  template <class T>
  static T of(T a, T b) {
    return clean(static_cast<T>(static_cast<Raw<T>>(a) - static_cast<Raw<T>>(b)));
  }
};
struct Mul {
  static uint16_t of(uint16_t a, uint16_t b) { return static_cast<uint16_t>(static_cast<uint32_t>(a) * b); }
  static int16_t of(int16_t a, int16_t b) { return static_cast<int16_t>(static_cast<int32_t>(a) * b); }
  template <class T>
  static T of(T a, T b) {
    return clean(static_cast<T>(static_cast<Raw<T>>(a) * static_cast<Raw<T>>(b)));
  }
};
struct MulHi {
  static uint32_t of(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
  static int32_t of(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<int64_t>(a) * b >> 32); }
  static uint64_t of(uint64_t a, uint64_t b) { return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64); }
  static int64_t of(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<__int128>(a) * b >> 64); }
};
struct MulAdd {
  template <class T>
  static T of(T a, T b, T c) {
    return Add::of(Mul::of(a, b), c);
  }
};
struct Fused {
  static float of(float a, float b, float c) { return clean(std::fma(a, b, c)); }
  static double of(double a, double b, double c) { return std::fma(a, b, c); }
};
struct Div {
  static float of(float a, float b) { return clean(a / b); }
  static double of(double a, double b) { return a / b; }
  template <class T>
  static T of(T a, T b) {  // division by zero: unspecified
    if (b == 0) return static_cast<T>(~T(0));
    return std::is_signed<T>::value && b == static_cast<T>(-1) ? Sub::of(T(0), a) : static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return a;
    return std::is_signed<T>::value && b == static_cast<T>(-1) ? T(0) : static_cast<T>(a % b);
  }
};
struct Min {
  static float of(float a, float b) { return a != a ? clean(b) : b != b ? a : a < b || (a == b && std::signbit(a)) ? a : b; }
  static double of(double a, double b) { return a != a ? b : b != b ? a : a < b || (a == b && std::signbit(a)) ? a : b; }
  template <class T>
  static T of(T a, T b) {
    return a < b ? a : b;
  }
};
struct Max {
  static float of(float a, float b) { return a != a ? clean(b) : b != b ? a : a > b || (a == b && std::signbit(b)) ? a : b; }
  static double of(double a, double b) { return a != a ? b : b != b ? a : a > b || (a == b && std::signbit(b)) ? a : b; }
  template <class T>
  static T of(T a, T b) {
    return a > b ? a : b;
  }
};
struct MaxNaN {
  static float of(float a, float b) { return a != a || b != b ? clean(NAN) : Max::of(a, b); }
};
struct MinNaN {
  static float of(float a, float b) { return a != a || b != b ? clean(NAN) : Min::of(a, b); }
};
struct Abs {
  static float of(float a) { return clean(std::fabs(a)); }
  static double of(double a) { return std::fabs(a); }
  template <class T>
  static T of(T a) {
    return a < 0 ? Sub::of(T(0), a) : a;
  }
};
struct Neg {
  static float of(float a) { return clean(-a); }
  static double of(double a) { return -a; }
  template <class T>
  static T of(T a) {
    return Sub::of(T(0), a);
  }
};
struct Reciprocal {
  template <class T>
  static T of(T a) {
    return clean(1 / a);
  }
};
struct Root {
  template <class T>
  static T of(T a) {
    return clean(std::sqrt(a));
  }
};

template <class Wide, class T>
void multiply_wide(Warp& w, const Instruction& i, uint32_t lanes) {
  Wide* const d = w.at<Wide>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  each(lanes, [&](int l) { d[l] = static_cast<Wide>(static_cast<Wide>(a[l]) * static_cast<Wide>(b[l])); });
}
template <class Wide, class T>
void multiply_wide_add(Warp& w, const Instruction& i, uint32_t lanes) {
  Wide* const d = w.at<Wide>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  const Wide* const c = w.at<Wide>(i.c);
  each(lanes, [&](int l) { d[l] = Add::of(static_cast<Wide>(static_cast<Wide>(a[l]) * static_cast<Wide>(b[l])), c[l]); });
}

// Elementwise maximum of two pairs of 16-bit floats; NaN never wins over a number.
template <bool kBrain>
void max_pairs(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t* const d = w.at<uint32_t>(i.d);
  const uint32_t *const a = w.at<uint32_t>(i.a), *const b = w.at<uint32_t>(i.b);
  const auto value = [](uint32_t bits) {
    return kBrain ? __builtin_bit_cast(float, bits << 16) : half_to_float(static_cast<uint16_t>(bits));
  };
  const auto larger = [&](uint32_t x, uint32_t y) -> uint32_t {
    const float fx = value(x), fy = value(y);
    if (fx != fx && fy != fy) return 0x7FFF;
    if (fx != fx || fy != fy) return fx != fx ? y : x;
    return fx > fy || (fx == fy && std::signbit(fy)) ? x : y;
  };
  each(lanes, [&](int l) { d[l] = larger(a[l] & 0xFFFF, b[l] & 0xFFFF) | larger(a[l] >> 16, b[l] >> 16) << 16; });
}

}  // namespace

void add_arithmetic(Table& table) {
  table["add"] = PTX_ANY(2, two, Add), table["sub"] = PTX_ANY(2, two, Sub);
  table["add.rn"] = PTX_FLOAT(2, two, Add), table["sub.rn"] = PTX_FLOAT(2, two, Sub);
  table["mul"] = table["mul.rn"] = PTX_FLOAT(2, two, Mul);
  table["mul.lo"] = PTX_INT(2, two, Mul);
  table["mul.hi"] = of(2, [](Type t) {
    return t.bits == 32   ? (t.kind == 's' ? Action(two<MulHi, int32_t>) : two<MulHi, uint32_t>)
           : t.bits == 64 ? (t.kind == 's' ? Action(two<MulHi, int64_t>) : two<MulHi, uint64_t>)
                          : nullptr;
  });
  table["mad.lo"] = PTX_INT(3, three, MulAdd);
  table["fma.rn"] = PTX_FLOAT(3, three, Fused);
  table["div.rn"] = PTX_FLOAT(2, two, Div), table["div"] = PTX_INT(2, two, Div), table["rem"] = PTX_INT(2, two, Rem);
  table["min"] = PTX_ANY(2, two, Min);
  table["max"] = [](Decoder& c) {
    if (!c.type.pair) return PTX_ANY(2, two, Max)(c);
    c.operands(3);
    c.i->d = c.target(0, 4), c.i->a = c.source(1, 4), c.i->b = c.source(2, 4);
    c.i->run = c.type.kind == 'h' ? max_pairs<true> : max_pairs<false>;
  };
  table["max.NaN"] = PTX_SINGLE(2, (two<MaxNaN, float>)), table["min.NaN"] = PTX_SINGLE(2, (two<MinNaN, float>));
  table["abs"] = of(1, [](Type t) {
    return t.kind == 'f' ? PTX_FLOATS(one, Abs) : t.kind == 's' ? PTX_INTEGERS(one, Abs) : nullptr;
  });
  table["neg"] = of(1, [](Type t) {
    return t.kind == 'f' ? PTX_FLOATS(one, Neg) : t.kind == 's' ? PTX_INTEGERS(one, Neg) : nullptr;
  });
  table["rcp.rn"] = PTX_FLOAT(1, one, Reciprocal), table["sqrt.rn"] = PTX_FLOAT(1, one, Root);
  table["ex2.approx.ftz"] = PTX_SINGLE(1, approximate<kExp2>), table["lg2.approx.ftz"] = PTX_SINGLE(1, approximate<kLog2>);
  table["rcp.approx.ftz"] = of(1, [](Type t) {
    return t.kind != 'f'  ? nullptr
           : t.bits == 32 ? Action(approximate<kReciprocal>)
           : t.bits == 64 ? approximate_reciprocal
                          : nullptr;
  });

  table["mul.wide"] = [](Decoder& c) {
    const int bytes = c.type.bytes();
    const bool sign = c.type.kind == 's';
    c.operands(3);
    c.i->d = c.target(0, 2 * bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, bytes);
    if (bytes == 4) c.i->run = sign ? Action(multiply_wide<int64_t, int32_t>) : multiply_wide<uint64_t, uint32_t>;
    if (bytes == 2) c.i->run = sign ? Action(multiply_wide<int32_t, int16_t>) : multiply_wide<uint32_t, uint16_t>;
  };
  table["mad.wide"] = [](Decoder& c) {
    const int bytes = c.type.bytes();
    c.operands(4);
    c.i->d = c.target(0, 2 * bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, bytes), c.i->c = c.source(3, 2 * bytes);
    if (bytes == 4)
      c.i->run = c.type.kind == 's' ? Action(multiply_wide_add<int64_t, int32_t>) : multiply_wide_add<uint64_t, uint32_t>;
  };
}

}  // namespace ptx
