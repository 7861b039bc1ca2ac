// Sums over rows. A row is cut into tiles, determined by its length alone; a warp sums a tile in a fixed order, and the tiles are
// added in a fixed order, so that a sum is bit-identical whatever the number of threads or blocks.
#pragma once
#include "rows.h"

namespace SPS_NAMESPACE {

constexpr int kPiece = 1024;  // tokens per warp: 32 per lane

// log2 of a weight is (z - max) (high + low): the scale as two floats, since with one the tail would be off by 1e-6.
struct Affine {
  float max, high, low, cutoff;

  static SPS_DEVICE Affine of(const Law& law) {
    const double scale = law.scale * kLog2e;
    const float high = static_cast<float>(scale);
    return {law.max, high, static_cast<float>(scale - high), law.cutoff};
  }

  // exp of the tempered logit relative to the maximum, 2^(gap high + gap low) = 2^(k + f); 0 if filtered, NaN or below
  // 2^-126. 2^f by a polynomial of degree 6, relative error below 8e-8; the CPU's lanes compute the same.
  SPS_DEVICE float weight(float z) const {
    const float magic = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits of the sum
    const float gap = z - max, sum = fmaf(gap, high, magic), minus_k = magic - sum;
    const float f = fmaf(gap, low, fmaf(gap, high, minus_k));
    float p = 0x1.41fbbcp-13f;
    p = fmaf(p, f, 0x1.5f3e52p-10f);
    p = fmaf(p, f, 0x1.3b2d4cp-7f);
    p = fmaf(p, f, 0x1.c6aee8p-5f);
    p = fmaf(p, f, 0x1.ebfbdcp-3f);
    p = fmaf(p, f, 0x1.62e430p-1f);
    p = fmaf(p, f, 1.f);
    const float w = __uint_as_float(__float_as_uint(p) + (__float_as_uint(sum) << 23));
    return z >= cutoff && minus_k <= 126.f ? w : 0.f;
  }

  // The same for a kept logit, by the special-function unit. Relative error: at most 2^-22 from its result, plus
  // 2^-24 ln 2 |log2 w| for each rounding of its argument (here, and in `gap` if the logits are float32). At worst 1e-6
  // for a weight of 2^-18, twice that in float32, 1.1e-5 at the lower end of 2^-126; a sum of 2^18 weights is off by 8e-7
  // (float32: 1.4e-6) if all roundings go the same way, typically by a tenth of that.
  SPS_DEVICE float fast(float z) const {
    const float gap = z - max;
    return exp2_fast(fmaf(gap, high, __fmul_rn(gap, low)));
  }
  SPS_DEVICE float kept(float z) const { return z >= cutoff ? fast(z) : 0.f; }
};

SPS_DEVICE int tile_length(int vocab) {
  const int each = (vocab + kMaxTiles - 1) / kMaxTiles;
  return (each + kPiece - 1) / kPiece * kPiece;
}
SPS_DEVICE int tile_count(int vocab) { return (vocab + tile_length(vocab) - 1) / tile_length(vocab); }

// A warp's iteration over its tiles (the team's warps share the tiles), `kStep` tokens at a time; it starts before the first.
template <int kStep>
struct Way {
  const int vocab, length = tile_length(vocab), count = tile_count(vocab);
  const int warps = team_warps();
  int tile = team_warp() - warps, at = 0, end = 0;

