// verify: a team a request, one kernel for all schemes.
#pragma once
#include "../schemes/table.h"
#include "kernels.h"

namespace SPS_NAMESPACE {

struct VerifyArgs {
  Rows target, draft;
  int64_t target_stride, draft_stride;  // bytes from one request to the next; unused when packed
  int64_t target_rows, draft_rows;      // a request; packed: in all
  NodeInts tokens, parents, rows, draft_row_of, lists;
  int64_t nodes, batch;                 // nodes a request; packed: in all
  const int32_t* cu_rows;               // packed when not null
  bool has_draft, row_a_node;
  int max_depth;
  int scheme;                           // by its place in SPS_CUDA_SCHEMES, or another Work
  bool by_lists;
  double options[kMaxOptions];
  double* memory;                       // of the couplings: coupling_memory(most_bins) a request; or null
  int most_bins;
  Samplings sampling, draft_sampling;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;
  PerRow seed, position;
  int logprobs;                         // 0 none, 1 filtered, 2 raw
  Ahead* ahead;                         // of all target rows, then all draft rows; or null
  int64_t* out_tokens;
  int32_t *out_count, *out_nodes;
  float* out_logprobs;
};

// Rows of all requests.
SPS_DEVICE int64_t all_rows(const VerifyArgs& a, int64_t rows) { return a.cu_rows ? rows : a.batch * rows; }

// Where a request's rows and nodes lie. Rows and nodes that the tensors do not have do not exist.
struct Span {
  int64_t row, rows, node, nodes;
};

SPS_DEVICE Span span_of(Scratch& s, const VerifyArgs& a, int64_t b) {
  if (!a.cu_rows) return Span{0, a.target_rows, 0, a.nodes};
  int64_t before = 0;  // nodes of the requests before this one
  for (int64_t i = thread_id(); i < b; i += thread_count()) {
    const int64_t count = static_cast<int64_t>(a.cu_rows[i + 1]) - a.cu_rows[i];
    before += count > 1 ? count - 1 : 0;
  }
  before = crew_sum(s, before);
  const int64_t first = a.cu_rows[b];
  int64_t count = static_cast<int64_t>(a.cu_rows[b + 1]) - first;
  count = count > 0 ? count : 0;
  Span span{first, count, before, count > 1 ? count - 1 : 0};
  if (first < 0 || first >= a.target_rows) span.rows = 0;
  if (span.rows > a.target_rows - first) span.rows = a.target_rows - first;
  const int64_t left = a.nodes > before ? a.nodes - before : 0;
  if (span.nodes > left) span.nodes = left;
  return span;
}

// Copies per-node values into shared memory; values beyond 32 bits name nothing, and neither does what stands in for them.
SPS_DEVICE Ints staged(const Ints& from, int64_t count, int32_t* to) {
  if (!from.data) return from;
  for (int64_t i = thread_id(); i < count; i += thread_count()) {
    const int64_t value = from.given(i);
    to[i] = value < INT32_MIN || value > INT32_MAX ? INT32_MIN : static_cast<int32_t>(value);
  }
  return Ints{to, false};
}

// Puts request b and its inputs into shared memory. max_depth is the kernel's own.
SPS_DEVICE void set_up(Scratch& s, const VerifyArgs& a, int64_t b) {
  const bool packed = a.cu_rows != nullptr;
  const Span span = span_of(s, a, b);
  int64_t nodes = span.nodes < kMaxNodes ? span.nodes : kMaxNodes;
  if (packed && a.rows.ints.data) {  // the root's row and a row a node, as far as they are given
    const int64_t given = a.rows.size - span.row - 1;
    if (nodes > given) nodes = given > 0 ? given : 0;
  }
  Request request;
  request.seed = a.seed[b], request.position = a.position[b];
  request.nodes = static_cast<int>(nodes);
  request.target_rows = static_cast<int>(a.target.vocab > 0 ? span.rows : 0);
  request.max_depth = a.max_depth;
  request.has_draft = a.has_draft, request.row_a_node = a.row_a_node, request.by_lists = a.by_lists;
  request.options = s.options;
  request.id_limit = a.target.vocab > a.draft.vocab ? a.target.vocab : a.draft.vocab;
  request.tokens = staged(a.tokens.ints.from(packed ? span.node : b * a.tokens.stride), nodes, s.tokens);
  request.parents = staged(a.parents.ints.from(packed ? span.node : b * a.parents.stride), nodes, s.parents);
  request.draft_rows = staged(a.draft_row_of.ints.from(packed ? span.node : b * a.draft_row_of.stride), nodes, s.draft_rows);
  request.lists = staged(a.lists.ints.from(packed ? span.node : b * a.lists.stride), nodes, s.lists);
  if (request.target_rows > 0)
    request.rows = staged(a.rows.ints.from(packed ? span.row : b * a.rows.stride), nodes + 1, s.rows);
  if (request.parents.data) request.live = s.live;

  const int64_t target_start = packed ? span.row : b * a.target_rows;
  const int64_t draft_start = packed ? (a.row_a_node ? span.node : span.row) : b * a.draft_rows;
  const int64_t draft_total = all_rows(a, a.draft_rows);
  int64_t draft_count = packed ? (a.row_a_node ? span.nodes : span.rows) : a.draft_rows;
  if (draft_count > draft_total - draft_start) draft_count = draft_total - draft_start;
  request.draft_row_count = static_cast<int>(draft_count > 0 ? draft_count : 0);
  if (thread_id() < kMaxOptions) s.options[thread_id()] = a.options[thread_id()];
  if (thread_id() == 0) {
    *s.request = request;
    Inputs& in = *s.inputs;
    in.target = a.target, in.draft = a.draft;
    in.target.data += packed ? span.row * a.target.stride : b * a.target_stride;
    if (a.has_draft) in.draft.data += packed ? draft_start * a.draft.stride : b * a.draft_stride;
    in.sampling = a.sampling[b];
    in.draft_numbers = a.draft_sampling.numbers, in.draft_sampling = a.draft_sampling.values;
    const bool per_request = a.draft_sampling.count == a.batch;
    in.draft_columns = a.draft_sampling.count;
    in.draft_first = per_request ? b : draft_start, in.draft_step = per_request ? 0 : 1;
    in.kept_max = a.kept_max ? a.kept_max + draft_start : nullptr;
    in.kept_logsumexp = a.kept_max ? a.kept_logsumexp + draft_start : nullptr;
    in.kept_cutoff = a.kept_max ? a.kept_cutoff + draft_start : nullptr;
    in.target_ahead = a.ahead ? a.ahead + target_start : nullptr;
    in.draft_ahead = a.ahead ? a.ahead + all_rows(a, a.target_rows) + draft_start : nullptr;
  }
}

enum Work : int {
  kLaws = -3,  // a team a row, ahead: its normalised law,
  kRaces,      // or its law and race
  kLogprobs,   // a team an emitted token
  // and a team a request:
#define SPS_ID(name, uses_draft_law, by_lists) k_##name,
  SPS_CUDA_SCHEMES(SPS_ID)
#undef SPS_ID
};

SPS_DEVICE void conduct_round(Scratch& s, const VerifyArgs& a, int64_t b) {
  const bool first = team_rank() == 0;
  const Output out{first ? a.out_tokens + b * (a.max_depth + 1) : nullptr, first ? a.out_nodes + b * a.max_depth : nullptr,
                   first ? a.out_count + b : nullptr};
  const Request& request = *s.request;
  CudaExecutor ex(s, a.memory ? a.memory + b * coupling_memory(a.most_bins) : nullptr, a.most_bins);
  if (a.ahead) {
    await_launch_before();
    ex.prefetch_walk();
  }
  switch (a.scheme) {
#define SPS_CASE(name, uses_draft_law, by_lists) \
  case k_##name:                                 \
    verify_##name(request, ex, out);             \
    break;
    SPS_CUDA_SCHEMES(SPS_CASE)
#undef SPS_CASE
  }
  ex.dismiss();
}

// Log-probability of a token that was emitted, under the target's law or the raw one.
SPS_DEVICE void conduct_logprob(Scratch& s, const VerifyArgs& a, int64_t b, int depth, int64_t token) {
  const int node = depth ? a.out_nodes[b * a.max_depth + depth - 1] : -1;
  const Inputs& in = *s.inputs;
  const Conductor conductor(s);
  const Law law = conductor.law(in.target, (*s.request).target_row(node), a.logprobs == 2 ? Sampling() : in.sampling, true);
  const double value = law.only >= 0 ? (law.only == token ? 0 : -kInfinity)
                                     : law.log_prob(logit(law.row, in.target.dtype, token));
  if (lane_id() == 0 && team_rank() == 0) a.out_logprobs[b * (a.max_depth + 1) + depth] = static_cast<float>(value);
  conductor.dismiss();
}

// The request that a row belongs to, and which of its rows it is; request -1 for a row of none.
struct RowOf {
  int64_t request, row;
  bool of_draft;
};
SPS_DEVICE RowOf row_of(const VerifyArgs& a, int64_t i) {
  const int64_t targets = all_rows(a, a.target_rows);
  const bool of_draft = i >= targets;
  if (of_draft) i -= targets;
  if (!a.cu_rows) {
    const int64_t rows = of_draft ? a.draft_rows : a.target_rows;
    return RowOf{i / rows, i % rows, of_draft};
  }
  int64_t node = 0;  // nodes of the requests before
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t first = a.cu_rows[b], count = static_cast<int64_t>(a.cu_rows[b + 1]) - first;
    const bool by_node = of_draft && a.row_a_node;
    const int64_t start = by_node ? node : first, rows = by_node ? count - 1 : count;
    if (i >= start && i - start < rows) return RowOf{b, i - start, of_draft};
    node += count > 1 ? count - 1 : 0;
  }
  return RowOf{-1, 0, of_draft};
}

// A team's work is numbered by its index: a request, a row (kLaws, kRaces) or an emitted token (kLogprobs).
__global__ void __launch_bounds__(kBlock, 1) verify_kernel(VerifyArgs a) {
  SPS_SHARED(s);
  const int width = a.max_depth + 1;
  const int64_t i = team_index();
  const bool round = a.scheme >= 0;
  int64_t b = i, token = 0;
  RowOf row{};
  const bool ahead = a.scheme == kLaws || a.scheme == kRaces;
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
      ex.run_ahead(row.of_draft, row.row, a.scheme == kRaces);
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
