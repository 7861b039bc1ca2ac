// sample, draft and row_stats on CUDA.
#include "arguments.h"
#include "row_kernels.h"

namespace specsample {
namespace {

Tensor sample(const Tensor& logits, const std::vector<double>& numbers, const OptionalTensor& sampling_rows, int64_t seed,
              const OptionalTensor& seeds, int64_t position, const OptionalTensor& positions) {
  const int64_t count = logits.size(0);
  Kept kept;
  Tensor out = empty(logits, {count}, ScalarType::Long);
  const SampleArgs args{rows_of(logits, "logits"), kept.samplings(numbers, sampling_rows, "sampling"),
                        kept.per_row(seed, seeds, count, 1, "seed"), kept.per_row(position, positions, count, 0, "position"),
                        static_cast<int64_t*>(out.mutable_data_ptr())};
  launch(sample_kernel, kRowBlock, logits, count, args);
  return out;
}

Tensor draft(const Tensor& logits, int64_t k, const std::string& kind, const std::vector<double>& numbers,
             const OptionalTensor& sampling_rows, int64_t seed, const OptionalTensor& seeds, int64_t position,
             const OptionalTensor& positions, int64_t depth, const OptionalTensor& depths, int64_t node,
             const OptionalTensor& nodes) {
  const int64_t count = logits.size(0);
  STD_TORCH_CHECK(kind == "iid" || kind == "arrivals" || kind == "topk", "kind: got ", kind);
  STD_TORCH_CHECK(k >= 1 && k <= 1024, "k: expected 1 to 1024, got ", k);
  Kept kept;
  Tensor out = empty(logits, {count, k}, ScalarType::Long);
  const DraftArgs args{rows_of(logits, "logits"),
                       kept.samplings(numbers, sampling_rows, "sampling"),
                       kept.per_row(seed, seeds, count, 1, "seed"),
                       kept.per_row(position, positions, count, 0, "position"),
                       kept.per_row(depth, depths, count, 0, "depth"),
                       kept.per_row(node, nodes, count, 0, "node"),
                       static_cast<int>(k),
                       kind == "iid" ? kIid : kind == "arrivals" ? kArrivals : kTopK,
                       static_cast<int64_t*>(out.mutable_data_ptr())};
  launch(draft_kernel, kRowBlock, logits, count, args);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> row_stats(const Tensor& logits, const std::vector<double>& numbers,
                                             const OptionalTensor& sampling_rows) {
  const int64_t count = logits.size(0);
  Kept kept;
  Tensor max = empty(logits, {count}, ScalarType::Float), logsumexp = empty(logits, {count}, ScalarType::Float),
         cutoff = empty(logits, {count}, ScalarType::Float);
  const StatsArgs args{rows_of(logits, "logits"), kept.samplings(numbers, sampling_rows, "sampling"),
                       static_cast<float*>(max.mutable_data_ptr()), static_cast<float*>(logsumexp.mutable_data_ptr()),
                       static_cast<float*>(cutoff.mutable_data_ptr())};
  launch(row_stats_kernel, kRowBlock, logits, count, args);
  return {max, logsumexp, cutoff};
}

}  // namespace
}  // namespace specsample

STABLE_TORCH_LIBRARY_IMPL(SPS_LIBRARY, SPS_DISPATCH_KEY, m) {
  m.impl("sample", TORCH_BOX(&specsample::sample));
  m.impl("draft", TORCH_BOX(&specsample::draft));
  m.impl("row_stats", TORCH_BOX(&specsample::row_stats));
}
