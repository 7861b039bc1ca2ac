// Passes over two rows: the residual's sum, and the histogram of the ratios t / d that the selection among several draws is made of.
#pragma once
#include "../coupling.h"
#include "sums.h"

namespace specsample {

// Probabilities in float. A ratio's bin is decided on them in every pass alike, to the bit: nothing here may be contracted.
struct Pair {
  Affine t, d;
  float norm_t, norm_d;

  static SPS_DEVICE Pair of(const Law& target, const Law& draft, const Norms& norms) {
    return {Affine::of(target), Affine::of(draft), static_cast<float>(norms.t), static_cast<float>(norms.d)};
  }
  SPS_DEVICE float target(float z) const { return __fmul_rn(t.weight(clamp_logit(z)), norm_t); }
  SPS_DEVICE float draft(float z) const { return __fmul_rn(d.weight(clamp_logit(z)), norm_d); }
};

// A token's bin; -1 for the tail.
SPS_DEVICE int ratio_bin(float t, float d, const Binning& binning) {
  if (!(t >= binning.tail) && !(d >= binning.tail)) return -1;
  return static_cast<int>(fminf(fmaf(__fdiv_rn(t, d), binning.per_unit, 0.5f), static_cast<float>(binning.count - 1)));
}
SPS_DEVICE int bin_of(float t, float d, const Binning& binning) {
  const int bin = ratio_bin(t, d, binning);
  return bin < 0 ? binning.tail_bin : bin;
}

// f(t, d, of one token) over a unit of the target's row.
template <class F>
SPS_DEVICE void each_pair(const Pair& pair, const Order& o, const Unit& unit, int64_t first, const F& f) {
  const int64_t common = o.draft.vocab < o.law.vocab ? o.draft.vocab : o.law.vocab;
  Unit other[1];
  load_units<1>(o.draft.row, o.dtype, first, 0, common, other);
#pragma unroll
  for (int j = 0; j < kUnit; ++j) f(pair.target(unit.z[j]), pair.draft(other[0].z[j]));
}

// Sum of (scale t - b)+; both laws have rows, and ids that the draft lacks have weight 0 there.
SPS_DEVICE double residual_sum(Scratch& s, const Order& o) {
  const Pair pair = Pair::of(o.law, o.draft, o.norms);
  const BinRatios ratios = o.ratios;
  const float scale = static_cast<float>(o.scale);
  return sum_over(s, o.law.row, o.dtype, o.law.vocab, [&](const Unit& unit, int64_t first) {
    float part = 0;
    each_pair(pair, o, unit, first, [&](float t, float d) {
      if (ratios.of_bin) d *= static_cast<float>(ratios.of_bin[bin_of(t, d, ratios.binning)]);
      const float rest = fmaf(scale, t, -d);
      part += rest > 0 ? rest : 0;
    });
    return part;
  });
}

// Probability of the tokens that take part, relative to the largest of them: 1 - the others' would lose its digits.
SPS_DEVICE double rest_mass(Scratch& s, const Order& o) {
  Law rest = o.law;
  rest.max = row_max(s, o.law, o.dtype, o.skip);
  if (!(rest.max >= rest.cutoff)) return 0;
  const double mass = kept_mass(s, rest, o.dtype, o.skip);
  return once(s, [&] { return mass * exp((static_cast<double>(rest.max) - o.law.max) * rest.scale) / o.law.mass; });
}

constexpr float kFixed = 0x1p60f;  // of a histogram: sums of a law fit 64 bits, and no sum depends on an order

// Tokens of one bin, added up by a thread while they follow each other, and by a warp when all its lanes have the same.
struct Run {
  int bin = -1;
  unsigned long long t = 0, d = 0;

