// verify on CUDA: one launch, one before it where rows are few, and one after it for log-probabilities.
#include "arguments.h"
#include "verify_kernel.h"

namespace SPS_NAMESPACE {
namespace {

struct Entry {
  const char* name;
  bool uses_draft_law, by_lists;
};
constexpr Entry kSchemes[] = {
#define SPS_ENTRY(name, uses_draft_law, by_lists) {#name, uses_draft_law, by_lists},
    SPS_CUDA_SCHEMES(SPS_ENTRY)
#undef SPS_ENTRY
};

// Bins of a coupling at most, whatever the number of draws; 0 where the scheme has none.
int most_bins(const std::string& scheme, const std::vector<double>& options) {
  if (scheme != "kseq" && scheme != "optimal" && scheme != "optimal_block") return 0;
  STD_TORCH_CHECK(!options.empty() && options[0] >= 1 && options[0] <= (1 << 20), "options: expected 1 to 2^20 bins");
  return 1 + std::max(kMaxSiblings, static_cast<int>(options[0]));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> verify(
    const Tensor& target_logits, const Tensor& draft_tokens, const OptionalTensor& draft_logits,
    const OptionalTensor& parents, const OptionalTensor& rows, const OptionalTensor& draft_rows,
    const OptionalTensor& lists, int64_t max_depth, const std::string& scheme, const std::vector<double>& options,
    const std::vector<double>& numbers, const OptionalTensor& sampling_rows, const std::vector<double>& draft_numbers,
    const OptionalTensor& draft_sampling_rows, const OptionalTensor& draft_max, const OptionalTensor& draft_logsumexp,
    const OptionalTensor& draft_cutoff, int64_t seed, const OptionalTensor& seeds, int64_t position,
    const OptionalTensor& positions, const OptionalTensor& cu_rows, int64_t logprobs) {
  const Entry& entry = entry_of(kSchemes, scheme, "scheme", "cuda");
  const bool packed = cu_rows.has_value(), has_draft = draft_logits.has_value() && entry.uses_draft_law;
  STD_TORCH_CHECK(target_logits.dim() == (packed ? 2 : 3), "target_logits: expected [B, R, V], or packed [rows, V]");
  STD_TORCH_CHECK(max_depth >= 0 && max_depth < INT32_MAX, "max_depth: expected >= 0, got ", max_depth);
  STD_TORCH_CHECK(packed || (draft_tokens.dim() == 2 && draft_tokens.size(0) == target_logits.size(0)),
                  "draft_tokens: expected [B, N]");
  STD_TORCH_CHECK(!packed || (cu_rows->scalar_type() == ScalarType::Int && cu_rows->dim() == 1 && cu_rows->size(0) >= 1),
                  "cu_rows: expected int32 [B + 1]");

  Kept kept;
  VerifyArgs a{};
  a.target = rows_of(target_logits, "target_logits");
  a.batch = packed ? cu_rows->size(0) - 1 : target_logits.size(0);
  a.target_rows = target_logits.size(packed ? 0 : 1);
  a.cu_rows = packed ? static_cast<const int32_t*>(kept.data(*cu_rows, "cu_rows")) : nullptr;
  a.tokens = kept.node_ints(draft_tokens, "draft_tokens");
  a.parents = kept.node_ints(parents, "parents");
  a.rows = kept.node_ints(rows, "rows");
  a.draft_row_of = kept.node_ints(draft_rows, "draft_rows");
  a.lists = kept.node_ints(entry.by_lists ? lists : OptionalTensor(), "lists");
  a.by_lists = entry.by_lists;
  a.nodes = packed ? draft_tokens.size(0) : draft_tokens.size(1);
  for (const NodeInts* list : {&a.parents, &a.draft_row_of, &a.rows, &a.lists})
    STD_TORCH_CHECK(!list->ints.data || list->size >= a.nodes, "per-node inputs: expected a value for each node");
  a.sampling = kept.samplings(numbers, sampling_rows, "sampling");
  a.draft_sampling = kept.samplings(draft_numbers, draft_sampling_rows, "draft_sampling");
  STD_TORCH_CHECK(!a.sampling.values || a.sampling.count == a.batch, "sampling: expected a value for each request");
  a.seed = kept.per_row(seed, seeds, a.batch, 1, "seed");
  a.position = kept.per_row(position, positions, a.batch, 0, "position");
  a.max_depth = static_cast<int>(max_depth), a.logprobs = static_cast<int>(logprobs);
  const int64_t item = static_cast<int64_t>(target_logits.element_size());
  if (!packed) a.target_stride = target_logits.stride(0) * item;

  a.has_draft = has_draft;
  if (has_draft) {
    STD_TORCH_CHECK(draft_logits->dim() == target_logits.dim() &&
                        draft_logits->scalar_type() == target_logits.scalar_type(),
                    "draft_logits: expected the dimensions and dtype of target_logits");
    STD_TORCH_CHECK(packed || draft_logits->size(0) == a.batch, "draft_logits: expected ", a.batch, " requests");
    a.draft = rows_of(*draft_logits, "draft_logits");
    a.row_a_node = packed && draft_logits->size(0) != target_logits.size(0);
    a.draft_rows = draft_logits->size(packed ? 0 : 1);
    if (!packed) a.draft_stride = draft_logits->stride(0) * item;
    const int64_t total = packed ? a.draft_rows : a.batch * a.draft_rows, given = a.draft_sampling.count;
    STD_TORCH_CHECK(!a.draft_sampling.values || given == a.batch || given == total,
                    "draft_sampling: expected a value for each request or draft row");
    if (draft_max && draft_logsumexp && draft_cutoff) {
      const OptionalTensor* stats[3] = {&draft_max, &draft_logsumexp, &draft_cutoff};
      const float** to[3] = {&a.kept_max, &a.kept_logsumexp, &a.kept_cutoff};
      for (int i = 0; i < 3; ++i) {
        STD_TORCH_CHECK((*stats[i])->scalar_type() == ScalarType::Float && (*stats[i])->numel() == total,
                        "draft_stats: expected float32, one value a draft row");
        *to[i] = static_cast<const float*>(kept.data(**stats[i], "draft_stats"));
      }
    }
  }

  Tensor out_tokens = empty(target_logits, {a.batch, max_depth + 1}, ScalarType::Long);
  Tensor out_count = empty(target_logits, {a.batch}, ScalarType::Int);
  Tensor out_nodes = empty(target_logits, {a.batch, max_depth}, ScalarType::Int);
  Tensor out_logprobs = logprobs ? empty(target_logits, {a.batch, max_depth + 1}, ScalarType::Float)
                                 : empty(target_logits, {0}, ScalarType::Float);
  a.out_tokens = static_cast<int64_t*>(out_tokens.mutable_data_ptr());
  a.out_count = static_cast<int32_t*>(out_count.mutable_data_ptr());
  a.out_nodes = static_cast<int32_t*>(out_nodes.mutable_data_ptr());
  a.out_logprobs = logprobs ? static_cast<float*>(out_logprobs.mutable_data_ptr()) : nullptr;
  STD_TORCH_CHECK(options.size() <= kMaxOptions, "options: expected at most ", kMaxOptions);
  std::copy(options.begin(), options.end(), a.options);
  a.most_bins = most_bins(scheme, options);
  const int64_t doubles = a.most_bins > 0 ? a.batch * coupling_memory(a.most_bins) : 0;
  const Tensor memory = empty(target_logits, {doubles, 2}, ScalarType::Float);
  if (doubles > 0) a.memory = static_cast<double*>(memory.mutable_data_ptr());

  const auto run = [&](int work, int64_t teams, bool early = false) {
    a.scheme = work;
    launch(verify_kernel, target_logits, teams, a.target.vocab, a, early);
  };
  // All rows at once, ahead, where that leaves half of the GPU idle: the scheme then waits for no row that it comes to.
  // Where requests fill the GPU, it reads what it comes to, and stops early.
  const auto in_all = [&](int64_t each) { return packed ? each : a.batch * each; };
  const bool races = !entry.uses_draft_law;
  const int64_t rows_in_all = in_all(a.target_rows) + (has_draft ? in_all(a.draft_rows) : 0);
  const bool ahead = !entry.by_lists && a.target.vocab > 0 && (!has_draft || a.draft.vocab > 0) &&
                     2 * rows_in_all <= processors(device_index(target_logits));
  const int64_t floats = ahead ? rows_in_all * static_cast<int64_t>(sizeof(Ahead) / sizeof(float)) : 0;
  const Tensor found = empty(target_logits, {floats}, ScalarType::Float);
  if (ahead) {
    a.ahead = static_cast<Ahead*>(found.mutable_data_ptr());
    run(races ? kRaces : kLaws, rows_in_all);
  }
  run(static_cast<int>(&entry - kSchemes), a.batch, ahead);
  if (logprobs) run(kLogprobs, a.batch * (max_depth + 1));
  return {out_tokens, out_count, out_nodes, out_logprobs};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(SPS_LIBRARY, SPS_DISPATCH_KEY, m) { m.impl("verify", TORCH_BOX(&specsample::verify)); }
