// The exponential race over a row, argmax of log w - log E, with logarithms for the few tokens that can win.
//
// 1. A token's score is at most log2 w - log2 u, since E >= u. The largest of eight weights and the least of their eight words
//    tell whether that can reach `goal`, what the best token is already known to reach; then each token is asked.
// 2. Tokens that pass get a score in float, with a bound on its error; the best of them raise `goal`, and those that it does
//    not exclude are listed as candidates.
// 3. The candidates that the final `goal` leaves are scored exactly, in double.
// The winner is the exact one in whatever order the threads run.
#pragma once
#include "ratios.h"

namespace SPS_NAMESPACE {

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

constexpr float kPairError = 1.2e-5f;  // relative, of a probability in float (Affine::fast, Pair)

// The draft's share of a token that may win, to a relative kPairError.
SPS_DEVICE float draft_share(const Race& race, const Pair& pair, int64_t token, float t, int dtype) {
  const Law& draft = race.draft;
  if (draft.only >= 0) return token == draft.only;
  if (token >= draft.vocab || draft.lacks(token)) return 0;
  const float d = pair.draft(logit(draft.row, dtype, token));
  if (!race.ratios.of_bin) return d;
  return d * static_cast<float>(race.ratios.of_bin[bin_of(t, d, race.ratios.binning)]);
}

// Whether u can be so small that its log2 is `bound`; for a few more words than that, never for fewer.
SPS_DEVICE bool reaches(uint32_t word, float bound) { return word <= saturated(exp2_fast(bound + 32.001f)); }

// What the score of a token is at least and at most, in log2.
struct Range {
  float least, most;
};

// Winner of the race in s.race; `infinite` when a +inf logit took part: the row's law is uniform over those, and the race is
// to be run again on it.
SPS_DEVICE Best run_race(Scratch& s, int dtype, bool& infinite) {
  const Race& race = *s.race;
  const Law& law = race.target;
  const void* const row = law.row;
  const int vocab = static_cast<int>(law.vocab);
  const float cutoff = law.cutoff;
  const Pair pair = Pair::of(law, race.draft, race.norms);
  const Affine& t = pair.t;
  const float base = race.residual ? law.max : race.level;
  const float scale = static_cast<float>(race.scale), floor = static_cast<float>(race.floor);
  const float offset =
      race.residual ? static_cast<float>(once(s, [&] { return log(race.scale * race.norms.t) * kLog2e; })) : 0.f;
  constexpr float kLeast = -67.f, kNone = -3e38f;  // below log2 of the smallest uniform, 2^-65; a goal that everything reaches
  if (thread_id() == 0) s.goal = ordered(kNone), s.candidates = 0, s.infinite = 0;
  SPS_CREW_BARRIER();

  const Stream stream = race.stream;
  PhiloxKeys keys(stream.key0, stream.key1);
#pragma unroll
  for (int i = 0; i < 10; ++i) keys.low[i] = of_warp(keys.low[i]), keys.high[i] = of_warp(keys.high[i]);
  const auto words = [&](int first, uint32_t (&r)[kUnit]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Words w = stream.words(static_cast<uint32_t>(first >> 2) + i, keys);
#pragma unroll
      for (int j = 0; j < 4; ++j) r[4 * i + j] = w.v[j];
    }
  };
  const auto range = [&](int token, float z, uint32_t r) {
    const Range nothing{kNone, -HUGE_VALF};
    if (z >= kLargest && law.scale != 0) atomicMax(&s.infinite, 1u);
    if (race.skip.has(token)) return nothing;
    if (r < kRefineBelow) return Range{kNone, HUGE_VALF};  // its clock needs the second word
    const float clock = log2_clock(r);
    float least, most;
    if (race.residual) {
      const float wt = pair.target(z), wd = draft_share(race, pair, token, wt, dtype);
      const float w = fmaxf(scale * wt - wd, floor * wt), error = kPairError * (scale * wt + wd) + 1e-37f;
      if (!(w + error > 0)) return nothing;
      most = __log2f(w + error) - clock;
      least = w - error > 0 ? __log2f(w - error) - clock : kNone;
    } else {
      most = least = fminf(fmaf(z - base, t.high, offset) - clock, 3e38f);
    }
    return Range{least - slack(least), most + slack(most)};
  };

