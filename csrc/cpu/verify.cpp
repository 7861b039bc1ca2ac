// verify on the CPU: cut the batch into requests and run a scheme's round on each.
#include "../schemes/table.h"
#include "arguments.h"

namespace SPS_NAMESPACE {
namespace {

constexpr int64_t kMaxNodes = 1024;

using Round = void (*)(const Request&, CpuExecutor&, const Output&);
struct Entry {
  const char* name;
  Round round;
  bool uses_draft_law, by_lists;
};
constexpr Entry kSchemes[] = {
#define SPS_ENTRY(name, uses_draft_law, by_lists) {#name, verify_##name<CpuExecutor>, uses_draft_law, by_lists},
    SPS_SCHEMES(SPS_ENTRY)
#undef SPS_ENTRY
};

// Where each request's rows and nodes lie.
struct Span {
  int64_t row = 0, rows = 0, node = 0, nodes = 0;
};

std::vector<Span> packed_spans(const Tensor& cu_rows, int64_t total_rows, int64_t total_nodes) {
  STD_TORCH_CHECK(cu_rows.scalar_type() == ScalarType::Int && cu_rows.dim() == 1 && cu_rows.size(0) >= 1,
                  "cu_rows: expected int32 [B + 1]");
  const Tensor kept = compact(cu_rows);
  const auto* cu = static_cast<const int32_t*>(kept.const_data_ptr());
  std::vector<Span> spans(kept.size(0) - 1);
  int64_t node = 0;
  for (size_t b = 0; b < spans.size(); ++b) {
    const int64_t count = std::max<int64_t>(0, static_cast<int64_t>(cu[b + 1]) - cu[b]);
    spans[b] = Span{cu[b], count, node, std::max<int64_t>(0, count - 1)};
    node += spans[b].nodes;
    // Rows and nodes that the tensors do not have do not exist.
    if (cu[b] < 0 || cu[b] >= total_rows) spans[b].rows = 0;
    spans[b].rows = std::min(spans[b].rows, total_rows - cu[b]);
    spans[b].nodes = std::min(spans[b].nodes, std::max<int64_t>(0, total_nodes - spans[b].node));
  }
  return spans;
}

// Log-probabilities of what was emitted, under the target's law or the raw one.
void fill_logprobs(const Request& request, const CpuExecutor& ex, const Sampling& sampling, const Output& out, float* value) {
  int node = -1;
  for (int depth = 0; depth <= request.max_depth && out.tokens.data[depth] >= 0; ++depth) {
    const Law law =
        ex.runner.law(ex.target_rows, request.target_row(node), sampling, true);
    const int64_t token = out.tokens.data[depth];
    value[depth] = static_cast<float>(
        law.only >= 0 ? (law.only == token ? 0 : -kInfinity)
                      : law.log_prob(ex.target_rows.passes->value(law.row, token)));
    if (depth < request.max_depth && out.nodes.data[depth] >= 0) node = out.nodes.data[depth];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> verify(
    const Tensor& target_logits, const Tensor& draft_tokens, const OptionalTensor& draft_logits,
    const OptionalTensor& parents, const OptionalTensor& rows, const OptionalTensor& draft_rows,
    const OptionalTensor& lists, int64_t max_depth, const std::string& scheme, const std::vector<double>& options,
    const std::vector<double>& numbers, const OptionalTensor& sampling_rows, const std::vector<double>& draft_numbers,
    const OptionalTensor& draft_sampling_rows, const OptionalTensor& draft_max, const OptionalTensor& draft_logsumexp,
    const OptionalTensor& draft_cutoff, int64_t seed, const OptionalTensor& seeds, int64_t position,
    const OptionalTensor& positions, const OptionalTensor& cu_rows, int64_t logprobs) {
  const Entry& entry = entry_of(kSchemes, scheme, "scheme", "cpu");
  const bool packed = cu_rows.has_value(), has_draft = draft_logits.has_value() && entry.uses_draft_law;
  STD_TORCH_CHECK(target_logits.dim() == (packed ? 2 : 3), "target_logits: expected [B, R, V], or packed [rows, V]");
  STD_TORCH_CHECK(max_depth >= 0, "max_depth: expected >= 0, got ", max_depth);
  const Rows target = rows_of(target_logits, "target_logits");
  const NodeInts tokens(draft_tokens, "draft_tokens"), parent_of(parents, "parents"), row_of(rows, "rows"),
      draft_row_of(draft_rows, "draft_rows"), list_of(lists, "lists");

  std::vector<Span> spans;
  if (packed) {
    spans = packed_spans(*cu_rows, target_logits.size(0), tokens.size());
  } else {
    STD_TORCH_CHECK(draft_tokens.dim() == 2 && draft_tokens.size(0) == target_logits.size(0),
                    "draft_tokens: expected [B, N]");
    spans.assign(target_logits.size(0), Span{0, target_logits.size(1), 0, draft_tokens.size(1)});
  }
  const int64_t batch = static_cast<int64_t>(spans.size());
  const int64_t widest = packed || spans.empty() ? tokens.size() : spans[0].nodes;
  for (const NodeInts* list : {&parent_of, &draft_row_of, &row_of, &list_of})
    STD_TORCH_CHECK(!list->given() || list->size() >= widest, "per-node inputs: expected a value for each node");

  const Samplings sampling(numbers, sampling_rows, "sampling");
  const Samplings draft_sampling(draft_numbers, draft_sampling_rows, "draft_sampling");
  STD_TORCH_CHECK(sampling.shared() || sampling.size() == batch, "sampling: expected a value for each request");
  const PerRow seed_of(seed, seeds, batch, 1, "seed"), position_of(position, positions, batch, 0, "position");

  Rows draft;
  bool row_a_node = false;
  int64_t draft_rows_each = 0, draft_total = 0;
  if (has_draft) {
    STD_TORCH_CHECK(draft_logits->dim() == target_logits.dim() &&
                        draft_logits->scalar_type() == target_logits.scalar_type(),
                    "draft_logits: expected the dimensions and dtype of target_logits");
    STD_TORCH_CHECK(packed || draft_logits->size(0) == batch, "draft_logits: expected ", batch, " requests");
    draft = rows_of(*draft_logits, "draft_logits");
    row_a_node = packed && draft_logits->size(0) != target_logits.size(0);
    draft_rows_each = packed ? 0 : draft_logits->size(1);
    draft_total = packed ? draft_logits->size(0) : batch * draft_rows_each;
  }
  STD_TORCH_CHECK(!has_draft || draft_sampling.shared() || draft_sampling.size() == batch ||
                      draft_sampling.size() == draft_total,
                  "draft_sampling: expected a value for each request or draft row");
  Tensor kept[3];
  const float* kept_data[3] = {nullptr, nullptr, nullptr};
  if (has_draft && draft_max && draft_logsumexp && draft_cutoff) {
    const OptionalTensor* given[3] = {&draft_max, &draft_logsumexp, &draft_cutoff};
    for (int i = 0; i < 3; ++i) {
      kept[i] = compact(**given[i]);
      STD_TORCH_CHECK(kept[i].scalar_type() == ScalarType::Float && kept[i].numel() == draft_total,
                      "draft_stats: expected float32, one value a draft row");
      kept_data[i] = static_cast<const float*>(kept[i].const_data_ptr());
    }
  }

  Tensor out_tokens = empty({batch, max_depth + 1}, ScalarType::Long);
  Tensor out_count = empty({batch}, ScalarType::Int);
  Tensor out_nodes = empty({batch, max_depth}, ScalarType::Int);
  Tensor out_logprobs = logprobs ? empty({batch, max_depth + 1}, ScalarType::Float)
                                 : empty({0}, ScalarType::Float);
  auto* token_data = static_cast<int64_t*>(out_tokens.mutable_data_ptr());
  auto* count_data = static_cast<int32_t*>(out_count.mutable_data_ptr());
  auto* node_data = static_cast<int32_t*>(out_nodes.mutable_data_ptr());
  auto* logprob_data = logprobs ? static_cast<float*>(out_logprobs.mutable_data_ptr()) : nullptr;
  std::fill(token_data, token_data + batch * (max_depth + 1), -1);
  std::fill(node_data, node_data + batch * max_depth, -1);
  if (logprob_data) std::fill(logprob_data, logprob_data + batch * (max_depth + 1), 0.f);

  const int64_t item = static_cast<int64_t>(target_logits.element_size());
  const auto run = [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    std::vector<uint8_t> live;
    for (int64_t b = first; b < last; ++b) {
      const Span& span = spans[b];
      Request request;
      request.seed = seed_of[b], request.position = position_of[b];
      request.nodes = static_cast<int>(std::min(span.nodes, kMaxNodes));
      request.target_rows = static_cast<int>(target.vocab > 0 ? span.rows : 0);
      request.max_depth = static_cast<int>(max_depth);
      request.has_draft = has_draft, request.row_a_node = row_a_node;
      request.id_limit = std::max(target.vocab, draft.vocab);
      request.tokens = packed ? tokens.packed(span.node) : tokens.packed(b * span.nodes);
      request.parents = packed ? parent_of.packed(span.node) : parent_of.dense(b, span.nodes);
      request.draft_rows = packed ? draft_row_of.packed(span.node) : draft_row_of.dense(b, span.nodes);
      request.lists = packed ? list_of.packed(span.node) : list_of.dense(b, span.nodes);
      request.by_lists = entry.by_lists, request.options = options.data();
      request.rows = packed ? row_of.packed(span.row) : row_of.dense(b, span.nodes + 1);
      if (packed && row_of.given())  // the root's row and a row a node, as far as they are given
        request.nodes = static_cast<int>(
            std::max<int64_t>(0, std::min<int64_t>(request.nodes, row_of.size() - span.row - 1)));
      if (request.parents.data) {
        live.resize(request.nodes + 1);
        request.live = live.data();
      }

      const int64_t draft_start = packed ? (row_a_node ? span.node : span.row) : b * draft_rows_each;
      const int64_t draft_count = packed ? (row_a_node ? span.nodes : span.rows) : draft_rows_each;
      request.draft_row_count = static_cast<int>(std::max<int64_t>(0, std::min(draft_count, draft_total - draft_start)));
      Rows target_here = target, draft_here = draft;
      target_here.data += packed ? span.row * target.stride : b * target_logits.stride(0) * item;
      if (has_draft) draft_here.data += packed ? draft_start * draft.stride : b * draft_logits->stride(0) * item;
      const bool per_request = !draft_sampling.shared() && draft_sampling.size() == batch;
      const bool per_row = !draft_sampling.shared() && !per_request;
      CpuExecutor ex{request,
                     runner,
                     target_here,
                     draft_here,
                     sampling[b],
                     draft_sampling.data() + (per_row ? draft_start : per_request ? b : 0),
                     per_row ? 1 : 0,
                     kept_data[0] ? kept_data[0] + draft_start : nullptr,
                     kept_data[1] ? kept_data[1] + draft_start : nullptr,
                     kept_data[2] ? kept_data[2] + draft_start : nullptr};
      const Output out{token_data + b * (max_depth + 1), node_data + b * max_depth, count_data + b};
      entry.round(request, ex, out);
      if (logprob_data)
        fill_logprobs(request, ex, logprobs == 2 ? Sampling() : ex.sampling, out, logprob_data + b * (max_depth + 1));
    }
  };
  for_requests(batch, target.vocab, run);
  return {out_tokens, out_count, out_nodes, out_logprobs};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(specsample, CPU, m) { m.impl("verify", TORCH_BOX(&specsample::verify)); }
