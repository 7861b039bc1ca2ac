// The exponential race over a row, argmax of log w - log E, with logarithms for the few tokens that can win.
//
// 1. A token's score is at most log2 w - log2 u, since E >= u. One exponential and one comparison a token tell whether that
//    can reach `goal`, what the best token is already known to reach.
// 2. Tokens that pass get a score in float, with a bound on its error; the best of them raise `goal`, and those that it does
//    not exclude are listed as candidates.
// 3. The candidates that the final `goal` leaves are scored exactly, in double.
// The winner is the exact one in whatever order the threads run.
#pragma once
#include "ratios.h"

namespace specsample {

// log w - log E of a token, exactly; -inf for one of no weight.
SPS_DEVICE double exact_score(const Race& race, int64_t token, float z, int dtype) {
  double log_weight;
  if (race.residual) {
    const Law& draft = race.draft;
    const double t = race.target.weight(z) * race.norms.t;
    double b = 0;
    if (draft.only >= 0) {
      b = token == draft.only;
    } else if (token < draft.vocab && !draft.lacks(token)) {
      const float zd = logit(draft.row, dtype, token);
      b = draft.weight(zd) * race.norms.d;
      if (race.ratios.of_bin && b > 0) {
        const Pair pair = Pair::of(race.target, draft, race.norms);
        b *= race.ratios.of_bin[bin_of(pair.target(z), pair.draft(zd), race.ratios.binning)];
      }
    }
    const double w = fmax(race.scale * t - b, race.floor * t);
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

// The draft's share of a token that may win, to a relative 1e-6.
SPS_DEVICE float draft_share(const Race& race, const Pair& pair, int64_t token, float t, int dtype) {
  const Law& draft = race.draft;
  if (draft.only >= 0) return token == draft.only;
  if (token >= draft.vocab || draft.lacks(token)) return 0;
  const float d = pair.draft(logit(draft.row, dtype, token));
  if (!race.ratios.of_bin) return d;
  return d * static_cast<float>(race.ratios.of_bin[bin_of(t, d, race.ratios.binning)]);
}

// Winner of the race in s.race; `infinite` when a +inf logit took part: the row's law is uniform over those, and the race is
// to be run again on it.
SPS_DEVICE Best run_race(Scratch& s, int dtype, bool& infinite) {
  const Race& race = *s.race;
  const Law& law = race.target;
  const Pair pair = Pair::of(law, race.draft, race.norms);
  const Affine& t = pair.t;
  const float base = race.residual ? law.max : race.level;
  const float scale = static_cast<float>(race.scale), floor = static_cast<float>(race.floor);
  const float offset =
      race.residual ? static_cast<float>(once(s, [&] { return log(race.scale * race.norms.t) * kLog2e; })) : 0.f;
  constexpr float kLeast = -67.f;  // below log2 of the smallest uniform, 2^-65
  if (thread_id() == 0) s.goal = ordered(-3e38f), s.candidates = 0, s.infinite = 0;
  SPS_CREW_BARRIER();

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
      if (race.skip.has(first + j)) continue;
      if (r[j] < kRefineBelow) {  // its clock needs the second word
        above[j] = HUGE_VALF;
        continue;
      }
      const float clock = log2_clock(r[j]);
      float most, least;
      if (race.residual) {
        const float wt = pair.target(z), wd = draft_share(race, pair, first + j, wt, dtype);
        const float w = fmaxf(scale * wt - wd, floor * wt), error = 1e-6f * (scale * wt + wd) + 1e-37f;
        if (!(w + error > 0)) continue;
        most = __log2f(w + error) - clock;
        least = w - error > 0 ? __log2f(w - error) - clock : -3e38f;
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
  SPS_CREW_BARRIER();

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
      if (!(static_cast<float>(race.stream.word(token)) <= exp2f(bound + 32.001f)) || race.skip.has(token)) continue;
    }
    best.offer(exact_score(race, token, z, dtype), token);
  }
  return block_best(s, best);
}

constexpr double kPlainScores = 1e6;  // larger ones, not relative to the row's maximum, would cost the clocks digits

// Winner of the race in s.race, which is run again where it must be; its id is -1 for a broken row.
SPS_DEVICE Best race_of(Scratch& s, int dtype) {
  Race& race = *s.race;
  bool levelled = false;
  for (;;) {
    bool infinite = false;
    const Best best = run_race(s, dtype, infinite);
    enum { kDone, kWithoutDraft, kUniform, kRelative, kAll } next = kDone;
    float level = 0;
    if (race.residual) {
      if (best.id < 0) next = kWithoutDraft;  // the draft covers the target up to rounding: fall back to the target's law
    } else if (infinite) {
      next = kUniform;  // over the +inf logits
    } else if (!levelled && (best.id < 0 || fabs(best.score) > kPlainScores)) {
      // Nothing found, or logits so large that the clocks are lost beside them: run relative to the largest.
      levelled = true;
      level = row_max(s, race.target, dtype, race.skip);
      if (level > -HUGE_VALF) next = kRelative;
    }
    if (next == kDone && best.id < 0 && race.skip.one >= 0) next = kAll, levelled = false;  // the draft's token is all there is
    if (next == kDone) return best;
    SPS_CREW_BARRIER();
    if (thread_id() == 0) {
      if (next == kWithoutDraft) race.residual = false;
      if (next == kUniform) race.target.cutoff = kLargest, race.target.scale = 0;
      if (next == kRelative) race.level = level;
      if (next == kAll) race.skip.one = -1, race.level = 0;
    }
    SPS_CREW_BARRIER();
  }
}

}  // namespace specsample
