// The op verify: one team per request, one kernel for all schemes.
#pragma once
#include "../schemes/table.h"
#include "kernels.h"

namespace SPS_NAMESPACE {

// A call, and the work of this launch.
struct Launch : VerifyArgs {
  int work;        // the scheme's index in SPS_CUDA_SCHEMES, or another Work
  double* memory;  // for couplings: coupling_memory(most_bins) per request; or null
  Ahead* ahead;    // results for all target rows, then all draft rows; or null
};

// Copies per-node values into shared memory. Values beyond 32 bits are invalid, and are replaced by another invalid value.
SPS_DEVICE Ints staged(const Ints& from, int64_t count, int32_t* to) {
  if (!from.data) return from;
  for (int64_t i = thread_id(); i < count; i += thread_count()) {
    const int64_t value = from.given(i);
    to[i] = value < INT32_MIN || value > INT32_MAX ? INT32_MIN : static_cast<int32_t>(value);
  }
  return Ints{to, false};
}

// Puts request b and its inputs into shared memory.
SPS_DEVICE void set_up(Scratch& s, const Launch& a, int64_t b) {
  int64_t before = 0;
  if (a.cu_rows) {
    for (int64_t i = thread_id(); i < b; i += thread_count()) before += a.nodes_of(i);
    before = crew_sum(s, before);
  }
  Part part = part_of(a, b, before);
  Request& request = part.request;
  const int nodes = request.nodes;
  request.options = s.options;
  request.tokens = staged(request.tokens, nodes, s.tokens);
  request.parents = staged(request.parents, nodes, s.parents);
  request.draft_rows = staged(request.draft_rows, nodes, s.draft_rows);
  request.lists = staged(request.lists, nodes, s.lists);
  request.rows = staged(request.rows, nodes + 1, s.rows);
  if (request.parents.data) request.live = s.live;
  if (thread_id() < kMaxOptions) s.options[thread_id()] = a.options[thread_id()];
  if (thread_id() == 0) {
    *s.request = request;
    Inputs& in = *s.inputs;
    in.target = part.target, in.draft = part.draft;
    in.sampling = a.sampling[b];
    in.draft_numbers = a.draft_sampling.numbers, in.draft_sampling = a.draft_sampling.values;
    in.draft_columns = a.draft_sampling.count, in.draft_first = part.sampling_first, in.draft_step = part.sampling_step;
    in.kept_max = a.kept_max ? a.kept_max + part.draft_row : nullptr;
    in.kept_logsumexp = a.kept_max ? a.kept_logsumexp + part.draft_row : nullptr;
    in.kept_cutoff = a.kept_max ? a.kept_cutoff + part.draft_row : nullptr;
    in.target_ahead = a.ahead ? a.ahead + part.target_row : nullptr;
    in.draft_ahead = a.ahead ? a.ahead + a.all_rows(a.target_rows) + part.draft_row : nullptr;
  }
}

enum Work : int {
  kLaws = -3,  // one team per row, ahead: its normalised law,
  kRaces,      // or its law and race
  kLogprobs,   // one team per emitted token
  // and one team per request:
#define SPS_ID(name, ...) k_##name,
  SPS_CUDA_SCHEMES(SPS_ID)
#undef SPS_ID
};

SPS_DEVICE void conduct_round(Scratch& s, const Launch& a, int64_t b) {
  const bool first = team_rank() == 0;
  const Output out{first ? a.out_tokens + b * (a.max_depth + 1) : nullptr, first ? a.out_nodes + b * a.max_depth : nullptr,
                   first ? a.out_count + b : nullptr};
  const Request& request = *s.request;
  CudaExecutor ex(s, a.memory ? a.memory + b * coupling_memory(a.most_bins) : nullptr, a.most_bins);
  if (a.ahead) {
    await_launch_before();
    ex.prefetch_walk();
  }
  switch (a.work) {
#define SPS_CASE(name, ...)          \
  case k_##name:                     \
    verify_##name(request, ex, out); \
    break;
    SPS_CUDA_SCHEMES(SPS_CASE)
#undef SPS_CASE
  }
  ex.dismiss();
}

// Log-probability of an emitted token, under the target's law or the raw one.
SPS_DEVICE void conduct_logprob(Scratch& s, const Launch& a, int64_t b, int depth, int64_t token) {
  const int node = depth ? a.out_nodes[b * a.max_depth + depth - 1] : -1;
  const Inputs& in = *s.inputs;
  const Conductor conductor(s);
  const Law law = conductor.law(in.target, (*s.request).target_row(node), a.logprobs == 2 ? Sampling() : in.sampling, true);
  const double value = law.only >= 0 ? (law.only == token ? 0 : -kInfinity) : law.log_prob(logit(law.row, in.target.dtype, token));
  if (lane_id() == 0 && team_rank() == 0) a.out_logprobs[b * (a.max_depth + 1) + depth] = static_cast<float>(value);
  conductor.dismiss();
}

// The request that a row belongs to, and its index within the request; request -1 if it belongs to none.
struct RowOf {
  int64_t request, row;
  bool of_draft;
};
SPS_DEVICE RowOf row_of(const Launch& a, int64_t i) {
  const int64_t targets = a.all_rows(a.target_rows);
  const bool of_draft = i >= targets;
  if (of_draft) i -= targets;
  if (!a.cu_rows) {
    const int64_t rows = of_draft ? a.draft_rows : a.target_rows;
    return RowOf{i / rows, i % rows, of_draft};
  }
  int64_t node = 0;  // nodes of the preceding requests
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t first = a.cu_rows[b], count = a.rows_of(b);
    const bool by_node = of_draft && a.row_a_node;
    const int64_t start = by_node ? node : first, rows = by_node ? a.nodes_of(b) : count;
    if (i >= start && i - start < rows) return RowOf{b, i - start, of_draft};
    node += a.nodes_of(b);
  }
  return RowOf{-1, 0, of_draft};
}

// A team's index selects its work: a request, a row (kLaws, kRaces) or an emitted token (kLogprobs).
__global__ void __launch_bounds__(kBlock, 1) verify_kernel(Launch a) {
  SPS_SHARED(s);
  const int width = a.max_depth + 1;
  const int64_t i = team_index();
  const bool round = a.work >= 0;
  int64_t b = i, token = 0;
  RowOf row{};
  const bool ahead = a.work == kLaws || a.work == kRaces;
  if (ahead) {
    let_next_begin();
    row = row_of(a, i), b = row.request;
    if (b < 0) return;
  } else if (!round) {
    b = i / width, token = a.out_tokens[i];
    if (token < 0) {
      if (thread_id() == 0 && team_rank() == 0) a.out_logprobs[i] = 0;
      return;
    }
  }
  SPS_START_TEAM(s);
  if (conducts()) {
    SPS_MEET();  // the request is in shared memory
    if (round) {
      conduct_round(s, a, b);
    } else if (ahead) {
      const CudaExecutor ex(s, nullptr, 0);
      ex.run_ahead(row.of_draft, row.row, a.work == kRaces);
      ex.dismiss();
    } else {
      conduct_logprob(s, a, b, static_cast<int>(i % width), token);
    }
  } else {
    for (int j = thread_id(); round && team_rank() == 0 && j < width; j += thread_count()) {
      a.out_tokens[b * width + j] = -1;
      if (j < a.max_depth) a.out_nodes[b * a.max_depth + j] = -1;
    }
    set_up(s, a, b);
    SPS_MEET();
    crew<true>(s);
  }
}

}  // namespace SPS_NAMESPACE
