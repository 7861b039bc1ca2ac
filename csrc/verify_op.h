// The op verify: argument handling for every device. A device adds run_round.
#pragma once
#include "arguments.h"
#include "schemes/table.h"

namespace SPS_NAMESPACE {
namespace {

struct Scheme {
  const char* name;
  bool uses_draft_law, by_lists, by_bins;
};
constexpr Scheme kSchemes[] = {
#define SPS_ENTRY(name, uses_draft_law, by_lists, by_bins) {#name, uses_draft_law, by_lists, by_bins},
    SPS_DEVICE_SCHEMES(SPS_ENTRY)
#undef SPS_ENTRY
};

// All requests, on the device of `like`.
void run_round(const VerifyArgs& a, const Tensor& like);

std::tuple<Tensor, Tensor, Tensor, Tensor> verify(
    const Tensor& target_logits, const Tensor& draft_tokens, const OptionalTensor& draft_logits, const OptionalTensor& parents,
    const OptionalTensor& rows, const OptionalTensor& draft_rows, const OptionalTensor& lists, int64_t max_depth,
    const std::string& scheme, const Numbers& options, const Numbers& sampling, const OptionalTensor& sampling_rows,
    const Numbers& draft_sampling, const OptionalTensor& draft_sampling_rows, const OptionalTensor& draft_max,
    const OptionalTensor& draft_logsumexp, const OptionalTensor& draft_cutoff, int64_t seed, const OptionalTensor& seeds,
    int64_t position, const OptionalTensor& positions, const OptionalTensor& cu_rows, int64_t logprobs) {
  Kept kept;
  VerifyArgs a{};
  a.scheme = place_of(kSchemes, scheme, "scheme");
  const Scheme& entry = kSchemes[a.scheme];
  const bool packed = cu_rows.has_value();
  const int64_t dim = packed ? 2 : 3;
  a.target = rows_of(target_logits, dim, "target_logits");
  STD_TORCH_CHECK(draft_tokens.dim() == dim - 1, "draft_tokens: expected ", packed ? "[nodes]" : "[B, N]");
  STD_TORCH_CHECK(max_depth >= 0 && max_depth < INT32_MAX, "max_depth: expected >= 0, got ", max_depth);
  if (packed) {
    STD_TORCH_CHECK(cu_rows->scalar_type() == ScalarType::Int && cu_rows->dim() == 1 && cu_rows->size(0) >= 1,
                    "cu_rows: expected int32 [B + 1]");
    a.cu_rows = kept.data<int32_t>(*cu_rows, "cu_rows");
  }
  a.batch = packed ? cu_rows->size(0) - 1 : target_logits.size(0);
  a.target_rows = target_logits.size(dim - 2), a.nodes = draft_tokens.size(dim - 2);
  const int64_t each = packed ? -1 : a.batch;
  a.tokens = kept.node_ints(draft_tokens, a.nodes, each, "draft_tokens");
  a.parents = kept.node_ints(parents, a.nodes, each, "parents");
  a.rows = kept.node_ints(rows, packed ? a.nodes : a.nodes + 1, each, "rows");
  a.draft_row_of = kept.node_ints(draft_rows, a.nodes, each, "draft_rows");
  a.lists = kept.node_ints(entry.by_lists ? lists : OptionalTensor(), a.nodes, each, "lists");
  a.by_lists = entry.by_lists;
  a.sampling = kept.samplings(sampling, sampling_rows, a.batch, a.batch, "sampling");
  a.seed = kept.per_row(seed, seeds, a.batch, 1, "seed"), a.position = kept.per_row(position, positions, a.batch, 0, "position");
  a.max_depth = static_cast<int>(max_depth), a.logprobs = static_cast<int>(logprobs);
  const int64_t item = static_cast<int64_t>(target_logits.element_size());
  if (!packed) a.target_stride = target_logits.stride(0) * item;

  a.has_draft = draft_logits.has_value() && entry.uses_draft_law;
  if (a.has_draft) {
    a.draft = rows_of(*draft_logits, dim, "draft_logits");
    STD_TORCH_CHECK(draft_logits->scalar_type() == target_logits.scalar_type(),
                    "draft_logits: expected the dtype of target_logits");
    STD_TORCH_CHECK(packed || draft_logits->size(0) == a.batch, "draft_logits: expected ", a.batch, " requests");
    a.row_a_node = packed && draft_logits->size(0) != target_logits.size(0);
    a.draft_rows = draft_logits->size(dim - 2);
    if (!packed) a.draft_stride = draft_logits->stride(0) * item;
    const int64_t total = a.all_rows(a.draft_rows);
    a.draft_sampling = kept.samplings(draft_sampling, draft_sampling_rows, a.batch, total, "draft_sampling");
    if (draft_max && draft_logsumexp && draft_cutoff) {
      const auto stats = [&](const Tensor& values) {
        STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.numel() == total,
                        "draft_stats: expected float32, one value a draft row");
        return kept.data<float>(values, "draft_stats");
      };
      a.kept_max = stats(*draft_max), a.kept_logsumexp = stats(*draft_logsumexp), a.kept_cutoff = stats(*draft_cutoff);
    }
  }
  STD_TORCH_CHECK(options.size() <= kMaxOptions, "options: expected at most ", kMaxOptions);
  for (size_t i = 0; i < options.size(); ++i) a.options[i] = options[i];
  if (entry.by_bins) {
    STD_TORCH_CHECK(a.options[0] >= 1 && a.options[0] <= 1 << 20, "options: expected 1 to 2^20 bins");
    const int bins = static_cast<int>(a.options[0]);
    a.most_bins = 1 + (bins > kMaxSiblings ? bins : kMaxSiblings);
  }

  const Tensor tokens = empty(target_logits, {a.batch, max_depth + 1}, ScalarType::Long);
  const Tensor count = empty(target_logits, {a.batch}, ScalarType::Int);
  const Tensor nodes = empty(target_logits, {a.batch, max_depth}, ScalarType::Int);
  const Tensor of_tokens =
      logprobs ? empty(target_logits, {a.batch, max_depth + 1}, ScalarType::Float) : empty(target_logits, {0}, ScalarType::Float);
  a.out_tokens = data_of<int64_t>(tokens), a.out_count = data_of<int32_t>(count), a.out_nodes = data_of<int32_t>(nodes);
  a.out_logprobs = logprobs ? data_of<float>(of_tokens) : nullptr;
  run_round(a, target_logits);
  return {tokens, count, nodes, of_tokens};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(SPS_LIBRARY, SPS_DISPATCH_KEY, m) { m.impl("verify", TORCH_BOX(&SPS_NAMESPACE::verify)); }
