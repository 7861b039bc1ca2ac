// The CUDA executor of one request (see walk.h): a block of threads runs the passes over rows; each thread runs the scheme.
#pragma once
#include "../walk.h"
#include "filters.h"
#include "race.h"

namespace specsample {

constexpr double kPlainScores = 1e6;  // larger ones, not relative to the row's maximum, would cost the clocks digits

// The law of a row; its mass only when `normalised`.
SPS_DEVICE Law law_of(Scratch& s, const Rows& rows, int64_t index, const Sampling& sampling, bool normalised) {
  Law law;
  law.row = rows.at(index), law.vocab = rows.vocab, law.scale = sampling.scale();
  if (sampling.greedy()) {
    const Best best = row_argmax(s, law.row, rows.dtype, law.vocab);
    law.broken = best.id < 0;
    law.max = static_cast<float>(best.score), law.only = best.id, law.mass = 1;
    return law;
  }
  const bool filtered = sampling.filters(rows.vocab);
  if (!filtered && !normalised) return law;
  if (filtered) {
    law.max = row_max(s, law, rows.dtype, -1);
  } else {
    max_and_mass(s, law, rows.dtype);
  }
  law.broken = !(law.max > -HUGE_VALF);
  if (law.broken) return law;
  const bool infinite = law.max >= kLargest;
  if (infinite) {  // +inf logits share all the mass
    law.cutoff = kLargest, law.scale = 0;
  } else if (filtered) {
    law.cutoff = filter_cutoff(s, law, rows.dtype, sampling);
  }
  if (infinite || (filtered && normalised)) law.mass = kept_mass(s, law, rows.dtype);
  return law;
}

// Winner of a race on `stream` over the residual (scale t - d)+, or over the target alone when `draft` is null; -1 for a broken
// row. Tokens in `taken` take no part.
SPS_DEVICE int64_t race_of(Scratch& s, int dtype, const Law& target, const Law* draft, double scale, const Stream& stream,
                           const int64_t* taken = nullptr, int taken_count = 0) {
  if (target.broken) return -1;
  if (target.only >= 0) return taken_count ? -1 : target.only;
  // The race is kept in shared memory: its loop needs the registers.
  Race& race = *s.race;
  __syncthreads();  // the race before may still be read
  if (thread_id() == 0) {
    race = Race{target, false, Law(), 1, 1, stream, 0, -1, taken, taken_count};
    if (draft && draft->only >= 0) {  // (scale t - 1)+ vanishes on the one-hot draft's token, and elsewhere weights are t's
      race.exclude = draft->only;
    } else if (draft) {
      race.residual = true, race.draft = *draft;
      race.target_norm = scale / target.mass, race.draft_norm = 1 / draft->mass;
    }
  }
  bool levelled = false;
  for (;;) {
    __syncthreads();
    bool infinite = false;
    const Best best = run_race(s, dtype, infinite);
    const bool residual = race.residual, excluding = race.exclude >= 0;
    if (residual && best.id >= 0) return best.id;
    // Nothing found, or logits so large that the clocks are lost beside them: run relative to the largest.
    bool again = residual || infinite;
    float level = 0;
    if (!again && !levelled && (best.id < 0 || fabs(best.score) > kPlainScores)) {
      levelled = true;
      level = row_max(s, race.target, dtype, race.exclude);
      again = level > -HUGE_VALF;
    }
    if (!again && (best.id >= 0 || !excluding)) return best.id;
    if (!again) levelled = false;
    __syncthreads();
    if (thread_id() != 0) continue;
    if (residual) {
      race.residual = false;  // nothing left: the draft covers the target up to rounding. Fall back to the target's law
    } else if (infinite) {
      race.target.cutoff = kLargest, race.target.scale = 0;
    } else if (again) {
      race.level = level;
    } else {
      race.exclude = -1, race.level = 0;  // the draft's token is all there is
    }
  }
}

class CudaExecutor {
 public:
  Scratch& s;
  SPS_DEVICE explicit CudaExecutor(Scratch& scratch) : s(scratch) {}

  SPS_DEVICE Law target(int row, bool normalised) const {
    const Inputs& in = *s.inputs;
    return law_of(s, in.target, row, in.sampling, normalised);
  }

  SPS_DEVICE Law draft(int node) const {
    const Request& request = *s.request;
    if (!request.has_draft) return Law::point(request.token(node));
    const Inputs& in = *s.inputs;
    const int64_t row = request.draft_row(node);
    Sampling own = in.draft_numbers;
    if (in.draft_sampling) {
      const double* p = in.draft_sampling + in.draft_first + row * in.draft_step;
      own = Sampling{p[0], p[in.draft_columns], p[2 * in.draft_columns], p[3 * in.draft_columns]};
    }
    // Kept statistics serve where float32 determines the law to 1e-6; other rows are read again.
    if (in.kept_max && !own.greedy() && fabsf(in.kept_logsumexp[row]) <= 32.f) {
      Law law;
      law.row = in.draft.at(row), law.vocab = in.draft.vocab, law.scale = own.scale();
      law.max = in.kept_max[row];
      law.cutoff = in.kept_cutoff[row] > -FLT_MAX ? in.kept_cutoff[row] : -FLT_MAX;
      law.mass = once(s, [&] { return exp(in.kept_logsumexp[row] - law.max * law.scale); });
      return law;
    }
    return law_of(s, in.draft, row, own, true);
  }

  SPS_DEVICE double prob(const Law& law, int64_t token) const {
    if (law.only >= 0) return token == law.only;
    if (token >= law.vocab) return 0;
    return once(s, [&] { return law.prob(logit(law.row, dtype(), token)); });
  }
  SPS_DEVICE bool accept(int node, double numerator, double denominator) const {
    return stream(kAccept, 0, node).uniform(0) * denominator < numerator;
  }
  SPS_DEVICE int64_t clock_race(const Law& law, int depth) const {
    return race_of(s, dtype(), law, nullptr, 1, stream(kClock, depth));
  }
  SPS_DEVICE int64_t residual_race(const Law& target, const Law& draft, const Residual& residual) const {
    return race_of(s, dtype(), target, &draft, residual.scale, stream(kResidual));
  }
  SPS_DEVICE double residual_mass(const Law& target, const Law& draft, const Residual& residual) const {
    const double scale = residual.scale;
    if (draft.only >= 0) return scale * (1 - prob(target, draft.only));
    if (target.only >= 0) {
      const double rest = scale - prob(draft, target.only);
      return rest > 0 ? rest : 0;
    }
    return residual_sum(s, target, draft, scale, dtype());
  }

 private:
  SPS_DEVICE int dtype() const { return (*s.inputs).target.dtype; }
  SPS_DEVICE Stream stream(Purpose purpose, int depth = 0, int64_t slot = 0) const {
    return Stream((*s.request).seed, (*s.request).position + depth, purpose, slot);
  }
};

}  // namespace specsample
