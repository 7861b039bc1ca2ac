// The ops sample, draft and row_stats: argument handling for every device. A device adds run_rows.
#pragma once
#include "arguments.h"

namespace SPS_NAMESPACE {
namespace {

// `count` rows, on the device of `like`.
void run_rows(const RowArgs& a, int64_t count, const Tensor& like);

RowArgs row_args(Kept& kept, const Tensor& logits, RowOp op, const Numbers& numbers, const OptionalTensor& sampling_rows) {
  RowArgs a{};
  a.rows = rows_of(logits, 2, "logits"), a.op = op;
  a.sampling = kept.samplings(numbers, sampling_rows, logits.size(0), logits.size(0), "sampling");
  return a;
}

Tensor sample(const Tensor& logits, const Numbers& numbers, const OptionalTensor& sampling_rows, int64_t seed,
              const OptionalTensor& seeds, int64_t position, const OptionalTensor& positions) {
  Kept kept;
  RowArgs a = row_args(kept, logits, RowOp::kSample, numbers, sampling_rows);
  const int64_t count = logits.size(0);
  a.seed = kept.per_row(seed, seeds, count, 1, "seed"), a.position = kept.per_row(position, positions, count, 0, "position");
  const Tensor out = empty(logits, {count}, ScalarType::Long);
  a.k = 1, a.token = data_of<int64_t>(out);
  run_rows(a, count, logits);
  return out;
}

Tensor draft(const Tensor& logits, int64_t k, const std::string& kind, const Numbers& numbers, const OptionalTensor& sampling_rows,
             int64_t seed, const OptionalTensor& seeds, int64_t position, const OptionalTensor& positions, int64_t depth,
             const OptionalTensor& depths, int64_t node, const OptionalTensor& nodes) {
  const struct {
    const char* name;
    RowOp op;
  } kinds[] = {{"iid", RowOp::kIid},     {"arrivals", RowOp::kArrivals}, {"distinct", RowOp::kDistinct},
               {"lists", RowOp::kLists}, {"top", RowOp::kTop},           {"topk", RowOp::kTopK}};
  STD_TORCH_CHECK(k >= 1 && k <= kMaxNodes, "k: expected 1 to ", kMaxNodes, ", got ", k);
  Kept kept;
  RowArgs a = row_args(kept, logits, kinds[place_of(kinds, kind, "kind")].op, numbers, sampling_rows);
  const int64_t count = logits.size(0);
  a.seed = kept.per_row(seed, seeds, count, 1, "seed"), a.position = kept.per_row(position, positions, count, 0, "position");
  a.depth = kept.per_row(depth, depths, count, 0, "depth"), a.node = kept.per_row(node, nodes, count, 0, "node");
  const Tensor out = empty(logits, {count, k}, ScalarType::Long);
  a.k = static_cast<int>(k), a.token = data_of<int64_t>(out);
  run_rows(a, count, logits);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> row_stats(const Tensor& logits, const Numbers& numbers, const OptionalTensor& sampling_rows) {
  Kept kept;
  RowArgs a = row_args(kept, logits, RowOp::kStats, numbers, sampling_rows);
  const int64_t count = logits.size(0);
  const auto floats = [&] { return empty(logits, {count}, ScalarType::Float); };
  const Tensor max = floats(), logsumexp = floats(), cutoff = floats();
  a.max = data_of<float>(max), a.logsumexp = data_of<float>(logsumexp), a.cutoff = data_of<float>(cutoff);
  run_rows(a, count, logits);
  return {max, logsumexp, cutoff};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(SPS_LIBRARY, SPS_DISPATCH_KEY, m) {
  m.impl("sample", TORCH_BOX(&SPS_NAMESPACE::sample));
  m.impl("draft", TORCH_BOX(&SPS_NAMESPACE::draft));
  m.impl("row_stats", TORCH_BOX(&SPS_NAMESPACE::row_stats));
}