  SPS_DEVICE void flush(unsigned long long* histogram) {
    if (bin < 0) return;
    if (t) atomicAdd(&histogram[2 * bin], t);
    if (d) atomicAdd(&histogram[2 * bin + 1], d);
    t = d = 0;
  }
  SPS_DEVICE void add(unsigned long long* histogram, int at, float t_, float d_) {
    if (at != bin) flush(histogram), bin = at;
    t += static_cast<unsigned long long>(t_ * kFixed), d += static_cast<unsigned long long>(d_ * kFixed);
  }
  SPS_DEVICE void flush_warp(unsigned long long* histogram) {
    const int first = __shfl_sync(kFullWarp, bin, 0);
    if (__ballot_sync(kFullWarp, bin == first) == kFullWarp) {
      t = warp_sum(t), d = warp_sum(d);
      if (lane_id() == 0) flush(histogram);
      t = d = 0;
    } else {
      flush(histogram);
    }
  }
};

// Adds the tokens to a histogram [count][2], but for the tail, whose sums are left in s.tile_sum and s.other_sum.
SPS_DEVICE void scatter(Scratch& s, const Order& o, unsigned long long* histogram) {
  const Pair pair = Pair::of(o.law, o.draft, o.norms);
  const Binning binning = o.coupling.binning;
  each_tile(o.law.vocab, [&](int tile, int64_t begin, int64_t end) {
    double tail_t = 0, tail_d = 0;
    for (int64_t piece = begin; piece < end; piece += kPiece) {
      float part_t = 0, part_d = 0;
      Run run;
#pragma unroll 1
      for (int u = 0; u < kLaneUnits; ++u) {  // not unrolled: the text of a token is long
        const int64_t first = lane_first(piece) + u * 32 * kUnit;
        Unit unit[1];
        load_units<1>(o.law.row, o.dtype, first, 0, end, unit);
        each_pair(pair, o, unit[0], first, [&](float t, float d) {
          const int bin = ratio_bin(t, d, binning);
          if (bin < 0) {
            part_t += t, part_d += d;
          } else {
            run.add(histogram, bin, t, d);
          }
        });
      }
      run.flush_warp(histogram);
      tail_t += warp_sum(static_cast<double>(part_t)), tail_d += warp_sum(static_cast<double>(part_d));
    }
    if (lane_id() == 0) s.tile_sum[tile] = tail_t, s.other_sum[tile] = tail_d;
  });
}

// The sums of o.coupling. -> the tail's bin
SPS_DEVICE int histogram(Scratch& s, const Order& o) {
  Coupling coupling = o.coupling;
  const int count = coupling.binning.count;
  const bool here = count <= kShared, point = o.draft.only >= 0;
  auto* const fixed = here ? s.histogram : reinterpret_cast<unsigned long long*>(coupling.sums);
  for (int i = thread_id(); i < 2 * count; i += thread_count()) fixed[i] = 0;
  SPS_CREW_BARRIER();
  double tail_t = 0, tail_d = 0;
  if (!point) {
    if (here) {
      scatter(s, o, s.histogram);
    } else {
      scatter(s, o, reinterpret_cast<unsigned long long*>(coupling.sums));
    }
    SPS_CREW_BARRIER();
    tail_t = total(s.tile_sum, tile_count(o.law.vocab)), tail_d = total(s.other_sum, tile_count(o.law.vocab));
  }
  for (int i = thread_id(); i < 2 * count; i += thread_count())  // what the target lacks has ratio 0
    coupling.sums[i] = static_cast<double>(fixed[i]) * (1.0 / kFixed) + (i == 1 ? o.beyond : 0);
  if (thread_id() == 0) coupling.target(count) = tail_t, coupling.draft(count) = tail_d;
  SPS_CREW_BARRIER();
  if (point && thread_id() == 0) {  // tokens that are never drawn belong to the last bin
    const int bin = coupling.binning.of_ratio(o.point, 1);
    coupling.target(bin) = o.point, coupling.draft(bin) = 1;
    coupling.target(count - 1) += 1 - o.point;
  }
  SPS_CREW_BARRIER();
  coupling.close_sums(Crew());
  return coupling.binning.tail_bin;
}

}  // namespace specsample
