// Reading rows of logits: eight tokens at a time, by 16-byte loads where a row is aligned, whatever the dtype.
//
// The dtype is a value, not a template parameter: one test of it serves eight tokens, and each kernel is compiled once.
#pragma once
#include "block.h"

namespace specsample {

constexpr int kUnit = 8;  // tokens read by a thread at once: two Philox counters

struct Unit {
  float z[kUnit];
};

SPS_DEVICE float from_bfloat16(uint32_t bits) { return __uint_as_float(bits << 16); }
SPS_DEVICE float from_float16(uint32_t bits) {
  // Exponent and mantissa moved up; a multiplication rescales them, subnormals included. Infinities and NaN keep theirs.
  const uint32_t magnitude = (bits & 0x7FFFu) << 13, sign = (bits & 0x8000u) << 16;
  const uint32_t value =
      magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : __float_as_uint(__uint_as_float(magnitude) * 0x1p112f);
  return __uint_as_float(value | sign);
}

SPS_DEVICE float logit(const void* row, int dtype, int64_t token) {
  if (dtype == kFloat32) return clamp_logit(__ldg(static_cast<const float*>(row) + token));
  const uint32_t bits = __ldg(static_cast<const uint16_t*>(row) + token);
  return clamp_logit(dtype == kBfloat16 ? from_bfloat16(bits) : from_float16(bits));
}

SPS_DEVICE uint4 load16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }

SPS_DEVICE void widen(uint4 raw, int dtype, Unit& out) {
  const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    out.z[2 * j] = dtype == kBfloat16 ? from_bfloat16(word[j]) : from_float16(word[j] & 0xFFFFu);
    out.z[2 * j + 1] = dtype == kBfloat16 ? __uint_as_float(word[j] & 0xFFFF0000u) : from_float16(word[j] >> 16);
  }
}

// Tokens first .. first + 7 as they stand (+inf and NaN included); -inf from `end` on.
template <int kUnits>
SPS_DEVICE void load_units(const void* row, int dtype, int64_t first, int64_t step, int64_t end, Unit (&out)[kUnits]) {
  const char* p = static_cast<const char*>(row);
  const bool aligned = (reinterpret_cast<uintptr_t>(row) & 15) == 0;
  if (aligned && first + (kUnits - 1) * step + kUnit <= end) {  // all loads are on their way before the first is used
    if (dtype == kFloat32) {
      uint4 raw[2 * kUnits];
#pragma unroll
      for (int u = 0; u < 2 * kUnits; ++u) raw[u] = load16(p + (first + (u >> 1) * step) * 4 + (u & 1) * 16);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 a = raw[2 * u], b = raw[2 * u + 1];
        out[u] = Unit{{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
                       __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)}};
      }
      return;
    }
    uint4 raw[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) raw[u] = load16(p + (first + u * step) * 2);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) widen(raw[u], dtype, out[u]);
    return;
  }
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const int64_t i = first + u * step + j;
      float z = -HUGE_VALF;
      if (i < end) {
        if (dtype == kFloat32) {
          z = __ldg(static_cast<const float*>(row) + i);
        } else {
          const uint32_t bits = __ldg(static_cast<const uint16_t*>(row) + i);
          z = dtype == kBfloat16 ? from_bfloat16(bits) : from_float16(bits);
        }
      }
      out[u].z[j] = z;
    }
  }
}

// f(first token, eight logits) over the whole row, by all threads of the block. No barrier inside.
template <class F>
SPS_DEVICE void each_unit(const void* row, int dtype, int64_t vocab, const F& f) {
  constexpr int kAtOnce = 2;
  const int64_t step = static_cast<int64_t>(thread_count()) * kUnit;
  for (int64_t first = static_cast<int64_t>(thread_id()) * kUnit; first < vocab; first += kAtOnce * step) {
    Unit unit[kAtOnce];
    load_units<kAtOnce>(row, dtype, first, step, vocab, unit);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) f(first + u * step, unit[u]);
  }
}

}  // namespace specsample
