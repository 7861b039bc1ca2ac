// Top-k, top-p and min-p as one cut-off per row: exact, with ties kept, and without copying the row.
//
// Top-k and top-p are one search: for the smallest logit z such that the total weight of tokens strictly above z stays below a
// goal, where a token weighs 1 (top-k, goal k) or its probability (top-p). Logits are mapped to integers in the same order, and z
// is found digit by digit, each by a histogram of the weights of the tokens that share the earlier digits. Weights are added in
// fixed point, so that no sum depends on the order in which the threads run.
#pragma once
#include "sums.h"

namespace SPS_NAMESPACE {

// A weight of 1 in fixed point: the largest for which the weights of a whole row fit 62 bits.
SPS_DEVICE float fixed_one(int64_t vocab) {
  const int bits = 64 - __clzll(static_cast<long long>(vocab));
  return __uint_as_float(static_cast<uint32_t>(127 + 62 - bits) << 23);
}

// An unsigned integer that orders like the float; -0 and 0 are equal.
SPS_DEVICE uint32_t order_key(float z) {
  const uint32_t b = __float_as_uint(z + 0.f);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}
SPS_DEVICE float from_order_key(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

// Finds the bin in which the goal is crossed: the last non-empty one with less than the goal above it. One warp reads the
// histogram from the top. Sets s.bin (-1: all bins are empty) and s.above.
SPS_DEVICE void find_bin(Scratch& s, int bins, int top, unsigned long long above, double goal) {
  if (warp_id() == 0) {
    int found = -1;
    unsigned long long found_above = above;
    for (int high = top | 31; high >= 0; high -= 32) {
      const int bin = high - lane_id();
      const unsigned long long here = bin < bins ? s.histogram[bin] : 0ull;
      unsigned long long sum = here;  // of this lane's bin and those above it
#pragma unroll
      for (int by = 1; by < 32; by <<= 1) {
        const unsigned long long other = __shfl_up_sync(kFullWarp, sum, by);
        if (lane_id() >= by) sum += other;
      }
      const unsigned long long before = above + sum - here;
      const uint32_t inside = __ballot_sync(kFullWarp, here > 0 && static_cast<double>(before) < goal);
      if (inside) {
        const int last = 31 - __clz(static_cast<int>(inside));
        found = high - last;
        found_above = __shfl_sync(kFullWarp, before, last);
      }
      above += __shfl_sync(kFullWarp, sum, 31);
      if (!(static_cast<double>(above) < goal)) break;
    }
    if (lane_id() == 0) s.bin = found, s.above = found_above;
  }
  SPS_CREW_BARRIER();
}

// The smallest logit >= bound with less than `goal` above it; -FLT_MAX if there is no token at all or, with `all_below`, if all
// tokens together do not reach the goal.
template <class Weigh>
SPS_DEVICE float select(Scratch& s, const Law& law, int dtype, float bound, double goal, bool all_below, const Weigh& weigh) {
  uint32_t prefix = 0, mask = 0;
  unsigned long long above = 0;
  for (int shift = 21;; shift = shift > 10 ? shift - 11 : 0) {  // digits of 11, 11 and 10 bits
    const int width = shift ? 11 : 10, bins = 1 << width;
    for (int i = thread_id(); i < bins; i += thread_count()) s.histogram[i] = 0;
    SPS_CREW_BARRIER();
    each_unit(
        law.row, dtype, law.vocab, [&](float most) { return most >= bound; },
        [&](int first) {
          const Unit unit = read_unit(law.row, dtype, first, law.vocab);
#pragma unroll
          for (int j = 0; j < kUnit; ++j) {
            const float z = clamp_logit(unit.z[j]);
            if (!(z >= bound)) continue;
            const uint32_t key = order_key(z);
            if ((key & mask) == prefix) add_wide(&s.histogram[key >> shift & (bins - 1)], weigh(z));
          }
        });
    merge_histograms(s, bins);
    const uint32_t highest = order_key(law.max);
    const int top = (highest & mask) == prefix ? static_cast<int>(highest >> shift & (bins - 1)) : bins - 1;
    find_bin(s, bins, top, above, goal);
    const int bin = s.bin;
    above = s.above;
    const unsigned long long inside = bin < 0 ? 0 : s.histogram[bin];
    SPS_CREW_BARRIER();
    if (bin < 0 || (all_below && static_cast<double>(above + inside) < goal)) return -FLT_MAX;
    prefix |= static_cast<uint32_t>(bin) << shift;
    mask |= static_cast<uint32_t>(bins - 1) << shift;
    if (shift == 0) return from_order_key(prefix);
  }
}

// A bound that at least k logits reach: the k-th largest of the maxima of a crew's threads, for the crew where it is largest.
// -FLT_MAX if k exceeds the number of threads.
SPS_DEVICE float kth_bound(Scratch& s, const Law& law, int dtype, double k) {
  if (k > thread_count()) return -FLT_MAX;
  const float top = clamp_logit(fmaxf(thread_top(law.row, dtype, law.vocab), -FLT_MAX));
  float* maxima = reinterpret_cast<float*>(s.histogram);
  maxima[thread_id()] = top;
  SPS_CREW_BARRIER();
  int larger = 0;  // or equal with a lower thread id, so that every rank is unique
  for (int i = 0; i < thread_count(); ++i) larger += maxima[i] > top || (maxima[i] == top && i < thread_id());
  if (larger + 1 == static_cast<int>(k)) s.once = top;
  SPS_CREW_BARRIER();
  return team_max(s, static_cast<float>(s.once));
}

// The cut-off of the filters for a row with a finite maximum; law.max and law.scale are set, nothing is filtered yet.
SPS_DEVICE float filter_cutoff(Scratch& s, Law law, int dtype, const Sampling& sampling) {
  if (sampling.by_k(law.vocab)) {
    const double k = floor(sampling.top_k);
    const float bound = kth_bound(s, law, dtype, k);
    law.cutoff = select(s, law, dtype, bound, k, true, [](float) { return 1ull; });
  }
  if (sampling.by_p()) {
    const double mass = kept_mass<true>(s, law, dtype);
    const double top_p = sampling.top_p > 0 ? sampling.top_p : 0, goal = top_p * (1 - kSlack) * mass;
    if (goal > 0) {
      // The tokens at or below the answer hold at least mass - goal, so its weight is at least (mass - goal) / V.
      const double room = 1e-3 * (1 + 1 / law.scale + fabs(static_cast<double>(law.max)));
      const double least =
          law.max + once(s, [&] { return log((mass - goal) / static_cast<double>(law.vocab)) / law.scale; }) - room;
      const float bound = static_cast<float>(least > law.cutoff ? least : law.cutoff);
      const Affine a = Affine::of(law);
      const float one = fixed_one(law.vocab);
      const float found = select(s, law, dtype, bound, goal * one, false,
                                 [&](float z) { return static_cast<unsigned long long>(a.weight(z) * one); });
      law.cutoff = found > law.cutoff ? found : law.cutoff;
    } else {
      law.cutoff = law.max;
    }
  }
  if (sampling.by_min_p()) {
    const double least = once(s, [&] { return law.max + (log(sampling.min_p < 1 ? sampling.min_p : 1.0) - kSlack) / law.scale; });
    float rounded = static_cast<float>(least > -static_cast<double>(FLT_MAX) ? least : -static_cast<double>(FLT_MAX));
    if (rounded < least) rounded = nextafterf(rounded, FLT_MAX);
    law.cutoff = rounded > law.cutoff ? rounded : law.cutoff;
  }
  return law.cutoff;
}

}  // namespace SPS_NAMESPACE
