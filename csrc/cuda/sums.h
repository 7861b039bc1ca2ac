// Sums over rows. A row is cut into tiles by its length alone; a warp sums a tile in one fixed order, and the tiles are added
// in one fixed order, so that a sum has the same bits whatever the number of threads or blocks.
#pragma once
#include "rows.h"

namespace specsample {

constexpr int kLaneUnits = 4, kPiece = 32 * kLaneUnits * kUnit;  // a warp's 1024 tokens, held in registers

// log2 of a weight is (z - max) (high + low): the scale in two floats, since one would cost the tail 1e-6.
struct Affine {
  float max, high, low, cutoff;

  static SPS_DEVICE Affine of(const Law& law) {
    const double scale = law.scale * kLog2e;
    const float high = static_cast<float>(scale);
    return {law.max, high, static_cast<float>(scale - high), law.cutoff};
  }

  // exp of the tempered logit relative to the maximum, 2^(gap high + gap low) = 2^(k + f); 0 where filtered, NaN or below
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
};

SPS_DEVICE int64_t tile_length(int64_t vocab) {
  const int64_t each = (vocab + kMaxTiles - 1) / kMaxTiles;
  return (each + kPiece - 1) / kPiece * kPiece;
}
SPS_DEVICE int tile_count(int64_t vocab) {
  const int64_t length = tile_length(vocab);
  return static_cast<int>((vocab + length - 1) / length);
}

// f(tile, begin, end) by a warp for each of its tiles.
template <class F>
SPS_DEVICE void each_tile(int64_t vocab, const F& f) {
  const int64_t length = tile_length(vocab);
  const int count = tile_count(vocab);
  for (int tile = warp_id(); tile < count; tile += warp_count()) {
    const int64_t begin = tile * length, end = begin + length < vocab ? begin + length : vocab;
    f(tile, begin, end);
  }
}

// This lane's first token of a piece; the others follow 256 tokens apart.
SPS_DEVICE int64_t lane_first(int64_t piece) { return piece + lane_id() * kUnit; }
SPS_DEVICE void load_piece(const void* row, int dtype, int64_t piece, int64_t end, Unit (&unit)[kLaneUnits]) {
  load_units<kLaneUnits>(row, dtype, lane_first(piece), 32 * kUnit, end, unit);
}

// Sum of the tiles' sums, which are in shared memory: every warp adds them alike.
SPS_DEVICE double total(const double* tile_sum, int count) {
  double sum = 0;
  for (int i = lane_id(); i < count; i += 32) sum += tile_sum[i];
  return warp_sum(sum);
}

// Sum of f(unit of the row, first token of it) over the row; f returns one weight a token, added here in order.
template <class F>
SPS_DEVICE double sum_over(Scratch& s, const void* row, int dtype, int64_t vocab, const F& f) {
  each_tile(vocab, [&](int tile, int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t piece = begin; piece < end; piece += kPiece) {
      Unit unit[kLaneUnits];
      load_piece(row, dtype, piece, end, unit);
      float part = 0;
#pragma unroll
      for (int u = 0; u < kLaneUnits; ++u) part += f(unit[u], lane_first(piece) + u * 32 * kUnit);
      sum += warp_sum(static_cast<double>(part));
    }
    if (lane_id() == 0) s.tile_sum[tile] = sum;
  });
  SPS_CREW_BARRIER();
  const double sum = total(s.tile_sum, tile_count(vocab));
  SPS_CREW_BARRIER();
  return sum;
}

// Tokens of a unit that take no part become -inf.
SPS_DEVICE void leave_out(const Skip& skip, int64_t first, Unit& unit) {
  bool any = first < skip.before || (skip.one >= first && skip.one < first + kUnit);
  for (int64_t i = 0; i < skip.count; ++i) any |= skip.token[i] >= first && skip.token[i] < first + kUnit;
  if (!any) return;
#pragma unroll
  for (int j = 0; j < kUnit; ++j)
    if (skip.has(first + j)) unit.z[j] = -HUGE_VALF;
}

