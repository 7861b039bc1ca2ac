// Instructions that C++ cannot express, and their substitutes on the CPU.
#pragma once
#include "block.h"

namespace SPS_NAMESPACE {

// 2^x by the special-function unit, relative error at most 2^-22; exact for x = 0, and 0 below 2^-126.
SPS_DEVICE float exp2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const uint32_t seed = cuda_on_cpu::settings.perturb;
  if (seed) return approximations::approximated<approximations::kExp2>(x, seed);
  return x < -126.f ? 0.f : exp2f(x);
#endif
}

// log2 x by the special-function unit: absolute or relative error at most 2^-21; -inf below 2^-126.
SPS_DEVICE float log2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const uint32_t seed = cuda_on_cpu::settings.perturb;
  if (seed) return approximations::approximated<approximations::kLog2>(x, seed);
  return x < 0x1p-126f ? -HUGE_VALF : std::log2(x);
#endif
}

// 1 / x, relative error about 2^-23; infinite for x below 2^-126.
SPS_DEVICE float reciprocal_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const uint32_t seed = cuda_on_cpu::settings.perturb;
  if (seed) return approximations::approximated<approximations::kReciprocal>(x, seed);
  return 1 / (x < 0x1p-126f ? 0.f : x);
#endif
}

// max(x, 0), but NaN is kept.
SPS_DEVICE float positive(float x) {
#if defined(__CUDACC__)
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
#else
  return x > 0 || x != x ? x : 0.f;
#endif
}

SPS_DEVICE float from_bfloat16(uint32_t bits) { return __uint_as_float(bits << 16); }
SPS_DEVICE float from_float16(uint32_t bits) {
#if defined(__CUDACC__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(static_cast<uint16_t>(bits)));
  return y;
#else
  // Exponent and mantissa are shifted up; a multiplication rescales them, subnormals included. Infinities and NaN are kept.
  const uint32_t magnitude = (bits & 0x7FFFu) << 13, sign = (bits & 0x8000u) << 16;
  const uint32_t value =
      magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : __float_as_uint(__uint_as_float(magnitude) * 0x1p112f);
  return __uint_as_float(value | sign);
#endif
}

// Elementwise maximum of two pairs of 16-bit floats; NaN never wins over a number.
template <bool kBrain>
SPS_DEVICE uint32_t max_pairs(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t c;
  if constexpr (kBrain) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  }
  return c;
#else
  const auto value = [](uint32_t bits) { return kBrain ? from_bfloat16(bits) : from_float16(bits); };
  const auto larger = [&](uint32_t x, uint32_t y) { return value(y) > value(x) || value(x) != value(x) ? y : x; };
  return larger(a & 0xFFFFu, b & 0xFFFFu) | larger(a >> 16, b >> 16) << 16;
#endif
}

// The largest of a warp's floats, none of them NaN: as integers in the same order, one instruction reduces all lanes.
SPS_DEVICE float warp_max_fast(float v) {
#if defined(__CUDACC__)
  return from_ordered(__reduce_max_sync(kFullWarp, ordered(v)));
#else
  return warp_max(v);
#endif
}

// A value that is equal in all lanes of a warp. Hides its origin from the compiler, so that a loop keeps it in a register instead of
// recomputing it.
SPS_DEVICE uint32_t of_warp(uint32_t v) {
#if defined(__CUDACC__)
  return __reduce_or_sync(kFullWarp, v);
#else
  return v;
#endif
}

// Adds to a 64-bit sum in shared or global memory, with 32-bit atomics: the old value of the lower half gives the carry.
// The sum is consistent after the next barrier.
SPS_DEVICE void add_wide(unsigned long long* sum, unsigned long long value) {
  uint32_t* const half = reinterpret_cast<uint32_t*>(sum);
  const uint32_t low = static_cast<uint32_t>(value), old = atomicAdd(half, low);
  const uint32_t high = static_cast<uint32_t>(value >> 32) + (old + low < old);
  if (high) atomicAdd(half + 1, high);
}

}  // namespace SPS_NAMESPACE
