// The exponential race over a row, argmax of log w - log E: about a maximum over the row.
//
// Clocks come in groups of 32 tokens (philox.h). None of a group is below its least clock M, so that its largest weight over M bounds
// the scores of all its tokens, and only the few groups whose bound reaches the best score are ever opened.
// 1. A warp takes 4096 tokens at a time, four tiles; a lane has one group of each tile, and one Philox call has the A of all four.
//    The highest of the four bounds is kept in shared memory.
// 2. Each warp opens the highest of its bounds, a token a lane, and draws the words of tokens whose own weight over M can still win.
//    Their scores, in float with a bound on the error, raise `goal`, what the best score of the whole team is known to reach, and it
//    goes on until none of the warp's bounds reaches that. Tokens that may have won are listed.
// 3. Those of the list that the final `goal` leaves are scored exactly, in double.
// The winner is the exact one, and of equal scores the lowest id, in whatever order the warps run.
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
  return log_weight - race.stream.log_clock(token);
}

// -log(1 - u) of a word that needs no second one: by its series where u is small.
SPS_DEVICE float exponential(uint32_t r) {
  const float u = fmaf(static_cast<float>(r), 0x1p-32f, 0x1p-33f);
  const float rest = fmaf(static_cast<float>(~r), 0x1p-32f, 0x1p-33f);
  const float series = u * fmaf(u, fmaf(u, 0.33333334f, 0.5f), 1.f);
  return r < (1u << 26) ? series : -0.6931472f * log2_fast(rest);
}

// M of a group.
SPS_DEVICE float least_clock(uint32_t a, uint32_t s) {
  const float refined = fmaf(static_cast<float>(s & 0x7FFFFFFu) + 0.5f, 0x1p-59f, static_cast<float>(a) * 0x1p-32f);
  return (a < kRefineBelow ? refined : exponential(a)) * (1.f / kGroupTokens);
}

// What log2 M is at least, but for rounding: M >= u / 32, and u >= 2^-60.
SPS_DEVICE float log2_below(uint32_t a) { return log2_fast(fmaxf(static_cast<float>(a), 0x1p-28f)) - 37.f; }

// Room for the float rounding of a score (and of the approximate logarithms), which grows with its size.
SPS_DEVICE float slack(float score) { return 2e-3f + 1e-6f * fabsf(score); }

SPS_DEVICE bool reaches(float most, float goal) { return most + slack(most) >= goal; }  // -inf reaches nothing

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

// Scores in log2: how they follow from logits, with the target's weight alone, which bounds what a draft's share leaves of it.
struct Scores {
  float base, high, offset, cutoff;

  SPS_DEVICE float weight(float z) const { return fmaf(z - base, high, offset); }
  SPS_DEVICE float most(float z, uint32_t a) const {  // of a group that has no larger logit
    return z >= cutoff ? weight(z) - log2_below(a) : -HUGE_VALF;
  }
};

constexpr int kRun = 4 * kGroupTile;  // tokens of a warp whose groups' words come from one call a lane

// Puts the highest bound of a lane's groups in the i-th run of its warp, or of several such runs, in s.bound[i % kBounds].
// -> the highest of them
SPS_DEVICE float bound_groups(Scratch& s, const Scores& scores, const Stream& stream, const void* row, int dtype, int vocab) {
  constexpr int kUnits = kGroupTokens / kUnit, kTiles = 2;  // a turn's
  PhiloxKeys keys(stream.key0, stream.key1);
#pragma unroll
  for (int i = 0; i < 10; ++i) keys.low[i] = of_warp(keys.low[i]), keys.high[i] = of_warp(keys.high[i]);
  const int id = thread_id(), lane = lane_id(), warps = team_warps();
  for (int i = 0; i < kBounds; ++i) s.bound[i][id] = -HUGE_VALF;
  float highest = -HUGE_VALF;
  Batch<kTiles * kUnits> batch = {};
  Words a = {};
  int run = team_warp(), next = run * kRun;
  for (int turn = 0;; ++turn) {  // the first one only loads
    float top[kTiles];
    batch.template tops<kUnits>(dtype, top);
    const bool more = next < vocab;
    if (more) batch.load(row, dtype, next + lane * kUnit, kGroupRow, vocab);
    if (turn > 0) {
      if (turn & 1) {
        a = stream.words(kGroupBlock | static_cast<uint32_t>(32 * run + lane), keys);
      } else {
        a.v[0] = a.v[2], a.v[1] = a.v[3];
      }
      float& bound = s.bound[(turn - 1) / 2 % kBounds][id];
      float most = bound;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) most = fmaxf(most, scores.most(fminf(top[i], kLargest), a.v[i]));
      bound = most, highest = fmaxf(highest, most);
      if (!(turn & 1)) run += warps;
    }
    if (!more) return highest;
    next = turn & 1 ? (run + warps) * kRun : next + kRun / 2;
  }
}

// What the score of a token is at least and at most.
struct Range {
  float least, most;
};

