// Reading rows of logits: eight tokens at a time, with 16-byte loads if a row is aligned, whatever the dtype.
//
// The dtype is a value, not a template parameter: one test of it serves many tokens, and each kernel is compiled once. Loops issue
// the loads of the next turn before they process the current one, so that loads are always in flight.
#pragma once
#include "fast.h"

namespace SPS_NAMESPACE {

struct Unit {
  float z[kUnit];
};

// A logit as stored in memory, so that several loads can be issued before the first value is used.
SPS_DEVICE uint32_t logit_bits(const void* row, int dtype, int64_t token) {
  if (dtype == kFloat32) return __ldg(static_cast<const uint32_t*>(row) + token);
  return __ldg(static_cast<const uint16_t*>(row) + token);
}
SPS_DEVICE float logit_of(uint32_t bits, int dtype) {
  if (dtype == kFloat32) return clamp_logit(__uint_as_float(bits));
  return clamp_logit(dtype == kBfloat16 ? from_bfloat16(bits) : from_float16(bits));
}
SPS_DEVICE float logit(const void* row, int dtype, int64_t token) { return logit_of(logit_bits(row, dtype, token), dtype); }

SPS_DEVICE uint32_t pack(uint32_t low, uint32_t high) { return low | high << 16; }
SPS_DEVICE uint4 load16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }

// Units as stored in memory (+inf and NaN included): 16-bit types in the first kUnits words, float32 in two words per unit.
template <int kUnits>
struct Batch {
  uint4 word[2 * kUnits];

  // Load tokens first .. first + 7 of each unit, units `step` apart; -inf at or beyond `end`, where nothing is read.
  SPS_DEVICE void load(const void* row, int dtype, int first, int step, int end) {
    const bool aligned = (reinterpret_cast<uintptr_t>(row) & 15) == 0;
    if (aligned && first + (kUnits - 1) * step + kUnit <= end) {
      if (dtype == kFloat32) {
        const float* p = static_cast<const float*>(row) + first;
#pragma unroll
        for (int u = 0; u < 2 * kUnits; ++u) word[u] = load16(p + (u >> 1) * step + (u & 1) * 4);
      } else {
        const uint16_t* p = static_cast<const uint16_t*>(row) + first;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) word[u] = load16(p + u * step);
      }
      return;
    }
    if (dtype == kFloat32) {
#pragma unroll
      for (int u = 0; u < 2 * kUnits; ++u) {
        const int begin = first + (u >> 1) * step + (u & 1) * 4;
        if (aligned && begin + 4 <= end) {  // the team's last turn: only some units reach beyond the end
          word[u] = load16(static_cast<const float*>(row) + begin);
          continue;
        }
        uint32_t z[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = begin + j;
          z[j] = i < end ? __ldg(static_cast<const uint32_t*>(row) + i) : 0xFF800000u;
        }
        word[u] = uint4{z[0], z[1], z[2], z[3]};
      }
      return;
    }
    if (!aligned && first + (kUnits - 1) * step + kUnit <= end) {  // issue all loads before the first is packed
      const uint16_t* p = static_cast<const uint16_t*>(row) + first;
      uint16_t z[kUnits][kUnit];
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int j = 0; j < kUnit; ++j) z[u][j] = __ldg(p + u * step + j);
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        word[u] = uint4{pack(z[u][0], z[u][1]), pack(z[u][2], z[u][3]), pack(z[u][4], z[u][5]), pack(z[u][6], z[u][7])};
      return;
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int begin = first + u * step;
      if (aligned && begin + kUnit <= end) {
        word[u] = load16(static_cast<const uint16_t*>(row) + begin);
        continue;
      }
      uint32_t z[kUnit];
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        const int i = begin + j;
        z[j] = i < end ? __ldg(static_cast<const uint16_t*>(row) + i) : dtype == kBfloat16 ? 0xFF80u : 0xFC00u;
      }
      word[u] = uint4{pack(z[0], z[1]), pack(z[2], z[3]), pack(z[4], z[5]), pack(z[6], z[7])};
    }
  }

  SPS_DEVICE void widen(int dtype, Unit (&out)[kUnits]) const {
    if (dtype == kBfloat16) {
      widen_pairs<true>(out);
    } else if (dtype == kFloat16) {
      widen_pairs<false>(out);
    } else {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 a = word[2 * u], b = word[2 * u + 1];
        out[u] = Unit{{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w), __uint_as_float(b.x),
                       __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)}};
      }
    }
  }

  // The largest logit of each kEach consecutive units; NaN is ignored; -inf if there is nothing else.
  template <int kEach>
  SPS_DEVICE void tops(int dtype, float (&top)[kUnits / kEach]) const {
    if (dtype == kBfloat16) {
      tops_of_pairs<true, kEach>(top);
    } else if (dtype == kFloat16) {
      tops_of_pairs<false, kEach>(top);
    } else {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 a = word[2 * u], b = word[2 * u + 1];
        const uint32_t bits[kUnit] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        float& largest = top[u / kEach];
        if (u % kEach == 0) largest = -HUGE_VALF;
#pragma unroll
        for (int j = 0; j < kUnit; ++j) largest = fmaxf(largest, __uint_as_float(bits[j]));
      }
    }
  }
  SPS_DEVICE float top(int dtype) const {
    float all[1];
    tops<kUnits>(dtype, all);
    return all[0];
  }

 private:
  template <bool kBrain>
  static SPS_DEVICE float low(uint32_t pair) {
    return kBrain ? from_bfloat16(pair) : from_float16(pair & 0xFFFFu);
  }
  template <bool kBrain>
  static SPS_DEVICE float high(uint32_t pair) {
    return kBrain ? __uint_as_float(pair & 0xFFFF0000u) : from_float16(pair >> 16);
  }
  template <bool kBrain>
  SPS_DEVICE void widen_pairs(Unit (&out)[kUnits]) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t pair[kUnit / 2] = {word[u].x, word[u].y, word[u].z, word[u].w};
