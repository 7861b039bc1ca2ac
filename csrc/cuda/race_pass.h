// The exponential race over a row, argmax of log w - log E, at about the cost of a maximum over the row.
//
// Clocks come in groups of 32 tokens (philox.h). No clock of a group is below its least clock M, so the group's largest weight
// over M bounds the scores of all its tokens, and only the few groups whose bound reaches the best score are ever opened.
// 1. A warp takes two tiles of 1024 tokens at a time; a lane has one group in each, and one Philox call gives the A of both. The
//    higher of the two bounds is kept in shared memory.
// 2. Each warp opens the groups with its highest bound, one token per lane, and draws the words of tokens whose weight over M can
//    still win. Their scores, in float with an error bound, raise `goal`, a lower bound on the best score of the whole team. The
//    warp continues until none of its bounds reaches `goal`. Tokens that may have won are listed.
// 3. The listed tokens that still reach the final `goal` are scored exactly, in double.
// The result is the exact winner, with the lowest id on ties, in whatever order the warps run.
#pragma once
#include "ratios.h"

namespace SPS_NAMESPACE {

// log w - log E of a token, exactly; -inf if it has no weight.
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

// -log(1 - u) for a word that needs no refinement: by its series for small u.
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

// Slack for the float rounding of a score (and of the approximate logarithms), which grows with its magnitude.
SPS_DEVICE float slack(float score) { return 2e-3f + 1e-6f * fabsf(score); }

SPS_DEVICE bool reaches(float most, float goal) { return most + slack(most) >= goal; }  // -inf reaches nothing

constexpr float kPairError = 1.2e-5f;  // relative, of a probability in float (Affine::fast, Pair)

// The draft's share of a token that may win, with relative error kPairError.
SPS_DEVICE float draft_share(const Race& race, const Pair& pair, int64_t token, float t, int dtype) {
  const Law& draft = race.draft;
  if (draft.only >= 0) return token == draft.only;
  if (token >= draft.vocab || draft.lacks(token)) return 0;
  const float d = pair.draft(logit(draft.row, dtype, token));
  if (!race.ratios.of_bin) return d;
  return d * static_cast<float>(race.ratios.of_bin[bin_of(t, d, race.ratios.binning)]);
}

// Scores in log2, computed from logits with the target's weight alone, which bounds the residual weight.
struct Scores {
  float base, high, offset, cutoff;

  SPS_DEVICE float weight(float z) const { return fmaf(z - base, high, offset); }
  // Bound for a group whose largest logit is z; -inf if none is kept. Up to rounding: M >= u / 32 and u >= max(a, 2^-28) / 2^32.
  SPS_DEVICE float most(float z, uint32_t a) const {
    return z >= cutoff ? fmaf(z - base, high, offset + 37.f) - log2_fast(fmaxf(static_cast<float>(a), 0x1p-28f)) : -HUGE_VALF;
  }
};

constexpr int kTiles = 2, kTurn = kTiles * kGroupTile;  // tiles that a warp takes at once, and their tokens

// First token of this warp's i-th turn; the blocks of a team alternate too.
SPS_DEVICE int turn_of_warp(int i) { return ((i * warp_count() + warp_id()) * team_size() + team_rank()) * kTurn; }

// A of the groups that a lane has in the tiles of a turn; with kRefineBlock: S. One call covers two turns.
SPS_DEVICE void words_of_turn(const Stream& stream, const PhiloxKeys& keys, int turn, int lane, uint32_t refine,
                              uint32_t (&out)[kTiles]) {
  static_assert(2 * kTurn == 1 << 12, "four tiles");
  const Words w = stream.words(kGroupBlock | refine | static_cast<uint32_t>((turn >> 12) * 32 + lane), keys);
  const bool second = turn & kTurn;
  out[0] = second ? w.v[2] : w.v[0], out[1] = second ? w.v[3] : w.v[1];
}

SPS_DEVICE float unopened(float bound) { return __uint_as_float(__float_as_uint(bound) & ~1u); }
SPS_DEVICE float opened(float bound) { return __uint_as_float(__float_as_uint(bound) | 1u); }

// Stores in s.bound[i % kBounds] the higher bound of this lane's groups in its warp's i-th turn (or the highest over the turns that
// share the entry), without its lowest bit, which marks those that a race has opened.
SPS_DEVICE void bound_groups(Scratch& s, const Scores& scores, const Stream& stream, const void* row, int dtype, int vocab) {
  constexpr int kUnits = kGroupTokens / kUnit;
  PhiloxKeys keys(stream.key0, stream.key1);
#pragma unroll
  for (int i = 0; i < 10; ++i) keys.low[i] = of_warp(keys.low[i]), keys.high[i] = of_warp(keys.high[i]);
  const int id = thread_id(), lane = lane_id(), start = turn_of_warp(0), step = turn_of_warp(1) - start;
  for (int i = 0; i < kBounds; ++i) s.bound[i][id] = -HUGE_VALF;
  Batch<kTiles * kUnits> batch = {};
  unsigned at = 0;
  for (int turn = start - step; turn < vocab;) {  // the first one only loads
    float top[kTiles];
    batch.template tops<kUnits>(dtype, top);
    const int here = turn;
    turn += step;
    if (turn < vocab) batch.load(row, dtype, turn + lane * kUnit, kGroupRow, vocab);
    if (here < start) continue;
    uint32_t a[kTiles];
    words_of_turn(stream, keys, here, lane, 0, a);
    float& bound = s.bound[at][id];
    float most = bound;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) most = fmaxf(most, scores.most(fminf(top[i], kLargest), a[i]));
    bound = unopened(most), at = (at + 1) % kBounds;
  }
}