// Winner of the race in s.race. Its score is +inf where a +inf logit took part: the row's law is uniform over those, and the race is
// to be run again on it.
SPS_DEVICE Best run_race(Scratch& s, int dtype) {
  const Race& race = *s.race;
  const Law& law = race.target;
  const void* const row = law.row;
  const int vocab = static_cast<int>(law.vocab);
  const Stream stream = race.stream;
  const Pair pair = Pair::of(law, race.draft, race.norms);
  const float scale = static_cast<float>(race.scale), floor = static_cast<float>(race.floor);
  const double log_scale = race.residual ? once(s, [&] { return log(race.scale * race.norms.t) * kLog2e; }) : 0;
  const Scores scores{race.residual ? law.max : race.level, pair.t.high, static_cast<float>(log_scale), law.cutoff};
  constexpr float kNone = -3e38f;  // a goal that everything reaches
  if (thread_id() == 0) s.goal = ordered(kNone), s.candidates = 0;
  const float highest = bound_groups(s, scores, stream, row, dtype, vocab);
  SPS_TEAM_BARRIER(s);

  Best best = Best::none();
  const auto range = [&](int token, float z, float least, int place, float goal) {
    const Range nothing{kNone, -HUGE_VALF};
    if (!(z >= law.cutoff)) return nothing;
    if (z >= kLargest && law.scale != 0 && !race.residual) best = Best{kInfinity, token};
    if (race.skip.has(token)) return nothing;
    float low = fminf(scores.weight(z), 3e38f), high = low;
    if (race.residual) {
      const float t = pair.target(z), d = draft_share(race, pair, token, t, dtype);
      const float w = fmaxf(scale * t - d, floor * t), error = kPairError * (scale * t + d) + 1e-37f;
      if (!(w + error > 0)) return nothing;
      high = __log2f(w + error), low = w - error > 0 ? __log2f(w - error) : kNone;
    }
    if (!reaches(high - log2_fast(least), goal)) return nothing;
    float rest = 0, error = 0;
    if (place_of(token) != place) {
      const uint32_t r = stream.word(token);
      if (r < kRefineBelow) {
        error = 0x1p-20f;
      } else {
        rest = exponential(r);
      }
    }
    low -= log2_fast(least + rest + error), high -= log2_fast(least + rest);
    return Range{low - slack(low), high + slack(high)};
  };
  // The groups that a lane has in a run, by its warp: of each group, a lane has the token at its place.
  const auto open = [&](int run, int owner) {
    const int lane = lane_id(), first = run * kRun + (lane >> 3) * kGroupRow + owner * kUnit + (lane & 7);
    const Words words = stream.words(kGroupBlock | (lane < 16 ? 0 : kRefineBlock) | static_cast<uint32_t>(32 * run + owner));
    float goal = from_ordered(__shfl_sync(kFullWarp, current(s.goal), 0));
    float z[4], least[4];
    int place[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first + i * kGroupTile;
      z[i] = token < vocab ? logit(row, dtype, token) : -HUGE_VALF;
      const uint32_t a = __shfl_sync(kFullWarp, words.v[i], 0), second = __shfl_sync(kFullWarp, words.v[i], 16);
      least[i] = least_clock(a, second), place[i] = static_cast<int>(second >> 27);
    }
    uint32_t wanted = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool mine = z[i] >= law.cutoff && reaches(scores.weight(z[i]) - log2_fast(least[i]), goal);
      wanted |= __ballot_sync(kFullWarp, mine) ? 1u << i : 0u;
    }
    for (; wanted; wanted &= wanted - 1) {
      const int at = __ffs(static_cast<int>(wanted)) - 1, token = first + at * kGroupTile;
#pragma unroll
      for (int i = 1; i < 4; ++i)
        if (i == at) z[0] = z[i], least[0] = least[i], place[0] = place[i];
      const Range score = range(token, z[0], least[0], place[0], goal);
      const float most = warp_max_fast(score.least);
      if (most > goal) {
        goal = most;
        if (lane < team_size()) atomicMax(&at_rank(s.goal, lane), ordered(goal));
      }
      if (!(score.most >= goal)) continue;
      const uint32_t place = atomicAdd(&s.candidates, 1u);
      if (place < kCandidates) s.candidate[place] = Candidate{score.most, token};
    }
  };
  for (float mine = highest;;) {
    const float most = warp_max_fast(mine);
    if (!reaches(most, from_ordered(__shfl_sync(kFullWarp, current(s.goal), 0)))) break;
    const int owner = __ffs(static_cast<int>(__ballot_sync(kFullWarp, mine == most))) - 1, id = thread_id();
    int at = 0;
    for (int i = 1; i < kBounds; ++i) at = s.bound[i][id] == mine ? i : at;
    at = __shfl_sync(kFullWarp, at, owner);
    if (lane_id() == owner) {
      s.bound[at][id] = mine = -HUGE_VALF;
      for (int i = 0; i < kBounds; ++i) mine = fmaxf(mine, s.bound[i][id]);
    }
    for (int run = team_warp() + at * team_warps(); run < (vocab + kRun - 1) / kRun; run += kBounds * team_warps()) open(run, owner);
  }
  SPS_CREW_BARRIER();

  // Exact scores, by each block of its own candidates. When its list overflowed (a law so nearly covered by its draft that nothing
  // could be excluded), of every token.
  const float goal = from_ordered(current(s.goal));
  const bool all = s.candidates > kCandidates;
  const int count = all ? vocab : static_cast<int>(s.candidates);
  for (int i = thread_id(); i < count; i += thread_count()) {
    if (!all && s.candidate[i].above < goal) continue;
    const int token = all ? i : s.candidate[i].id;
    const float z = logit(row, dtype, token);
    if (all && (!(z >= law.cutoff) || race.skip.has(token))) continue;
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
    const Best best = run_race(s, dtype);
    enum { kDone, kWithoutDraft, kUniform, kRelative, kAll } next = kDone;
    float level = 0;
    if (race.residual) {
      if (best.id < 0) next = kWithoutDraft;  // the draft covers the target up to rounding: fall back to the target's law
    } else if (best.score == kInfinity) {
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
