// The ops sample, draft and row_stats: one team per row, one kernel for all.
#pragma once
#include "kernels.h"

namespace SPS_NAMESPACE {

// k independent children: the race goes on after its first arrival, and a token that has arrived starts another clock. `clock` has
// one entry per child; a lane has every 32nd of them, and knows which of its tokens arrives next.
SPS_DEVICE void draft_independent(const Conductor& conductor, const RowArgs& a, int64_t i, const Law& law) {
  int64_t* const token = conductor.s.children;
  double* const clock = conductor.s.clock;
  const bool one = law.only >= 0 || law.broken;  // the same child k times
  const Stream stream = a.stream(i, 0);
  Best fresh = conductor.race(law, a.rows.dtype, stream);  // the next token to arrive for the first time
  const double scale = one ? 0 : (*conductor.s.race).target.scale, level = one ? 0 : conductor.s.level;
  Best again = Best::none();  // this lane's next arrival
  int of = 0;                 // ... and its entry
  for (int j = 0; j < a.k; ++j) {
    const Best renewed = warp_best(again);
    Best next = renewed;
    next.merge(fresh);
    if (lane_id() == 0) token[j] = next.id;
    if (lane_id() == 0 && team_rank() == 0) a.token[i * a.k + j] = next.id;
    SPS_BARRIER();
    if (one || next.id < 0 || j + 1 == a.k) continue;
    int earlier = 0;  // arrivals of this token
    for (int child = lane_id(); child < j; child += 32) earlier += token[child] == next.id;
    earlier = warp_sum(earlier);
    double elapsed;
    bool changed = false;  // an entry of this lane
    if (earlier == 0) {
      elapsed = stream.clock(next.id);
      fresh = conductor.race_again(a.rows.dtype, Skip{token, j + 1}, true);
    } else {
      const int owner = __ffs(static_cast<int>(__ballot_sync(kFullWarp, again.id == next.id))) - 1;
      const int entry = __shfl_sync(kFullWarp, of, owner);
      elapsed = clock[entry];
      SPS_BARRIER();
      if (lane_id() == owner) clock[entry] = 0, changed = true;
    }
    elapsed += a.renewal(i, next.id, earlier + 1);
    if (lane_id() == j % 32) clock[j] = elapsed, changed = true;
    if (changed) again = Best::none();
    for (int child = lane_id(); changed && child <= j; child += 32) {
      if (!(clock[child] > 0)) continue;
      const double z = logit(law.row, a.rows.dtype, token[child]), score = (z - level) * scale - log(clock[child]);
      if (score > again.score) again = Best{score, token[child]}, of = child;
    }
    SPS_BARRIER();
  }
}

// Draw the k children of a row; later draws exclude earlier ones where the kind requires it.
SPS_DEVICE void draft_children(const Conductor& conductor, const RowArgs& a, int64_t i, const Law& law) {
  int64_t* const token = conductor.s.children;
  float z = HUGE_VALF;
  int64_t last = -1;
  bool more = !law.broken;
  for (int j = 0; j < a.k; ++j) {
    int64_t winner = -1;
    if (a.op == RowOp::kTopK || (a.op == RowOp::kTop && j + 1 < a.k)) {  // the next likeliest
      if (more && law.only >= 0) {
        winner = j == 0 ? law.only : -1;
      } else if (more) {
        const Best best = conductor.next_likeliest(law, a.rows.dtype, z, last);
        winner = best.id;
        // +inf logits share all mass: nothing else has positive weight.
        if (j > 0 && z >= kLargest && static_cast<float>(best.score) < kLargest) winner = -1;
        if (winner >= 0) z = static_cast<float>(best.score);
      }
      last = winner;
      more = winner >= 0;
    } else if (more) {  // a race; without replacement, the same race repeated without the earlier winners
      const bool again = a.op == RowOp::kArrivals || a.op == RowOp::kDistinct;
      if (again && j > 0) {
        winner = law.only >= 0 ? -1 : conductor.race_again(a.rows.dtype, Skip{token, j}, false).id;
      } else {
        winner = conductor.race(law, a.rows.dtype, a.stream(i, j), a.op == RowOp::kTop ? Skip{token, j} : Skip()).id;
      }
      more = !again || winner >= 0;
    }
    if (lane_id() == 0) token[j] = winner;
    if (lane_id() == 0 && team_rank() == 0) a.token[i * a.k + j] = winner;
    SPS_BARRIER();
  }
}

__global__ void __launch_bounds__(kBlock, 1) row_kernel(RowArgs a) {
  SPS_SHARED(s);
  SPS_START_TEAM(s);
  if (!conducts()) return crew<false>(s);
  const int64_t i = team_index();
  const Conductor conductor(s);
  const Law law = conductor.law(a.rows, i, a.sampling[i], a.op == RowOp::kStats);
  if (a.op == RowOp::kStats) {
    if (lane_id() == 0 && team_rank() == 0) a.write_stats(i, law);
  } else if (a.op == RowOp::kSample) {
    const int64_t token = conductor.race(law, a.rows.dtype, a.stream(i, 0)).id;
    if (lane_id() == 0 && team_rank() == 0) a.token[i] = token;
  } else if (a.op == RowOp::kIid) {
    draft_independent(conductor, a, i, law);
  } else {
    draft_children(conductor, a, i, law);
  }
  conductor.dismiss();
}

}  // namespace SPS_NAMESPACE