SPS_DEVICE double kept_mass(Scratch& s, const Law& law, int dtype, const Skip& skip = Skip()) {
  const Affine a = Affine::of(law);
  return sum_over(s, law.row, dtype, law.vocab, [&](Unit unit, int64_t first) {
    leave_out(skip, first, unit);
    float part = 0;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) part += a.weight(clamp_logit(unit.z[j]));
    return part;
  });
}

// Largest logit and the mass of an unfiltered row in one read: each tile's sum is relative to its own maximum.
SPS_DEVICE void max_and_mass(Scratch& s, Law& law, int dtype) {
  each_tile(law.vocab, [&](int tile, int64_t begin, int64_t end) {
    float top = -HUGE_VALF;
    double sum = 0;
    for (int64_t piece = begin; piece < end; piece += kPiece) {
      Unit unit[kLaneUnits];
      load_piece(law.row, dtype, piece, end, unit);
      float here = -HUGE_VALF;
#pragma unroll
      for (int u = 0; u < kLaneUnits; ++u)
#pragma unroll
        for (int j = 0; j < kUnit; ++j) here = unit[u].z[j] > here ? unit[u].z[j] : here;  // NaN is never larger
      here = clamp_logit(warp_max(here));
      if (!(here > -HUGE_VALF)) continue;
      Law relative = law;
      relative.max = here;
      const Affine a = Affine::of(relative);
      float part = 0;
#pragma unroll
      for (int u = 0; u < kLaneUnits; ++u)
#pragma unroll
        for (int j = 0; j < kUnit; ++j) part += a.weight(unit[u].z[j]);
      const double mass = warp_sum(static_cast<double>(part));
      if (!(top > -HUGE_VALF)) {
        top = here, sum = mass;
      } else if (here > top) {
        sum = sum * exp((static_cast<double>(top) - here) * law.scale) + mass;
        top = here;
      } else {
        sum += mass * exp((static_cast<double>(here) - top) * law.scale);
      }
    }
    if (lane_id() == 0) s.tile_max[tile] = top, s.tile_sum[tile] = sum;
  });
  SPS_CREW_BARRIER();
  const int count = tile_count(law.vocab);
  float top = -HUGE_VALF;
  for (int i = lane_id(); i < count; i += 32) top = s.tile_max[i] > top ? s.tile_max[i] : top;
  law.max = warp_max(top);
  for (int i = thread_id(); i < count; i += thread_count())
    if (s.tile_sum[i] > 0)
      s.tile_sum[i] *= exp((static_cast<double>(s.tile_max[i]) - law.max) * law.scale);
  SPS_CREW_BARRIER();
  law.mass = total(s.tile_sum, count);
  SPS_CREW_BARRIER();
}

// Largest logit of the row but for some tokens; -inf when nothing is finite.
SPS_DEVICE float row_max(Scratch& s, const Law& law, int dtype, const Skip& skip) {
  float top = -HUGE_VALF;
  each_unit(law.row, dtype, law.vocab, [&](int64_t first, Unit unit) {
    leave_out(skip, first, unit);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) top = unit.z[j] > top ? unit.z[j] : top;
  });
  return clamp_logit(block_max(s, top));
}

// The kept token after (z, id) in the order of the logits, largest first, the lowest id on ties; its id is -1 when there is none.
SPS_DEVICE Best next_likeliest(Scratch& s, const Law& law, int dtype, float after_z, int64_t after_id) {
  float top = -HUGE_VALF;
  int64_t id = -1;
  each_unit(law.row, dtype, law.vocab, [&](int64_t first, const Unit& unit) {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float z = clamp_logit(unit.z[j]);
      const bool after = z < after_z || (z == after_z && first + j > after_id);
      if (z >= law.cutoff && after && z > top) top = z, id = first + j;
    }
  });
  return block_best(s, Best{static_cast<double>(top), id});
}

}  // namespace specsample
