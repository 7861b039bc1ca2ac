// The crew's work: the law of a row, and the loop that executes the conductor's orders.
#pragma once
#include "filters.h"
#include "race_pass.h"

namespace SPS_NAMESPACE {

// The law of a row, for laws that require reading it; its mass is computed only if `normalised`.
SPS_DEVICE Law law_of(Scratch& s, const Rows& rows, int64_t index, const Sampling& sampling, bool normalised) {
  Law law = Law::unread(rows.at(index), rows.vocab, sampling);
  const bool greedy = sampling.greedy(), filtered = !greedy && sampling.filters(rows.vocab);
  if (greedy || filtered) {
    law.max = row_max(s, law, rows.dtype, Skip());
  } else {
    max_and_mass(s, law, rows.dtype);
  }
  law.broken = !(law.max > -HUGE_VALF);
  if (law.broken) return law;
  if (greedy) {
    law.only = next_likeliest(s, law, rows.dtype, HUGE_VALF, -1).id, law.mass = 1;
    return law;
  }
  const bool infinite = law.max >= kLargest;
  if (infinite) {  // +inf logits share all mass
    law.cutoff = kLargest, law.scale = 0;
  } else if (filtered) {
    law.cutoff = filter_cutoff(s, law, rows.dtype, sampling);
  }
  if (infinite || (filtered && normalised)) law.mass = kept_mass(s, law, rows.dtype);
  return law;
}

// kRound: with the tasks of rounds; row operations need only laws, races and the next likeliest token.
template <bool kRound>
SPS_DEVICE void crew(Scratch& s) {
  const Order& o = *s.order;
  for (;;) {
    SPS_MEET();
    const Task task = o.task;
    if (task == Task::kLeave) return;
    if (task == Task::kLaw) {
      const Law law = law_of(s, o.rows, o.row, o.sampling, o.normalised);
      if (thread_id() == 0) *s.law = law;
    } else if (task == Task::kRace || task == Task::kLikeliest) {
      const Best best =
          task == Task::kRace ? race_of<kRound>(s, o.dtype) : next_likeliest(s, o.law, o.dtype, o.after_z, o.after_id);
      if (thread_id() == 0) s.found = best, s.level = (*s.race).level;
    } else if constexpr (kRound) {
      double value = 0;
      if (task == Task::kMass) {
        value = residual_sum(s, o);
      } else if (task == Task::kRest) {
        const Law rest = law_without(s, o);
        if (thread_id() == 0) *s.law = rest;
      } else if (task == Task::kHistogram) {
        value = histogram(s, o);
      } else {  // O(bins): done by one block, which passes the result to the others
        if (team_rank() == 0) {
          if (task == Task::kThreshold) {
            value = o.coupling.kseq_threshold(Crew());
            if (warp_id() == 0) tell(s.threshold, value);
          } else {
            o.coupling.solve(Crew());
          }
        }
        SPS_TEAM_BARRIER(s);
        if (task == Task::kThreshold) value = s.threshold;
      }
      if (thread_id() == 0) s.value = value;
    }
    SPS_MEET();
  }
}

}  // namespace SPS_NAMESPACE
