// Passes over two rows: the residual's sum, and the histogram of ratios t / d used for selection among several draws.
#pragma once
#include "../coupling.h"
#include "sums.h"

namespace SPS_NAMESPACE {

// Probabilities in float. Every pass must derive the same bin from them, bit for bit: nothing here may be contracted to an fma.
struct Pair {
  Affine t, d;
  float norm_t, norm_d;

  static SPS_DEVICE Pair of(const Law& target, const Law& draft, const Norms& norms) {
    return {Affine::of(target), Affine::of(draft), static_cast<float>(norms.t), static_cast<float>(norms.d)};
  }
  // Whether weights equal Affine::fast, except for NaN.
  SPS_DEVICE bool plain() const { return t.cutoff <= -FLT_MAX && d.cutoff <= -FLT_MAX && t.max < kLargest && d.max < kLargest; }
  // For logits that went through clamp_logit.
  SPS_DEVICE float target(float z) const { return __fmul_rn(t.kept(z), norm_t); }
  SPS_DEVICE float draft(float z) const { return __fmul_rn(d.kept(z), norm_d); }
};

// A token's bin; -1 for the tail.
SPS_DEVICE int ratio_bin(float t, float d, const Binning& binning) {
  if (!(t >= binning.tail) && !(d >= binning.tail)) return -1;
  const float ratio = __fmul_rn(t, reciprocal_fast(d));
  return static_cast<int>(fminf(fmaf(ratio, binning.per_unit, 0.5f), static_cast<float>(binning.count - 1)));
}
SPS_DEVICE int bin_of(float t, float d, const Binning& binning) {
  const int bin = ratio_bin(t, d, binning);
  return bin < 0 ? binning.tail_bin : bin;
}

constexpr int kPairUnits = 2;  // units of each row that a lane takes at once

// Sums over the tokens of both rows except `skip`; ids missing from the draft have weight 0. f(target's unit, draft's unit, sums).
template <int kSums, class F>
SPS_DEVICE void sum_pairs(Scratch& s, const Order& o, const Skip& skip, const F& f) {
  const auto infinite = [&] { return o.law.max >= kLargest || o.draft.max >= kLargest; };
  const bool rare = skip.any() || infinite();  // one branch and one register for both
  const int vocab = static_cast<int>(o.law.vocab), common = o.draft.vocab < vocab ? static_cast<int>(o.draft.vocab) : vocab;
  const auto add = [&](Unit(&unit)[2][kPairUnits], int first, float (&part)[kSums]) {
#pragma unroll
    for (int u = 0; u < kPairUnits; ++u) {
      if (rare) {
        const int at = first + u * 32 * kUnit;
        if (skip.any()) leave_out(skip, at, unit[0][u]), leave_out(skip, at, unit[1][u]);
        if (infinite()) clamp(unit[0][u]), clamp(unit[1][u]);
      }
      f(unit[0][u], unit[1][u], part);
    }
  };
  sum_tiles<kSums, kPairUnits, 2>(s, {o.law.row, o.draft.row}, {vocab, common}, o.dtype, add);
}

// Sum of (scale t - b)+; both laws have rows.
SPS_DEVICE double residual_sum(Scratch& s, const Order& o) {
  const Pair pair = Pair::of(o.law, o.draft, o.norms);
  const BinRatios& ratios = o.ratios;  // read where needed, like o.scale: in registers over the row they would spill
  const float norm = static_cast<float>(o.scale * o.norms.t);
  const bool plain = pair.plain();
  sum_pairs<1>(s, o, o.skip, [&](const Unit& target, const Unit& draft, float (&part)[1]) {
    float chain[2] = {};
    if (plain && !ratios.of_bin) {
#pragma unroll
      for (int j = 0; j < kUnit; ++j)
        chain[j & 1] += positive(fmaf(norm, pair.t.fast(target.z[j]), -__fmul_rn(pair.d.fast(draft.z[j]), pair.norm_d)));
      if (chain[0] + chain[1] < HUGE_VALF) {
        part[0] += chain[0] + chain[1];
        return;
      }
      chain[0] = chain[1] = 0;  // NaN among them
    }
    if (ratios.of_bin) {
      const float scale = static_cast<float>(o.scale);
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        const float t = pair.target(target.z[j]), d = pair.draft(draft.z[j]);
        const float ratio = static_cast<float>(ratios.of_bin[bin_of(t, d, ratios.binning)]);
        chain[j & 1] += fmaxf(fmaf(scale, t, -(d * ratio)), 0.f);
      }
    } else {
      const float norm = static_cast<float>(o.scale * o.norms.t);  // again: the outer one need not outlive the common path
#pragma unroll
      for (int j = 0; j < kUnit; ++j) chain[j & 1] += fmaxf(fmaf(norm, pair.t.kept(target.z[j]), -pair.draft(draft.z[j])), 0.f);
    }
    part[0] += chain[0] + chain[1];
  });
  return sum_of_tiles(s, o.law.vocab);
}

