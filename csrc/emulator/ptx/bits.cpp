// The table's bit operations.
#include <algorithm>

#include "table.h"

namespace ptx {
namespace {

struct And {
  template <class T>
  static T of(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
struct Brev {
  static uint32_t of(uint32_t a) {
    uint32_t r = 0;
    for (int n = 0; n < 32; ++n) r |= (a >> n & 1) << (31 - n);
    return r;
  }
  static uint64_t of(uint64_t a) {
    return static_cast<uint64_t>(of(static_cast<uint32_t>(a))) << 32 | of(static_cast<uint32_t>(a >> 32));
  }
};
struct Prmt {  // bytes selected from eight; a selector's high bit replicates the byte's sign
  static uint32_t of(uint32_t a, uint32_t b, uint32_t c) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t r = 0;
    for (int n = 0; n < 4; ++n) {
      const uint32_t pick = c >> 4 * n & 15, byte = static_cast<uint32_t>(bytes >> 8 * (pick & 7)) & 255;
      r |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * n;
    }
    return r;
  }
};

// Shifts: the amount is 32 bits wide, and clamped.
template <class T, bool kLeft>
void shift(Warp& w, const Instruction& i, uint32_t lanes) {
  T* const d = w.at<T>(i.d);
  const T* const a = w.at<T>(i.a);
  const uint32_t* const b = w.at<uint32_t>(i.b);
  constexpr uint32_t kBits = 8 * sizeof(T);
  each(lanes, [&](int l) {
    const bool over = b[l] >= kBits;
    const uint32_t by = over ? kBits - 1 : b[l];
    if (kLeft) d[l] = over ? T(0) : static_cast<T>(static_cast<std::make_unsigned_t<T>>(a[l]) << by);
    else d[l] = over && std::is_unsigned<T>::value ? T(0) : static_cast<T>(a[l] >> by);
  });
}
template <bool kLeft, bool kWrap>
void funnel(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t* const d = w.at<uint32_t>(i.d);
  const uint32_t *const a = w.at<uint32_t>(i.a), *const b = w.at<uint32_t>(i.b), *const c = w.at<uint32_t>(i.c);
  each(lanes, [&](int l) {
    const uint64_t both = static_cast<uint64_t>(b[l]) << 32 | a[l];
    const uint32_t by = kWrap ? c[l] & 31 : std::min(c[l], 32u);
    d[l] = static_cast<uint32_t>(kLeft ? (both << by) >> 32 : both >> by);
  });
}
template <class T>
void count_leading(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t* const d = w.at<uint32_t>(i.d);
  const T* const a = w.at<T>(i.a);
  each(lanes, [&](int l) {
    const int zeros = a[l] == 0 ? 64 : __builtin_clzll(a[l]);
    d[l] = static_cast<uint32_t>(zeros - (64 - 8 * static_cast<int>(sizeof(T))));
  });
}
template <class T>
void count_ones(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t* const d = w.at<uint32_t>(i.d);
  const T* const a = w.at<T>(i.a);
  each(lanes, [&](int l) { d[l] = static_cast<uint32_t>(__builtin_popcountll(a[l])); });
}
template <class T, bool kAmount>
void find_highest(Warp& w, const Instruction& i, uint32_t lanes) {  // signed types: the highest bit that differs from the sign
  uint32_t* const d = w.at<uint32_t>(i.d);
  const T* const a = w.at<T>(i.a);
  each(lanes, [&](int l) {
    const T bits = a[l] < 0 ? static_cast<T>(~a[l]) : a[l];
    const int at = bits == 0 ? -1 : 63 - __builtin_clzll(static_cast<uint64_t>(bits));
    d[l] = at < 0 ? kAll : static_cast<uint32_t>(kAmount ? 8 * static_cast<int>(sizeof(T)) - 1 - at : at);
  });
}
template <class T>
void insert_bits(Warp& w, const Instruction& i, uint32_t lanes) {  // bfi d, a, b, position, length
  T* const d = w.at<T>(i.d);
  const T *const a = w.at<T>(i.a), *const b = w.at<T>(i.b);
  const uint32_t *const from = w.at<uint32_t>(i.c), *const length = w.at<uint32_t>(i.e[0]);
  each(lanes, [&](int l) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    const uint32_t p = from[l] & 255, n = std::min(length[l] & 255, kBits);
    const T ones = n >= kBits ? static_cast<T>(~T(0)) : static_cast<T>((T(1) << n) - 1),
            mask = p >= kBits ? T(0) : static_cast<T>(ones << p);
    d[l] = static_cast<T>((b[l] & ~mask) | ((p >= kBits ? T(0) : static_cast<T>(a[l] << p)) & mask));
  });
}
template <class T>
void extract_bits(Warp& w, const Instruction& i, uint32_t lanes) {  // bfe d, a, position, length
  T* const d = w.at<T>(i.d);
  const T* const a = w.at<T>(i.a);
  const uint32_t *const from = w.at<uint32_t>(i.b), *const length = w.at<uint32_t>(i.c);
  each(lanes, [&](int l) {
    constexpr int kBits = 8 * sizeof(T);
    const int p = static_cast<int>(from[l] & 255), n = static_cast<int>(length[l] & 255);
    const bool sign = std::is_signed<T>::value && n > 0 && (a[l] >> std::min(p + n - 1, kBits - 1) & 1);
    T r = 0;
    for (int k = 0; k < kBits; ++k) {
      const T bit = k < n && p + k < kBits ? static_cast<T>(a[l] >> (p + k) & 1) : T(sign);
      r = static_cast<T>(static_cast<std::make_unsigned_t<T>>(r) | static_cast<std::make_unsigned_t<T>>(bit) << k);
    }
    d[l] = r;
  });
}
void lop3(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t* const d = w.at<uint32_t>(i.d);
  const uint32_t *const a = w.at<uint32_t>(i.a), *const b = w.at<uint32_t>(i.b), *const c = w.at<uint32_t>(i.c);
  const uint32_t table = static_cast<uint32_t>(i.offset);
  each(lanes, [&](int l) {
    uint32_t r = 0;
    for (uint32_t row = 0; row < 8; ++row)
      if (table >> row & 1) r |= (row & 4 ? a[l] : ~a[l]) & (row & 2 ? b[l] : ~b[l]) & (row & 1 ? c[l] : ~c[l]);
    d[l] = r;
  });
}

template <class F>
void predicates(Warp& w, const Instruction& i, uint32_t lanes) {
  set_predicate(w.at<uint32_t>(i.d), lanes, F::of(*w.at<uint32_t>(i.a), *w.at<uint32_t>(i.b)));
}
void not_predicate(Warp& w, const Instruction& i, uint32_t lanes) {
  set_predicate(w.at<uint32_t>(i.d), lanes, ~*w.at<uint32_t>(i.a));
}

template <class F>
void logic(Table& table, const char* name) {
  table[name] = [](Decoder& c) {
    if (c.type.kind != 'p') return of(2, [](Type t) { return PTX_BITS(two, F); })(c);
    c.operands(3);
    c.i->d = c.target(0, 0), c.i->a = c.source(1, 0), c.i->b = c.source(2, 0), c.i->run = predicates<F>;
  };
}

}  // namespace

void add_bits(Table& table) {
  logic<And>(table, "and"), logic<Or>(table, "or"), logic<Xor>(table, "xor");
  table["not"] = [](Decoder& c) {
    if (c.type.kind != 'p') return of(1, [](Type t) { return PTX_BITS(one, Not); })(c);
    c.operands(2);
    c.i->d = c.target(0, 0), c.i->a = c.source(1, 0), c.i->run = not_predicate;
  };
  table["brev"] = of(1, [](Type t) {
    return t.bits == 32 ? Action(one<Brev, uint32_t>) : t.bits == 64 ? one<Brev, uint64_t> : nullptr;
  });
  table["prmt"] = of(3, [](Type t) { return t.bits == 32 ? Action(three<Prmt, uint32_t>) : nullptr; });
  const auto shifts = [&](const char* name, Action (*pick)(Type)) {
    table[name] = [pick](Decoder& c) {
      c.operands(3);
      c.i->d = c.target(0, c.type.bytes()), c.i->a = c.source(1, c.type.bytes()), c.i->b = c.source(2, 4);
      c.i->run = pick(c.type);
    };
  };
  shifts("shl", [](Type t) {
    return t.bits == 16 ? Action(shift<uint16_t, true>) : t.bits == 32 ? shift<uint32_t, true> : shift<uint64_t, true>;
  });
  shifts("shr", [](Type t) {
    if (t.kind == 's')
      return t.bits == 16 ? Action(shift<int16_t, false>) : t.bits == 32 ? shift<int32_t, false> : shift<int64_t, false>;
    return t.bits == 16 ? Action(shift<uint16_t, false>) : t.bits == 32 ? shift<uint32_t, false> : shift<uint64_t, false>;
  });
  const auto funnels = [&](const char* name, Action action) {
    table[name] = of(3, [action](Type t) { return t.bits == 32 ? action : nullptr; });
  };
  funnels("shf.l.wrap", funnel<true, true>), funnels("shf.r.wrap", funnel<false, true>);
  funnels("shf.l.clamp", funnel<true, false>), funnels("shf.r.clamp", funnel<false, false>);
  const auto counts = [&](const char* name, Action (*pick)(Type)) {
    table[name] = [pick](Decoder& c) {
      c.operands(2);
      c.i->d = c.target(0, 4), c.i->a = c.source(1, c.type.bytes()), c.i->run = pick(c.type);
    };
  };
  counts("clz", [](Type t) { return t.bits == 32 ? Action(count_leading<uint32_t>) : count_leading<uint64_t>; });
  counts("popc", [](Type t) { return t.bits == 32 ? Action(count_ones<uint32_t>) : count_ones<uint64_t>; });
#define PTX_FIND(kAmount)                                                                                             \
  [](Type t) {                                                                                                        \
    return t.bits == 32 ? (t.kind == 's' ? Action(find_highest<int32_t, kAmount>) : find_highest<uint32_t, kAmount>)  \
                        : (t.kind == 's' ? Action(find_highest<int64_t, kAmount>) : find_highest<uint64_t, kAmount>); \
  }
  counts("bfind", PTX_FIND(false)), counts("bfind.shiftamt", PTX_FIND(true));
  table["bfi"] = [](Decoder& c) {
    const int bytes = c.type.bytes();
    c.operands(5);
    c.i->d = c.target(0, bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, bytes);
    c.i->c = c.source(3, 4), c.i->e[0] = c.source(4, 4);
    c.i->run = bytes == 4 ? insert_bits<uint32_t> : insert_bits<uint64_t>;
  };
  table["bfe"] = [](Decoder& c) {
    const int bytes = c.type.bytes();
    c.operands(4);
    c.i->d = c.target(0, bytes), c.i->a = c.source(1, bytes), c.i->b = c.source(2, 4), c.i->c = c.source(3, 4);
    if (c.type.kind == 's') c.i->run = bytes == 4 ? extract_bits<int32_t> : extract_bits<int64_t>;
    else c.i->run = bytes == 4 ? extract_bits<uint32_t> : extract_bits<uint64_t>;
  };
  table["lop3"] = [](Decoder& c) {
    c.operands(5);
    c.i->d = c.target(0, 4), c.i->a = c.source(1, 4), c.i->b = c.source(2, 4), c.i->c = c.source(3, 4);
    c.i->offset = static_cast<int64_t>(c.operand(4).bits), c.i->run = lop3;
  };
}

}  // namespace ptx
