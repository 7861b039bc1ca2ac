// The ops sample, draft and row_stats: one team per row, one kernel for all.
#pragma once
#include "kernels.h"

namespace SPS_NAMESPACE {

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
      winner = conductor.race(law, a.rows.dtype, a.stream(i, j), again || a.op == RowOp::kTop ? Skip{token, j} : Skip()).id;
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
  } else {
    draft_children(conductor, a, i, law);
  }
  conductor.dismiss();
}

}  // namespace SPS_NAMESPACE
