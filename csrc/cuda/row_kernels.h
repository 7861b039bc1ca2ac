// sample, draft and row_stats: a block a row.
#pragma once
#include "kernels.h"

namespace specsample {

struct SampleArgs {
  Rows rows;
  Samplings sampling;
  PerRow seed, position;
  int64_t* token;  // [rows]
};

__global__ void __launch_bounds__(kRowBlock, 1) sample_kernel(SampleArgs a) {
  SPS_SHARED(s);
  const int64_t i = blockIdx.x;
  const Law law = law_of(s, a.rows, i, a.sampling[i], false);
  const int64_t token = race_of(s, a.rows.dtype, law, nullptr, 1, Stream(a.seed[i], a.position[i], kClock));
  if (thread_id() == 0) a.token[i] = token;
}

enum DraftKind { kIid = 0, kArrivals = 1, kTopK = 2 };

struct DraftArgs {
  Rows rows;
  Samplings sampling;
  PerRow seed, position, depth, node;
  int k, kind;
  int64_t* token;  // [rows, k]
};

// The next token of a row ordered by logit, largest first, then id: after (z, id).
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

__global__ void __launch_bounds__(kRowBlock, 1) draft_kernel(DraftArgs a) {
  SPS_SHARED(s);
  const int64_t i = blockIdx.x;
  int64_t* token = a.token + i * a.k;
  const Law law = law_of(s, a.rows, i, a.sampling[i], false);
  const int64_t seed = a.seed[i], position = a.position[i], depth = a.depth[i], node = a.node[i];
  float z = HUGE_VALF;
  int64_t last = -1;
  bool more = !law.broken;
  for (int j = 0; j < a.k; ++j) {
    int64_t winner = -1;
    if (a.kind == kTopK) {
      if (more && law.only >= 0) {
        winner = j == 0 ? law.only : -1;
      } else if (more) {
        const Best best = next_likeliest(s, law, a.rows.dtype, z, last);
        winner = best.id;
        // +inf logits share all the mass: nothing else has positive weight.
        if (j > 0 && z >= kLargest && static_cast<float>(best.score) < kLargest) winner = -1;
        if (winner >= 0) z = static_cast<float>(best.score);
      }
      last = winner;
      more = winner >= 0;
    } else if (a.kind == kIid) {
      winner = race_of(s, a.rows.dtype, law, nullptr, 1, Stream(seed, position, kDraft, node + j));
    } else if (more) {  // arrivals: the race again and again, without the earlier winners
      winner = race_of(s, a.rows.dtype, law, nullptr, 1, Stream(seed, position + depth, kClock), token, j);
      more = winner >= 0;
    }
    if (thread_id() == 0) token[j] = winner;
    __syncthreads();  // the next race reads it
  }
}

struct StatsArgs {
  Rows rows;
  Samplings sampling;
  float *max, *logsumexp, *cutoff;  // [rows]
};

__global__ void __launch_bounds__(kRowBlock, 1) row_stats_kernel(StatsArgs a) {
  SPS_SHARED(s);
  const int64_t i = blockIdx.x;
  const Law law = law_of(s, a.rows, i, a.sampling[i], true);
  if (thread_id() != 0) return;
  float max = law.max, logsumexp = static_cast<float>(law.max * law.scale + log(law.mass)), cutoff = law.cutoff;
  if (law.broken) max = logsumexp = cutoff = -HUGE_VALF;
  else if (law.max >= kLargest) max = cutoff = HUGE_VALF, logsumexp = law.only >= 0 ? 0 : HUGE_VALF;
  else if (law.only >= 0) logsumexp = 0, cutoff = max;
  else if (cutoff <= -FLT_MAX) cutoff = -HUGE_VALF;
  a.max[i] = max, a.logsumexp[i] = logsumexp, a.cutoff[i] = cutoff;
}

}  // namespace specsample