#pragma unroll
      for (int j = 0; j < kUnit; ++j) out[u].z[j] = j & 1 ? high<kBrain>(pair[j / 2]) : low<kBrain>(pair[j / 2]);
    }
  }
  template <bool kBrain>
  static SPS_DEVICE uint32_t max_word(const uint4& w) {
    return max_pairs<kBrain>(max_pairs<kBrain>(w.x, w.y), max_pairs<kBrain>(w.z, w.w));
  }
  template <bool kBrain, int kEach>
  SPS_DEVICE void tops_of_pairs(float (&top)[kUnits / kEach]) const {
#pragma unroll
    for (int i = 0; i < kUnits / kEach; ++i) {
      uint32_t pair = max_word<kBrain>(word[i * kEach]);
#pragma unroll
      for (int u = 1; u < kEach; ++u) pair = max_pairs<kBrain>(pair, max_word<kBrain>(word[i * kEach + u]));
      top[i] = fmaxf(fmaxf(low<kBrain>(pair), -HUGE_VALF), high<kBrain>(pair));
    }
  }
};

SPS_DEVICE Unit read_unit(const void* row, int dtype, int first, int end) {
  Batch<1> batch;
  Unit unit[1];
  batch.load(row, dtype, first, 0, end);
  batch.widen(dtype, unit);
  return unit[0];
}

// All threads of the team call test(largest of eight logits) over the whole row, and work(first token) for units where it returns
// true; work reads the logits again (read_unit), which few units need. Several tests may run before their work. No barrier inside.
template <class Test, class Work>
SPS_DEVICE void each_unit(const void* row, int dtype, int vocab, const Test& test, const Work& work) {
  constexpr int kAtOnce = 4;
  const int step = team_threads() * kUnit, start = team_thread() * kUnit;
  Batch<kAtOnce> batch = {};
  for (int first = start - kAtOnce * step; first < vocab;) {  // the first turn only loads
    float top[kAtOnce];
    batch.template tops<1>(dtype, top);
    const int here = first;
    first += kAtOnce * step;
    if (first < vocab) batch.load(row, dtype, first, step, vocab);
    if (here < start) continue;
    uint32_t wanted = 0;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) wanted |= test(top[u]) ? 1u << u : 0u;
    for (; wanted; wanted &= wanted - 1) work(here + (__ffs(static_cast<int>(wanted)) - 1) * step);
  }
}

// Largest logit of this thread's units; -inf if there is none.
SPS_DEVICE float thread_top(const void* row, int dtype, int vocab) {
  float top = -HUGE_VALF;
  const auto none = [&](float most) { return top = fmaxf(top, most), false; };
  each_unit(row, dtype, vocab, none, [](int) {});
  return top;
}

}  // namespace SPS_NAMESPACE