// Lower and upper bound on the score of a token.
struct Range {
  float least, most;
};

// The winner of the race in s.race. Its score is +inf if a +inf logit took part: the row's law is uniform over these, and the race
// must be rerun on it. Races of rounds (kRound) are never repeated with the bounds of the one before.
template <bool kRound>
SPS_DEVICE Best run_race(Scratch& s, int dtype) {
  const Race& race = *s.race;
  const Law& law = race.target;
  const void* const row = law.row;
  const int vocab = static_cast<int>(law.vocab);
  const Stream stream = race.stream;
  const double log_scale = race.residual ? once(s, [&] { return log(race.scale * race.norms.t) * kLog2e; }) : 0;
  const float base = law.scale == 0 ? 0 : race.residual ? law.max : race.level;  // at scale 0 differences do not matter or overflow
  const float high = Pair::of(law, race.draft, race.norms).t.high;
  const Scores scores{base, __uint_as_float(of_warp(__float_as_uint(high))), static_cast<float>(log_scale), law.cutoff};
  constexpr float kNone = -3e38f;  // a goal that everything reaches
  if (thread_id() == 0) s.goal = ordered(kNone), s.candidates = 0;
  if (kRound || !race.bounded) bound_groups(s, scores, stream, row, dtype, vocab);
  SPS_TEAM_BARRIER(s);

  // Read only here: kept in registers during the pass above, they would spill.
  const Pair pair = Pair::of(law, race.draft, race.norms);
  const float scale = static_cast<float>(race.scale), floor = static_cast<float>(race.floor);
  Best best = Best::none();
  const auto known = [&] { return from_ordered(__shfl_sync(kFullWarp, current(s.goal), 0)); };  // all lanes read the same
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
      high = log2_fast(w + error), low = w - error > 0 ? log2_fast(w - error) : kNone;
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
  // The warp opens the groups that lane `owner` has in a turn: in each group, every lane takes the token at its place.
  const auto open = [&](int turn, int owner) {
    const int lane = lane_id(), first = turn + (lane >> 3) * kGroupRow + owner * kUnit + (lane & 7);
    uint32_t words[kTiles];  // of A, and of S in the upper half of the warp
    words_of_turn(stream, PhiloxKeys(stream.key0, stream.key1), turn, owner, lane < 16 ? 0 : kRefineBlock, words);
    float goal = known();
    uint32_t bits[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) bits[i] = first + i * kGroupTile < vocab ? logit_bits(row, dtype, first + i * kGroupTile) : 0;
    float z[kTiles], least[kTiles];
    int place[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      z[i] = first + i * kGroupTile < vocab ? logit_of(bits[i], dtype) : -HUGE_VALF;
      const uint32_t second = __shfl_sync(kFullWarp, words[i], 16);
      least[i] = least_clock(__shfl_sync(kFullWarp, words[i], 0), second), place[i] = static_cast<int>(second >> 27);
    }
    uint32_t wanted = 0;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const bool mine = z[i] >= law.cutoff && reaches(scores.weight(z[i]) - log2_fast(least[i]), goal);
      wanted |= __ballot_sync(kFullWarp, mine) ? 1u << i : 0u;
    }
    for (; wanted; wanted &= wanted - 1) {
      const int at = __ffs(static_cast<int>(wanted)) - 1, token = first + at * kGroupTile;
#pragma unroll
      for (int i = 1; i < kTiles; ++i)
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
  float mine = -HUGE_VALF;
  for (int i = 0, id = thread_id(); i < kBounds; ++i) mine = fmaxf(mine, s.bound[i][id] = unopened(s.bound[i][id]));
  for (;;) {
    const float most = warp_max_fast(mine);
    if (!reaches(most, known())) break;
    const int owner = __ffs(static_cast<int>(__ballot_sync(kFullWarp, mine == most))) - 1, id = thread_id();
    int at = 0;
    for (int i = 1; i < kBounds; ++i) at = s.bound[i][id] == mine ? i : at;
    at = __shfl_sync(kFullWarp, at, owner);
    if (lane_id() == owner) {  // the bounds stay, for another race without the winner
      s.bound[at][id] = opened(mine), mine = -HUGE_VALF;
      for (int i = 0; i < kBounds; ++i)
        if (s.bound[i][id] == unopened(s.bound[i][id])) mine = fmaxf(mine, s.bound[i][id]);
    }
    for (int i = at; turn_of_warp(i) < vocab; i += kBounds) open(turn_of_warp(i), owner);
  }
  SPS_CREW_BARRIER();

  // Exact scores: each block scores its own candidates or, if its list overflowed (a law so nearly covered by its draft that
  // nothing could be excluded), every token.
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

constexpr double kPlainScores = 1e6;  // scores above this, unless relative to the row's maximum, would lose digits of the clocks

// The winner of the race in s.race, which is rerun if necessary; its id is -1 for a row without a finite logit.
template <bool kRound>
SPS_DEVICE Best race_of(Scratch& s, int dtype) {
  Race& race = *s.race;
  for (;;) {
    const Best best = run_race<kRound>(s, dtype);
    enum { kDone, kWithoutDraft, kUniform, kRelative, kAll } next = kDone;
    float level = 0;
    if (race.residual) {
      if (best.id < 0) next = kWithoutDraft;  // the draft covers the target up to rounding: fall back to the target's law
    } else if (best.score == kInfinity) {
      next = kUniform;  // over the +inf logits
    } else if (!race.levelled && (best.id < 0 || fabs(best.score) > kPlainScores)) {
      // Nothing found, or logits so large that the clocks are rounded away: run relative to the largest.
      level = row_max(s, race.target, dtype, race.skip);
      if (level > -HUGE_VALF) next = kRelative;
    }
    if (next == kDone && best.id < 0 && race.skip.one >= 0) next = kAll;  // there is no token but the draft's
    if (next == kDone) return best;
    SPS_CREW_BARRIER();
    if (thread_id() == 0) {
      if (next == kWithoutDraft) race.residual = false, race.skip = Skip();
      if (next == kUniform) race.target.cutoff = kLargest, race.target.scale = 0;
      if (next == kRelative) race.level = level, race.levelled = true;
      if (next == kAll) race.skip = Skip(), race.level = 0, race.levelled = false;
      race.bounded = false;
    }
    SPS_CREW_BARRIER();
  }
}

}  // namespace SPS_NAMESPACE