  {  // A goal to begin with: a token a thread.
    float least = kNone;
    if (thread_id() < vocab) {
      const float z = logit(row, dtype, thread_id());
      if (z >= cutoff) least = range(thread_id(), z, stream.word(thread_id())).least;
    }
    least = warp_max_fast(least);
    if (lane_id() == 0) atomicMax(&s.goal, ordered(least));
    SPS_CREW_BARRIER();
  }
  const auto known_now = [&] { return offset - from_ordered(current(s.goal)); };
  float known = 0;  // a while ago will do
  const auto bound_of = [&](float z) { return fmaf(z - base, t.high, known); };  // log2 of what u may be at most
  const auto may_win = [&](int u, float most, int first) {
    if (u == 0) known = known_now();
    most = clamp_logit(most);
    const float bound = bound_of(most);
    if (!(most >= cutoff && bound >= kLeast)) return false;
    uint32_t r[kUnit];
    words(first, r);
#pragma unroll
    for (int j = 1; j < kUnit; ++j) r[0] = r[j] < r[0] ? r[j] : r[0];
    return reaches(r[0], bound);
  };
  each_unit(row, dtype, vocab, may_win, [&](int first) {
    Unit unit = read_unit(row, dtype, first, vocab);
    uint32_t r[kUnit], passed = 0;
    words(first, r);
    known = known_now();
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float z = unit.z[j] = clamp_logit(unit.z[j]), bound = bound_of(z);
      passed |= z >= cutoff && bound >= kLeast && reaches(r[j], bound) ? 1u << j : 0u;
    }
    for (; passed; passed &= passed - 1) {
      const int at = __ffs(static_cast<int>(passed)) - 1;
      float z = unit.z[0];
      uint32_t word = r[0];
#pragma unroll
      for (int j = 1; j < kUnit; ++j)
        if (j == at) z = unit.z[j], word = r[j];
      const Range score = range(first + at, z, word);
      if (ordered(score.least) > current(s.goal)) atomicMax(&s.goal, ordered(score.least));
      if (!(score.most >= from_ordered(current(s.goal)))) continue;
      const uint32_t place = atomicAdd(&s.candidates, 1u);
      if (place < kCandidates) s.candidate[place] = Candidate{score.most, first + at};
    }
  });
  SPS_CREW_BARRIER();
  if (warp_id() == 0) tell(s.reached[team_rank()], Reached{s.goal, s.candidates, s.infinite});
  SPS_TEAM_BARRIER(s);
  int highest = s.goal;
  bool all = false;  // a list overflowed
  infinite = false;
  for (int rank = 0; rank < team_size(); ++rank) {
    const Reached& reached = s.reached[rank];
    highest = reached.goal > highest ? reached.goal : highest;
    infinite |= reached.infinite != 0, all |= reached.candidates > kCandidates;
  }

  // Exact scores, by each block of its own candidates. When a list overflowed (a law so nearly covered by its draft that nothing
  // could be excluded), every token that can reach the goal is scored.
  const float goal = from_ordered(highest);
  known = offset - goal;
  const int64_t count = all ? law.vocab : s.candidates;
  Best best = Best::none();
  for (int64_t i = all ? team_thread() : thread_id(); i < count; i += all ? team_threads() : thread_count()) {
    int64_t token = i;
    if (!all) {
      token = s.candidate[i].id;
      if (s.candidate[i].above < goal) continue;
    }
    const float z = logit(law.row, dtype, token);
    if (!(z >= law.cutoff)) continue;
    if (all && (!reaches(race.stream.word(token), bound_of(z)) || race.skip.has(token))) continue;
    best.offer(exact_score(race, token, z, dtype), token);
  }
  return team_best(s, best);
}

constexpr double kPlainScores = 1e6;  // larger ones, not relative to the row's maximum, would cost the clocks digits

// Winner of the race in s.race, which is run again where it must be; its id is -1 for a broken row.
SPS_DEVICE Best race_of(Scratch& s, int dtype) {
  Race& race = *s.race;
  bool levelled = race.level != 0;
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
      if (next == kWithoutDraft) race.residual = false, race.skip = Skip();
      if (next == kUniform) race.target.cutoff = kLargest, race.target.scale = 0;
      if (next == kRelative) race.level = level;
      if (next == kAll) race.skip = Skip(), race.level = 0;
    }
    SPS_CREW_BARRIER();
  }
}

}  // namespace SPS_NAMESPACE