  SPS_DEVICE explicit Way(int vocab) : vocab(vocab) {}
  SPS_DEVICE bool begun() const { return tile >= 0; }
  SPS_DEVICE bool more() const { return tile < count; }
  SPS_DEVICE int lane_first() const { return at + lane_id() * kUnit; }  // this lane's first token; the others are 256 apart
  // Returns whether a tile is done.
  SPS_DEVICE bool next() {
    at += kStep;
    if (at < end) return false;
    tile += warps, at = tile * length;
    end = at + length < vocab ? at + length : vocab;
    return true;
  }
};

// Sum of the tiles' sums, which are in every block's shared memory: every warp adds them in the same order.
SPS_DEVICE double total(const double* tile_sum, int count) {
  double sum = 0;
  for (int i = lane_id(); i < count; i += 32) sum += tile_sum[i];
  return warp_sum(sum);
}

// Sums over rows: calls f(units of each row, first token, float sums to add to) for a lane's kUnits units of each row. Rows are
// padded with -inf beyond their lengths. The tiles' sums go to s.tile_sum, and the second ones, if any, to s.other_sum.
template <int kSums, int kUnits, int kRows, class F>
SPS_DEVICE void sum_tiles(Scratch& s, const void* const (&row)[kRows], const int (&lengths)[kRows], int dtype, const F& f) {
  Batch<kUnits> batch[kRows] = {};
  double sum[kSums] = {};
  for (Way<32 * kUnit * kUnits> way(lengths[0]); way.more();) {  // the first turn only loads
    Unit unit[kRows][kUnits];
#pragma unroll
    for (int r = 0; r < kRows; ++r) batch[r].widen(dtype, unit[r]);
    const bool begun = way.begun();
    const int tile = way.tile;
    const int first = way.lane_first();
    const bool done = way.next();
    if (way.more()) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        batch[r].load(row[r], dtype, way.lane_first(), 32 * kUnit, lengths[r] < way.end ? lengths[r] : way.end);
    }
    if (!begun) continue;
    float part[kSums] = {};
    f(unit, first, part);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] += static_cast<double>(part[i]);
    if (!done) continue;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      tell((i ? s.other_sum : s.tile_sum)[tile], warp_sum(sum[i]));
      sum[i] = 0;
    }
  }
}

SPS_DEVICE double sum_of_tiles(Scratch& s, int vocab) {
  SPS_TEAM_BARRIER(s);
  const double sum = total(s.tile_sum, tile_count(vocab));
  SPS_TEAM_BARRIER(s);
  return sum;
}

// Sum of f over a lane's tokens, in four independent chains.
template <int kUnits, class F>
SPS_DEVICE float sum_units(const Unit (&unit)[kUnits], const F& f) {
  float part[4];
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float w = f(unit[u].z[j]);
      part[j & 3] = u == 0 && j < 4 ? w : part[j & 3] + w;
    }
  return (part[0] + part[1]) + (part[2] + part[3]);
}

SPS_DEVICE void clamp(Unit& unit) {
#pragma unroll
  for (int j = 0; j < kUnit; ++j) unit.z[j] = clamp_logit(unit.z[j]);
}

// Skipped tokens of a unit become -inf.
SPS_DEVICE void leave_out(const Skip& skip, int first, Unit& unit) {
  bool any = first < skip.before || (skip.one >= first && skip.one < first + kUnit);
  for (int64_t i = 0; i < skip.count; ++i) any |= skip.token[i] >= first && skip.token[i] < first + kUnit;
  if (!any) return;
#pragma unroll
  for (int j = 0; j < kUnit; ++j)
    if (skip.has(first + j)) unit.z[j] = -HUGE_VALF;
}

// kClose: use the polynomial, whose error is far below the slack for ties of mass (kSlack).
template <bool kClose = false>
SPS_DEVICE double kept_mass(Scratch& s, const Law& law, int dtype, const Skip& skip = Skip()) {
  constexpr int kUnits = 4;
  const Affine a = Affine::of(law);
  const int vocab = static_cast<int>(law.vocab);
  const bool without = skip.any(), infinite = law.max >= kLargest;
  sum_tiles<1, kUnits, 1>(s, {law.row}, {vocab}, dtype, [&](Unit(&unit)[1][kUnits], int first, float (&part)[1]) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (without) leave_out(skip, first + u * 32 * kUnit, unit[0][u]);
      if (infinite) clamp(unit[0][u]);
    }
    part[0] = sum_units(unit[0], [&](float z) { return kClose ? a.weight(z) : a.kept(z); });
  });
  return sum_of_tiles(s, vocab);
}

