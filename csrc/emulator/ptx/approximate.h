// The special-function unit's approximations (../approximations.h) as instructions, and the 16-bit floats.
#pragma once
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cmath>

#include "../approximations.h"
#include "code.h"

namespace ptx {

using namespace approximations;

inline float half_to_float(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t magnitude = (bits & 0x7FFFu) << 13, sign = (bits & 0x8000u) << 16;
  if (magnitude >= 0x0F800000u) return __builtin_bit_cast(float, magnitude | 0x7F800000u | sign);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) * 0x1p112f) | sign);
#endif
}
inline uint16_t float_to_half(float x) {  // to nearest even
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = bits >> 16 & 0x8000u;
  if (x != x) return 0x7FFF;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.f) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  const uint32_t m = __builtin_bit_cast(uint32_t, magnitude) - (112u << 23);
  return static_cast<uint16_t>(sign | (m + 0xFFFu + (m >> 13 & 1)) >> 13);
}
inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return x != x ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

template <Approximation kWhich>
void approximate(Warp& w, const Instruction& i, uint32_t lanes) {
  float* const d = w.at<float>(i.d);
  const float* const a = w.at<float>(i.a);
  const uint32_t seed = w.machine.settings.perturb;
  each(lanes, [&](int l) { d[l] = approximated<kWhich>(a[l], seed); });
}
// rcp.approx.ftz.f64: the upper 32 bits only, relative error about 2^-20; the kernels' divisions refine it.
inline void approximate_reciprocal(Warp& w, const Instruction& i, uint32_t lanes) {
  double* const d = w.at<double>(i.d);
  const double* const a = w.at<double>(i.a);
  const uint32_t seed = w.machine.settings.perturb;
  each(lanes, [&](int l) {
    const double x = std::fabs(a[l]) < 0x1p-1022 ? std::copysign(0.0, a[l]) : a[l], y = 1 / x;
    uint64_t bits = __builtin_bit_cast(uint64_t, y);
    if (std::isfinite(y) && y != 0 && seed)
      bits += static_cast<uint64_t>(static_cast<int64_t>(direction(static_cast<uint32_t>(bits >> 32), seed)) * (1ll << 32));
    d[l] = std::fabs(y) < 0x1p-1022 ? std::copysign(0.0, y) : __builtin_bit_cast(double, bits & ~0xFFFFFFFFull);
  });
}

}  // namespace ptx