// The law conditioned on the token not being skipped, relative to the largest remaining logit; broken if no token remains.
SPS_DEVICE Law law_without(Scratch& s, const Order& o) {
  Law rest = o.law;
  rest.max = row_max(s, o.law, o.dtype, o.skip);
  rest.broken = !(rest.max >= rest.cutoff);
  if (!rest.broken) rest.mass = kept_mass(s, rest, o.dtype, o.skip);
  return rest;
}

constexpr double kFixed = 0x1p60;  // fixed point of histograms: a law's sums fit 64 bits and do not depend on the order

// x kFixed for 0 <= x < 16, rounded towards zero: the significand shifted into place.
SPS_DEVICE unsigned long long in_fixed(float x) {
  const uint32_t bits = __float_as_uint(x), right = 130 - (bits >> 23);
  const unsigned long long top = static_cast<unsigned long long>(bits << 8 | 0x80000000u) << 32;
  return right < 64 ? top >> right : 0;
}

// A run of tokens of the same bin, summed by a lane, and by a warp if all its lanes have the same bin.
struct Run {
  int bin = -1;
  float t = 0, d = 0;

  SPS_DEVICE void flush(unsigned long long* histogram) const {
    if (bin < 0) return;
    add_wide(&histogram[2 * bin], in_fixed(t));
    add_wide(&histogram[2 * bin + 1], in_fixed(d));
  }
  SPS_DEVICE void add(unsigned long long* histogram, int at, float t_, float d_) {
    if (at != bin) {
      flush(histogram);
      bin = at, t = t_, d = d_;
    } else {
      t += t_, d += d_;
    }
  }
  SPS_DEVICE void flush_warp(unsigned long long* histogram) const {
    const int first = __shfl_sync(kFullWarp, bin, 0);
    if (__ballot_sync(kFullWarp, bin != first)) {
      flush(histogram);
    } else if (first >= 0) {
      const unsigned long long sum_t = warp_sum(in_fixed(t)), sum_d = warp_sum(in_fixed(d));
      if (lane_id() == 0) add_wide(&histogram[2 * bin], sum_t), add_wide(&histogram[2 * bin + 1], sum_d);
    }
  }
};

// The least weight whose rounded product with `norm` reaches the tail's bound: weights are compared with it instead.
SPS_DEVICE float heavy_from(float tail, float norm) {
  float least = __fdiv_rn(tail, norm);
  for (int i = 0; i < 3; ++i) least = __fmul_rn(least, norm) < tail ? nextafterf(least, FLT_MAX) : least;
  for (int i = 0; i < 3; ++i) {
    const float below = nextafterf(least, 0.f);
    least = __fmul_rn(below, norm) < tail ? least : below;
  }
  return least;
}

