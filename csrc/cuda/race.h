// The exponential race over a row, argmax of log w - log E, with logarithms for the few tokens that can win.
//
// 1. A token's score is at most log2 w - log2 u, since E >= u. One exponential and one comparison a token tell whether that
//    can reach `goal`, what the best token is already known to reach.
// 2. Tokens that pass get a score in float, with a bound on its error; the best of them raise `goal`, and those that it does
//    not exclude are listed as candidates.
// 3. The candidates that the final `goal` leaves are scored exactly, in double.
// The winner is the exact one in whatever order the threads run.
#pragma once
#include "sums.h"

namespace specsample {

// log w - log E of a token, exactly; -inf for one of no weight.
SPS_DEVICE double exact_score(const Race& race, int64_t token, float z, int dtype) {
  double log_weight;
  if (race.residual) {
    double w = race.target.weight(z) * race.target_norm;
    if (token < race.draft.vocab) w -= race.draft.weight(logit(race.draft.row, dtype, token)) * race.draft_norm;
    if (!(w > 0)) return -kInfinity;
    log_weight = log(w);
  } else {
    log_weight = (static_cast<double>(z) - race.level) * race.target.scale;
  }
  return log_weight - race.stream.log_clock(token, race.stream.word(token));
}

// log2 of the clock of a word that needs no second one: E = -log(1 - u), by its series where u is small.
SPS_DEVICE float log2_clock(uint32_t r) {
  const float u = fmaf(static_cast<float>(r), 0x1p-32f, 0x1p-33f);
  const float rest = fmaf(static_cast<float>(~r), 0x1p-32f, 0x1p-33f);
  const float series = u * fmaf(u, fmaf(u, 0.33333334f, 0.5f), 1.f);
  return __log2f(r < (1u << 26) ? series : -0.6931472f * __log2f(rest));
}

// Room for the float rounding of a score (and of the approximate logarithms), which grows with its size.
SPS_DEVICE float slack(float score) { return 2e-3f + 1e-6f * fabsf(score); }

// Winner of the race in s.race; `infinite` when a +inf logit took part: the row's law is uniform over those, and the race is
// to be run again on it.
SPS_DEVICE Best run_race(Scratch& s, int dtype, bool& infinite) {
  const Race& race = *s.race;
  const Law& law = race.target;
  const Affine t = Affine::of(law), d = Affine::of(race.draft);
  const float base = race.residual ? law.max : race.level;
  const float norm_t = static_cast<float>(race.target_norm), norm_d = static_cast<float>(race.draft_norm);
  const float offset = race.residual ? static_cast<float>(once(s, [&] { return log(race.target_norm) * kLog2e; })) : 0.f;
  constexpr float kLeast = -67.f;  // below log2 of the smallest uniform, 2^-65
  if (thread_id() == 0) s.goal = ordered(-3e38f), s.candidates = 0, s.infinite = 0;
  __syncthreads();

  each_unit(law.row, dtype, law.vocab, [&](int64_t first, const Unit& raw) {
    const float bias = offset - from_ordered(current(s.goal));
    float y[kUnit];  // log2 of a bound on u
    bool possible = false;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float z = clamp_logit(raw.z[j]);
      y[j] = fmaf(z - base, t.high, bias);
      if (!(z >= law.cutoff)) y[j] = -HUGE_VALF;
      possible |= y[j] >= kLeast;
    }
    if (!possible) return;
    const Stream& st = race.stream;
    const uint32_t block = static_cast<uint32_t>(first >> 2);
    const Words low = philox(Words{{block, st.position_low, st.position_high, st.purpose_slot}}, st.key0, st.key1);
    const Words high = philox(Words{{block + 1, st.position_low, st.position_high, st.purpose_slot}}, st.key0, st.key1);
    const uint32_t r[kUnit] = {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
    bool passes = false;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const bool pass = y[j] >= kLeast && static_cast<float>(r[j]) <= exp2f(y[j] + 32.001f);
      y[j] = pass ? 0.f : -HUGE_VALF;
      passes |= pass;
    }
    if (!passes) return;

    float reached = -3e38f, above[kUnit];
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      above[j] = -HUGE_VALF;
      if (y[j] < 0) continue;
      const float z = clamp_logit(raw.z[j]);
      if (z >= kLargest && law.scale != 0) atomicMax(&s.infinite, 1u);
      if (race.excludes(first + j)) continue;
      if (r[j] < kRefineBelow) {  // its clock needs the second word
        above[j] = HUGE_VALF;
        continue;
      }
      const float clock = log2_clock(r[j]);
      float most, least;
      if (race.residual) {
        const float wt = t.weight(z) * norm_t;
        float wd = 0;
        if (first + j < race.draft.vocab) wd = d.weight(logit(race.draft.row, dtype, first + j)) * norm_d;
        const float error = 1e-6f * (wt + wd) + 1e-37f;
        if (!(wt - wd + error > 0)) continue;
        most = __log2f(wt - wd + error) - clock;
        least = wt - wd - error > 0 ? __log2f(wt - wd - error) - clock : -3e38f;
      } else {
        most = least = fminf(fmaf(z - base, t.high, offset) - clock, 3e38f);
      }
      above[j] = most + slack(most);
      least -= slack(least);
      reached = least > reached ? least : reached;
    }
    if (ordered(reached) > current(s.goal)) atomicMax(&s.goal, ordered(reached));
    const float goal = from_ordered(current(s.goal));
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (!(above[j] >= goal)) continue;
      const uint32_t place = atomicAdd(&s.candidates, 1u);
      if (place < kCandidates) s.candidate[place] = Candidate{above[j], static_cast<int32_t>(first + j)};
    }
  });
  __syncthreads();

  // Exact scores. When the list overflowed (a law so nearly covered by its draft that nothing could be excluded), every token
  // that can reach the goal is scored.
  const float goal = from_ordered(s.goal);
  infinite = s.infinite != 0;
  const bool all = s.candidates > kCandidates;
  const int64_t count = all ? law.vocab : s.candidates;
  Best best = Best::none();
  for (int64_t i = thread_id(); i < count; i += thread_count()) {
    int64_t token = i;
    if (!all) {
      token = s.candidate[i].id;
      if (s.candidate[i].above < goal) continue;
    }
    const float z = logit(law.row, dtype, token);
    if (!(z >= law.cutoff)) continue;
    if (all) {
      const float bound = fmaf(z - base, t.high, offset - goal);
      if (!(static_cast<float>(race.stream.word(token)) <= exp2f(bound + 32.001f)) || race.excludes(token)) continue;
    }
    best.offer(exact_score(race, token, z, dtype), token);
  }
  return block_best(s, best);
}

}  // namespace specsample