// The largest logit of each tile, and the mass of an unfiltered tile relative to it: written to s.tile_max and s.tile_sum.
SPS_DEVICE void tile_masses(Scratch& s, const Law& law, int dtype) {
  Batch<4> batch = {};
  Affine a = Affine::of(law);
  double sum = 0;
  bool fresh = true;  // the sum contains nothing of the tile yet
  for (Way<kPiece> way(law.vocab); way.more();) {  // the first turn only loads
    const float here = clamp_logit(warp_max_fast(batch.top(dtype)));
    Unit unit[4];
    batch.widen(dtype, unit);
    const bool begun = way.begun();
    const int tile = way.tile;
    const bool done = way.next();
    if (way.more()) batch.load(law.row, dtype, way.lane_first(), 32 * kUnit, way.end);
    if (!begun) continue;
    if (fresh) {
      a.max = here;
    } else if (here > a.max) {
      if (sum > 0) sum *= exp((static_cast<double>(a.max) - here) * law.scale);
      a.max = here;
    }
    // log2 w = z high - level in one fma, in which the product is exact. The rounding of `level` is corrected in the sum; the scale's
    // part beyond `high` is dropped, at most one rounding more than in Affine::fast.
    const float product = __fmul_rn(a.max, a.high);
    const float level = fabsf(product) < 0x1p14f ? product : NAN;
    float part = sum_units(unit, [&](float z) { return exp2_fast(fmaf(z, a.high, -level)); });
    float off = 0.6931472f * fmaf(a.max, a.high, -level);
    if (!(part < HUGE_VALF)) {  // NaN or +inf among them, or large logits
      part = sum_units(unit, [&](float z) { return a.kept(clamp_logit(z)); });
      off = 0;
    }
    sum += fma(static_cast<double>(part), static_cast<double>(off * fmaf(off, 0.5f, -1.f)), static_cast<double>(part));
    fresh = done;
    if (!done) continue;
    tell(s.tile_max[tile], a.max), tell(s.tile_sum[tile], warp_sum(sum));
    sum = 0;
  }
}

// Largest logit and the mass of an unfiltered row in one read.
SPS_DEVICE void max_and_mass(Scratch& s, Law& law, int dtype) {
  tile_masses(s, law, dtype);
  SPS_TEAM_BARRIER(s);
  const int count = tile_count(law.vocab);
  float top = -HUGE_VALF;
  for (int i = lane_id(); i < count; i += 32) top = s.tile_max[i] > top ? s.tile_max[i] : top;
  law.max = warp_max(top);
  for (int i = thread_id(); i < count; i += thread_count())
    if (s.tile_sum[i] > 0) s.tile_sum[i] *= exp((static_cast<double>(s.tile_max[i]) - law.max) * law.scale);
  SPS_CREW_BARRIER();
  law.mass = fmax(total(s.tile_sum, count), 1.0);  // the largest weight is 1 up to rounding: no probability exceeds 1
  SPS_TEAM_BARRIER(s);
}

// Largest logit of the row except for skipped tokens; -inf if nothing is finite.
SPS_DEVICE float row_max(Scratch& s, const Law& law, int dtype, const Skip& skip) {
  float top = -HUGE_VALF;
  if (!skip.any()) {
    top = thread_top(law.row, dtype, law.vocab);
  } else {
    each_unit(
        law.row, dtype, law.vocab, [&](float most) { return most > top; },
        [&](int first) {
          Unit unit = read_unit(law.row, dtype, first, law.vocab);
          leave_out(skip, first, unit);
#pragma unroll
          for (int j = 0; j < kUnit; ++j) top = fmaxf(top, unit.z[j]);
        });
  }
  return clamp_logit(team_max(s, top));
}

// The kept token after (z, id) in the order of the logits, largest first, lowest id first on ties; its id is -1 if there is none.
SPS_DEVICE Best next_likeliest(Scratch& s, const Law& law, int dtype, float after_z, int64_t after_id) {
  float top = -HUGE_VALF;
  int64_t id = -1;
  const auto may_be = [&](float most) { return most > top && most >= law.cutoff; };
  each_unit(law.row, dtype, law.vocab, may_be, [&](int first) {
    const Unit unit = read_unit(law.row, dtype, first, law.vocab);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float z = clamp_logit(unit.z[j]);
      const bool after = z < after_z || (z == after_z && first + j > after_id);
      if (z >= law.cutoff && after && z > top) top = z, id = first + j;
    }
  });
  return team_best(s, Best{static_cast<double>(top), id});
}

}  // namespace SPS_NAMESPACE