// Adds the tokens to a histogram [count][2], except for the tail, whose sums are left in s.tile_sum and s.other_sum, not yet
// multiplied by the norms.
SPS_DEVICE void scatter(Scratch& s, const Order& o, unsigned long long* histogram) {
  const Pair pair = Pair::of(o.law, o.draft, o.norms);
  const Binning binning = o.coupling.binning;
  const bool plain = pair.plain();
  const float least_t = heavy_from(binning.tail, pair.norm_t), least_d = heavy_from(binning.tail, pair.norm_d);
  sum_pairs<2>(s, o, Skip(), [&](const Unit& target, const Unit& draft, float (&part)[2]) {
    float t[kUnit], d[kUnit];
    if (plain) {
#pragma unroll
      for (int j = 0; j < kUnit; ++j) t[j] = pair.t.fast(target.z[j]), d[j] = pair.d.fast(draft.z[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kUnit; ++j) t[j] = pair.t.kept(target.z[j]), d[j] = pair.d.kept(draft.z[j]);
    }
    bool all = true;  // in the tail
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const bool light = t[j] < least_t && d[j] < least_d;
      if (light) part[0] += t[j], part[1] += d[j];
      all &= light;
    }
    if (!__ballot_sync(kFullWarp, !all)) return;
    Run run;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (t[j] < least_t && d[j] < least_d) continue;
      t[j] = fmaxf(t[j], 0.f), d[j] = fmaxf(d[j], 0.f);  // NaN becomes 0
      const float a = __fmul_rn(t[j], pair.norm_t), b = __fmul_rn(d[j], pair.norm_d);
      const int bin = ratio_bin(a, b, binning);
      if (bin >= 0) {
        run.add(histogram, bin, a, b);
      } else {
        part[0] += t[j], part[1] += d[j];
      }
    }
    run.flush_warp(histogram);
  });
}

// The O(bins) part, done by the first block: from the team's histogram to the sums of o.coupling.
SPS_DEVICE void gather_sums(Scratch& s, const Order& o, bool here, double tail_t, double tail_d) {
  Coupling coupling = o.coupling;
  const int count = coupling.binning.count;
  for (int i = thread_id(); i < 2 * count; i += thread_count()) {
    const unsigned long long sum = here ? team_bin(s, i) : reinterpret_cast<unsigned long long*>(coupling.sums)[i];
    coupling.sums[i] = static_cast<double>(sum) * (1.0 / kFixed) + (i == 1 ? o.beyond : 0);  // ids the target lacks have ratio 0
  }
  if (thread_id() == 0) coupling.target(count) = tail_t, coupling.draft(count) = tail_d;
  SPS_CREW_BARRIER();
  if (o.draft.only >= 0 && thread_id() == 0) {  // tokens that are never drawn belong to the last bin
    const int bin = coupling.binning.of_ratio(o.point, 1);
    coupling.target(bin) = o.point, coupling.draft(bin) = 1;
    coupling.target(count - 1) += 1 - o.point;
  }
  SPS_CREW_BARRIER();
  coupling.close_sums(Crew());
}

// Computes the sums of o.coupling. Returns the tail's bin.
SPS_DEVICE int histogram(Scratch& s, const Order& o) {
  const Binning binning = o.coupling.binning;
  const bool here = binning.count <= kShared;  // in each block's shared memory, else in the coupling's memory
  auto* const shared = s.histogram;
  auto* const own = reinterpret_cast<unsigned long long*>(o.coupling.sums);
  SPS_TEAM_BARRIER(s);  // every conductor has finished reading the previous coupling
  for (int i = thread_id(); i < 2 * binning.count; i += thread_count()) {
    if (here) {
      shared[i] = 0;
    } else if (team_rank() == 0) {
      own[i] = 0;
    }
  }
  SPS_TEAM_BARRIER(s);
  double tail_t = 0, tail_d = 0;
  if (!(o.draft.only >= 0)) {
    if (here) {
      scatter(s, o, shared);
    } else {
      scatter(s, o, own);
    }
    SPS_TEAM_BARRIER(s);
    const int tiles = tile_count(o.law.vocab);
    tail_t = total(s.tile_sum, tiles) * o.norms.t, tail_d = total(s.other_sum, tiles) * o.norms.d;
  }
  if (team_rank() == 0) gather_sums(s, o, here, tail_t, tail_d);
  SPS_TEAM_BARRIER(s);
  return binning.of_ratio(tail_t, tail_d);  // as in close_sums
}

}  // namespace SPS_NAMESPACE
