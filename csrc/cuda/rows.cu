// sample, draft and row_stats on CUDA.
#include "arguments.h"
#include "row_kernels.h"

namespace SPS_NAMESPACE {
namespace {

RowArgs common(Kept& kept, const Tensor& logits, RowOp op, const std::vector<double>& numbers, const OptionalTensor& sampling_rows) {
  RowArgs a{};
  a.rows = rows_of(logits, "logits"), a.op = op;
  a.sampling = kept.samplings(numbers, sampling_rows, "sampling");
  return a;
}

Tensor sample(const Tensor& logits, const std::vector<double>& numbers, const OptionalTensor& sampling_rows, int64_t seed,
              const OptionalTensor& seeds, int64_t position, const OptionalTensor& positions) {
  const int64_t count = logits.size(0);
  Kept kept;
  Tensor out = empty(logits, {count}, ScalarType::Long);
  RowArgs a = common(kept, logits, RowOp::kSample, numbers, sampling_rows);
  a.seed = kept.per_row(seed, seeds, count, 1, "seed"), a.position = kept.per_row(position, positions, count, 0, "position");
  a.token = static_cast<int64_t*>(out.mutable_data_ptr());
  launch(row_kernel, logits, count, a.rows.vocab, a);
  return out;
}

Tensor draft(const Tensor& logits, int64_t k, const std::string& kind, const std::vector<double>& numbers,
             const OptionalTensor& sampling_rows, int64_t seed, const OptionalTensor& seeds, int64_t position,
             const OptionalTensor& positions, int64_t depth, const OptionalTensor& depths, int64_t node,
             const OptionalTensor& nodes) {
  const struct {
    const char* name;
    RowOp op;
  } kinds[] = {{"iid", RowOp::kIid},     {"arrivals", RowOp::kArrivals}, {"distinct", RowOp::kDistinct},
               {"lists", RowOp::kLists}, {"top", RowOp::kTop},           {"topk", RowOp::kTopK}};
  const int64_t count = logits.size(0);
  STD_TORCH_CHECK(k >= 1 && k <= 1024, "k: expected 1 to 1024, got ", k);
  Kept kept;
  Tensor out = empty(logits, {count, k}, ScalarType::Long);
  RowArgs a = common(kept, logits, entry_of(kinds, kind, "kind", kDeviceName).op, numbers, sampling_rows);
  a.k = static_cast<int>(k);
  a.seed = kept.per_row(seed, seeds, count, 1, "seed"), a.position = kept.per_row(position, positions, count, 0, "position");
  a.depth = kept.per_row(depth, depths, count, 0, "depth"), a.node = kept.per_row(node, nodes, count, 0, "node");
  a.token = static_cast<int64_t*>(out.mutable_data_ptr());
  launch(row_kernel, logits, count, a.rows.vocab, a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> row_stats(const Tensor& logits, const std::vector<double>& numbers,
                                             const OptionalTensor& sampling_rows) {
  const int64_t count = logits.size(0);
  Kept kept;
  Tensor max = empty(logits, {count}, ScalarType::Float), logsumexp = empty(logits, {count}, ScalarType::Float),
         cutoff = empty(logits, {count}, ScalarType::Float);
  RowArgs a = common(kept, logits, RowOp::kStats, numbers, sampling_rows);
  a.max = static_cast<float*>(max.mutable_data_ptr()), a.logsumexp = static_cast<float*>(logsumexp.mutable_data_ptr());
  a.cutoff = static_cast<float*>(cutoff.mutable_data_ptr());
  launch(row_kernel, logits, count, a.rows.vocab, a);
  return {max, logsumexp, cutoff};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(SPS_LIBRARY, SPS_DISPATCH_KEY, m) {
  m.impl("sample", TORCH_BOX(&specsample::sample));
  m.impl("draft", TORCH_BOX(&specsample::draft));
  m.impl("row_stats", TORCH_BOX(&specsample::row_stats));
}
