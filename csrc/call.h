// The ops' arguments in the form kernels take, plain memory, and the location of each request's part. The device's header defines Rows.
#pragma once
#include "walk.h"

namespace SPS_NAMESPACE {

// An int, or one value per row; a plain int increases by `step` from one row to the next.
struct PerRow {
  int64_t number, step;
  const int64_t* values;
  SPS_HD int64_t operator[](int64_t i) const {
    return values ? values[i]
                  : static_cast<int64_t>(static_cast<uint64_t>(number) + static_cast<uint64_t>(step) * static_cast<uint64_t>(i));
  }
};

// Four numbers, or float64 [4, count].
struct Samplings {
  Sampling numbers;
  const double* values;
  int64_t count;
  SPS_HD Sampling operator[](int64_t i) const {
    if (!values) return numbers;
    return Sampling{values[i], values[count + i], values[2 * count + i], values[3 * count + i]};
  }
};

// A per-node input. Dense: `stride` values per request (0: one list for all); packed: in the order of the rows or nodes.
struct NodeInts {
  Ints ints;
  int64_t size, stride;
};

// -- sample, draft, row_stats --------------------------------------------------------------------------------------

enum class RowOp : int { kSample, kStats, kIid, kArrivals, kDistinct, kLists, kTop, kTopK };  // kIid and later: kinds of `draft`

struct RowArgs {
  Rows rows;
  RowOp op;
  int k;
  Samplings sampling;
  PerRow seed, position, depth, node;
  int64_t* token;  // [rows, k]
  float *max, *logsumexp, *cutoff;  // for kStats: [rows] each

  // The stream that the j-th token of row i is drawn from, if it is drawn.
  SPS_HD Stream stream(int64_t i, int j) const {
    if (op == RowOp::kSample) return Stream(seed[i], position[i], kClock);
    if (op == RowOp::kDistinct) return Stream(seed[i], position[i], kDistinct, node[i]);
    if (op == RowOp::kIid) return Stream(seed[i], position[i], kDraft, node[i]);
    if (op == RowOp::kTop) return Stream(seed[i], position[i], kDraft, node[i] + j);
    return Stream(seed[i], position[i] + depth[i], kClock, op == RowOp::kLists ? j : 0);
  }
  // For kIid: the clock that a token of row i starts after its `number`-th arrival.
  SPS_HD double renewal(int64_t i, int64_t token, int64_t number) const {
    return Stream::renewal(seed[i], position[i], node[i], token, number);
  }
  SPS_HD void write_stats(int64_t i, const Law& law) const {
    float top = law.max, sum = static_cast<float>(law.max * law.scale + log(law.mass)), least = law.cutoff;
    if (law.broken) top = sum = least = -HUGE_VALF;
    else if (law.max >= kLargest) top = least = HUGE_VALF, sum = law.only >= 0 ? 0 : HUGE_VALF;
    else if (law.only >= 0) sum = 0, least = top;
    else if (least <= -FLT_MAX) least = -HUGE_VALF;
    max[i] = top, logsumexp[i] = sum, cutoff[i] = least;
  }
};

// -- verify --------------------------------------------------------------------------------------------------------

struct VerifyArgs {
  Rows target, draft;
  int64_t target_stride, draft_stride;  // bytes from one request to the next; unused when packed
  int64_t target_rows, draft_rows;  // per request; packed: in total
  NodeInts tokens, parents, rows, draft_row_of, lists;
  int64_t nodes, batch;  // nodes: per request; packed: in total
  const int32_t* cu_rows;  // packed if not null
  bool has_draft, row_a_node, by_lists;
  int max_depth, scheme;  // scheme: its index in the device's table
  double options[kMaxOptions];
  int most_bins;  // upper bound on a coupling's bins; 0: the scheme has none
  Samplings sampling, draft_sampling;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;
  PerRow seed, position;
  int logprobs;  // 0 none, 1 filtered, 2 raw
  int64_t* out_tokens;
  int32_t *out_count, *out_nodes;
  float* out_logprobs;

  SPS_HD int64_t all_rows(int64_t rows) const { return cu_rows ? rows : batch * rows; }  // of all requests
  SPS_HD int64_t rows_of(int64_t b) const {  // packed
    const int64_t count = static_cast<int64_t>(cu_rows[b + 1]) - cu_rows[b];
    return count > 0 ? count : 0;
  }
  SPS_HD int64_t nodes_of(int64_t b) const { return rows_of(b) > 1 ? rows_of(b) - 1 : 0; }
};

// A request's part of a call: its values and rows as given, clipped to the sizes of the tensors.
struct Part {
  Request request;  // without its scratch
  Rows target, draft;  // from the request's first row
  int64_t target_row, draft_row;  // index of that row among those of all requests
  int64_t sampling_first, sampling_step;  // which column of draft_sampling each draft row uses
};

// `before`: the number of nodes in the requests before b, if packed.
SPS_HD Part part_of(const VerifyArgs& a, int64_t b, int64_t before) {
  const bool packed = a.cu_rows != nullptr;
  const int64_t first = packed ? a.cu_rows[b] : 0;
  int64_t rows = packed ? a.rows_of(b) : a.target_rows, nodes = packed ? a.nodes_of(b) : a.nodes;
  if (packed) {
    if (first < 0 || first >= a.target_rows) rows = 0;
    if (rows > a.target_rows - first) rows = a.target_rows - first;
    const int64_t left = a.nodes > before ? a.nodes - before : 0;
    if (nodes > left) nodes = left;
  }
  int64_t draft_rows = packed ? (a.row_a_node ? nodes : rows) : a.draft_rows;
  if (packed && a.rows.ints.data) {  // a row for the root and one per node, as far as given
    const int64_t given = a.rows.size - first - 1;
    if (nodes > given) nodes = given > 0 ? given : 0;
  }
  Part part;
  Request& request = part.request;
  request.seed = a.seed[b], request.position = a.position[b];
  request.nodes = static_cast<int>(nodes < kMaxNodes ? nodes : kMaxNodes);
  request.target_rows = static_cast<int>(a.target.vocab > 0 ? rows : 0);
  request.max_depth = a.max_depth;
  request.has_draft = a.has_draft, request.row_a_node = a.row_a_node, request.by_lists = a.by_lists;
  request.options = a.options;
  request.id_limit = a.target.vocab > a.draft.vocab ? a.target.vocab : a.draft.vocab;
  const auto of_nodes = [&](const NodeInts& values) { return values.ints.from(packed ? before : b * values.stride); };
  request.tokens = of_nodes(a.tokens), request.parents = of_nodes(a.parents);
  request.draft_rows = of_nodes(a.draft_row_of), request.lists = of_nodes(a.lists);
  if (request.target_rows > 0) request.rows = a.rows.ints.from(packed ? first : b * a.rows.stride);

  part.target_row = packed ? first : b * a.target_rows;
  part.draft_row = packed ? (a.row_a_node ? before : first) : b * a.draft_rows;
  const int64_t left = a.all_rows(a.draft_rows) - part.draft_row;
  if (draft_rows > left) draft_rows = left;
  request.draft_row_count = static_cast<int>(draft_rows > 0 ? draft_rows : 0);
  part.target = a.target, part.draft = a.draft;
  part.target.data += packed ? first * a.target.stride : b * a.target_stride;
  if (a.has_draft) part.draft.data += packed ? part.draft_row * a.draft.stride : b * a.draft_stride;
  const bool per_request = a.draft_sampling.count == a.batch;
  part.sampling_first = per_request ? b : part.draft_row, part.sampling_step = per_request ? 0 : 1;
  return part;
}

}  // namespace SPS_NAMESPACE
