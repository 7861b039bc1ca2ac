// The results that the special-function unit's approximations may return.
//
// The exact result, rounded; or, given a seed, one that is off by the full documented error, up or down by a hash of the
// argument, so that equal arguments still give equal results. Results documented as exact stay exact.
#pragma once
#include <cmath>
#include <cstdint>

namespace approximations {

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

// -1, 0 or 1
inline int direction(uint32_t bits, uint32_t seed) {
  uint32_t h = (bits ^ seed * 0x9E3779B9u) * 0x85EBCA6Bu;
  h = (h ^ h >> 13) * 0xC2B2AE35u;
  return static_cast<int>((h ^ h >> 16) % 3) - 1;
}

enum Approximation { kExp2, kLog2, kReciprocal };
// 2^x: relative error at most 2^-22, 2^0 exact. log2 x: relative error at most 2^-22, absolute 2^-22 in (0.5, 2). 1/x: 1 ulp.
template <Approximation kWhich>
inline float approximated(float x, uint32_t seed) {
  if (x != x) return __builtin_bit_cast(float, 0x7FFFFFFFu);
  x = flushed(x);
  double y, error;
  if (kWhich == kExp2) {
    if (x == 0) return 1.f;
    y = std::exp2(static_cast<double>(x)), error = 0x1p-22 * y;
  } else if (kWhich == kLog2) {
    if (x < 0) return __builtin_bit_cast(float, 0x7FFFFFFFu);
    if (x == 0) return -HUGE_VALF;
    y = std::log2(static_cast<double>(x)), error = x > 0.5f && x < 2.f ? 0x1p-22 : 0x1p-22 * std::fabs(y);
    if (x == 1.f) return 0.f;
  } else {
    if (x == 0) return std::copysign(HUGE_VALF, x);
    y = 1 / static_cast<double>(x), error = 0x1p-24 * std::fabs(y);
  }
  if (seed && std::isfinite(y)) {
    const int way = direction(__builtin_bit_cast(uint32_t, x), seed + kWhich);
    y += way * (error * 0.98);
  }
  return flushed(static_cast<float>(y));
}

}  // namespace approximations
