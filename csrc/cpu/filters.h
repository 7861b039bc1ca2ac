// Top-k and top-p as one cut-off per row, exact, with ties kept, and without sorting or copying the row.
#pragma once
#include <cstring>
#include <vector>

#include "passes.h"

namespace SPS_NAMESPACE {

// The k-th largest logit of the row (-FLT_MAX if fewer are finite): for small k, a heap of the k largest, whose root is a bound
// that few tokens pass; for large k, digit by digit over order-preserving bits.
inline float kth_largest(const Passes& passes, const void* row, int64_t vocab, int64_t k) {
  if (k <= 1024) {
    struct Heap {
      size_t size;
      std::vector<float> least_first;
    } heap{static_cast<size_t>(k), {}};
    heap.least_first.reserve(heap.size);
    const Visit visit = [](void* context, int64_t, uint32_t mask, const float* logits, const float*) {
      auto& [size, h] = *static_cast<Heap*>(context);
      for (; mask; mask &= mask - 1) {
        const float z = logits[__builtin_ctz(mask)];
        if (h.size() < size) {
          h.push_back(z), std::push_heap(h.begin(), h.end(), std::greater<>());
        } else if (z > h.front()) {
          std::pop_heap(h.begin(), h.end(), std::greater<>());
          h.back() = z, std::push_heap(h.begin(), h.end(), std::greater<>());
        }
      }
    };
    // Tile by tile, so that the bound rises as the heap fills.
    for (int64_t i = 0; i < vocab; i += 1024) {
      const float bound = heap.least_first.size() < heap.size ? -FLT_MAX : heap.least_first.front();
      passes.scan(row, i, std::min(vocab, i + 1024), bound, nullptr, visit, &heap);
    }
    return heap.least_first.size() < heap.size ? -FLT_MAX : heap.least_first.front();
  }

  struct Digits {
    uint32_t prefix = 0, mask = 0;  // bits already decided
    int shift = 0;
    std::vector<uint32_t> count;
    static uint32_t key(float z) {  // unsigned order of keys = order of floats
      const uint32_t b = __builtin_bit_cast(uint32_t, z + 0.0f);  // -0 and 0 are equal
      return b & 0x80000000u ? ~b : b | 0x80000000u;
    }
  } digits;
  int64_t rank = k;
  for (int bits = 32; bits > 0; bits -= 8) {
    digits.shift = bits - 8;
    digits.count.assign(256, 0);
    passes.scan(
        row, 0, vocab, -FLT_MAX, nullptr,
        [](void* context, int64_t, uint32_t mask, const float* logits, const float*) {
          auto& d = *static_cast<Digits*>(context);
          for (; mask; mask &= mask - 1) {
            const uint32_t key = Digits::key(logits[__builtin_ctz(mask)]);
            if ((key & d.mask) == d.prefix) ++d.count[key >> d.shift & 255];
          }
        },
        &digits);
    int digit = 255;
    while (digit > 0 && rank > digits.count[digit]) rank -= digits.count[digit--];
    if (rank > digits.count[digit]) return -FLT_MAX;
    digits.prefix |= static_cast<uint32_t>(digit) << digits.shift;
    digits.mask |= 255u << digits.shift;
  }
  const uint32_t key = digits.prefix;
  return __builtin_bit_cast(float, key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

// The smallest logit with less than `goal` mass above it: the cut-off of top-p. Weights are relative to law.max and `total` is
// their sum over logits >= law.cutoff; 0 < goal < total.
//
// Since the tokens at or below the answer hold at least total - goal, its weight is at least (total - goal) / V: a histogram
// over the logits above that bound finds the bin in which the goal is crossed, and that bin is sorted (or subdivided again).
inline float top_p_cutoff(const Passes& passes, const Law& law, double goal, double total) {
  constexpr int kBins = 1024, kSortable = 4096;
  struct Histogram {
    float high, low, per_unit;
    std::vector<double> mass;
    std::vector<uint32_t> count;
    int wanted = -1;  // bin to collect; -1 while counting
    std::vector<std::pair<float, float>> tokens;
    float seen_high = -FLT_MAX, seen_low = FLT_MAX;
    int bin(float z) const { return static_cast<int>(std::min<float>((high - z) * per_unit, kBins - 1)); }
  } h;
  const Affine affine = Affine::of(law);
  h.high = law.max;
  h.low = static_cast<float>(
      std::max<double>(law.cutoff, law.max + std::log((total - goal) / static_cast<double>(law.vocab)) / law.scale -
                                       1e-3 * (1 + 1 / law.scale + std::fabs(law.max))));
  const Visit visit = [](void* context, int64_t, uint32_t mask, const float* logits, const float* weights) {
    auto& h = *static_cast<Histogram*>(context);
    for (; mask; mask &= mask - 1) {
      const int l = __builtin_ctz(mask);
      const float z = logits[l];
      if (z > h.high) continue;  // later rounds are restricted to lower logits
      const int bin = h.bin(z);
      if (h.wanted < 0) {
        h.mass[bin] += weights[l], ++h.count[bin];
      } else if (bin == h.wanted) {
        h.seen_high = std::max(h.seen_high, z), h.seen_low = std::min(h.seen_low, z);
        if (h.tokens.size() <= kSortable) h.tokens.emplace_back(z, weights[l]);
      }
    }
  };
  double above = 0;
  for (;;) {
    if (!(h.high > h.low)) return h.high;
    h.per_unit = std::min(static_cast<float>(kBins / (static_cast<double>(h.high) - h.low)), FLT_MAX);
    h.mass.assign(kBins, 0), h.count.assign(kBins, 0), h.wanted = -1;
    passes.scan(law.row, 0, law.vocab, h.low, &affine, visit, &h);
    int bin = 0, last = -1;
    while (bin < kBins && above + h.mass[bin] < goal) {
      if (h.count[bin]) last = bin;
      above += h.mass[bin++];
    }
    if (bin == kBins) {  // rounding: the last token decides
      if (last < 0) return h.low;
      bin = last, above -= h.mass[bin];
    }
    h.wanted = bin, h.tokens.clear(), h.seen_high = -FLT_MAX, h.seen_low = FLT_MAX;
    passes.scan(law.row, 0, law.vocab, h.low, &affine, visit, &h);
    if (h.tokens.size() <= kSortable) break;
    h.high = h.seen_high, h.low = h.seen_low;
  }
  std::sort(h.tokens.begin(), h.tokens.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  float cutoff = h.tokens.front().first;
  for (const auto& [z, weight] : h.tokens) {
    if (!(above < goal)) break;
    cutoff = z, above += weight;
  }
  return cutoff;
}

}  // namespace SPS_NAMESPACE
