// sample, draft and row_stats on the CPU.
#include "arguments.h"

namespace SPS_NAMESPACE {
namespace {

Tensor sample(const Tensor& logits, const std::vector<double>& numbers, const OptionalTensor& sampling_rows, int64_t seed,
              const OptionalTensor& seeds, int64_t position, const OptionalTensor& positions) {
  const Rows rows = rows_of(logits, "logits");
  const int64_t count = logits.size(0);
  const Samplings sampling(numbers, sampling_rows, "sampling");
  const PerRow seed_of(seed, seeds, count, 1, "seed"), position_of(position, positions, count, 0, "position");
  Tensor out = empty({count}, ScalarType::Long);
  auto* token = static_cast<int64_t*>(out.mutable_data_ptr());
  for_requests(count, rows.vocab, [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    for (int64_t i = first; i < last; ++i)
      token[i] = runner.race(*rows.passes, runner.law(rows, i, sampling[i], false),
                             Stream(seed_of[i], position_of[i], kClock)).id;
  });
  return out;
}

// The first k arrivals of a race; without a stream, the k likeliest.
void arrivals(const Rows& rows, Law law, const Stream* stream, int k, int64_t* token, std::vector<double>& score) {
  score.resize(k);
  Arrivals found{k, score.data(), token};
  const auto run = [&](float level = 0) {
    found = Arrivals{k, score.data(), token};
    const RaceArgs args{law.row, law.scale, law.cutoff, *stream, nullptr, 0, level};
    rows.passes->arrivals(args, 0, law.vocab, &found);
  };
  if (law.broken) {
  } else if (law.only >= 0) {
    found.offer(0, law.only);
  } else if (stream) {
    run();
    if (found.infinite) {
      law.cutoff = kLargest, law.scale = 0;
      run();
    }
    if (found.count < k || std::fabs(score[0]) > kPlainScores) {  // as in RowRunner::race
      const float top = rows.passes->max(law.row, 0, law.vocab);
      if (top > -HUGE_VALF) run(top);
    }
  } else {
    found.count = RowRunner::likeliest(*rows.passes, law, k, score.data(), token);
  }
  std::fill(token + found.count, token + k, -1);
}

Tensor draft(const Tensor& logits, int64_t k, const std::string& kind, const std::vector<double>& numbers,
             const OptionalTensor& sampling_rows, int64_t seed, const OptionalTensor& seeds, int64_t position,
             const OptionalTensor& positions, int64_t depth, const OptionalTensor& depths, int64_t node,
             const OptionalTensor& nodes) {
  const Rows rows = rows_of(logits, "logits");
  const int64_t count = logits.size(0);
  const Samplings sampling(numbers, sampling_rows, "sampling");
  const PerRow seed_of(seed, seeds, count, 1, "seed"), position_of(position, positions, count, 0, "position");
  const PerRow depth_of(depth, depths, count, 0, "depth"), node_of(node, nodes, count, 0, "node");
  const bool iid = kind == "iid", race = kind == "arrivals", lists = kind == "lists", top = kind == "top";
  STD_TORCH_CHECK(iid || race || lists || top || kind == "distinct" || kind == "topk", "kind: got ", kind);
  STD_TORCH_CHECK(k >= 1 && k <= 1024, "k: expected 1 to 1024, got ", k);
  Tensor out = empty({count, k}, ScalarType::Long);
  auto* tokens = static_cast<int64_t*>(out.mutable_data_ptr());
  for_requests(count, rows.vocab * (iid || lists ? k : 1), [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    std::vector<double> score;
    for (int64_t i = first; i < last; ++i) {
      const Law law = runner.law(rows, i, sampling[i], false);
      const auto stream = [&](Purpose purpose, int64_t ahead, int64_t slot) {
        return Stream(seed_of[i], position_of[i] + ahead, purpose, slot);
      };
      const Stream clocks = stream(kClock, depth_of[i], 0), distinct = stream(kDistinct, 0, node_of[i]);
      int64_t* token = tokens + i * k;
      if (iid || lists) {
        for (int64_t j = 0; j < k; ++j)
          token[j] = runner.race(*rows.passes, law, iid ? stream(kDraft, 0, node_of[i] + j) : stream(kClock, depth_of[i], j)).id;
      } else if (race && k == 1) {
        token[0] = runner.race(*rows.passes, law, clocks).id;
      } else if (top) {
        if (k > 1) arrivals(rows, law, nullptr, static_cast<int>(k - 1), token, score);
        const bool left = k == 1 || token[k - 2] >= 0;  // otherwise the likeliest are all there is
        token[k - 1] = -1;
        if (left && (k == 1 || law.only < 0))
          token[k - 1] = runner.race(*rows.passes, law, stream(kDraft, 0, node_of[i] + k - 1), token, static_cast<int>(k - 1)).id;
      } else {
        arrivals(rows, law, race ? &clocks : kind == "distinct" ? &distinct : nullptr, static_cast<int>(k), token, score);
      }
    }
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> row_stats(const Tensor& logits, const std::vector<double>& numbers,
                                             const OptionalTensor& sampling_rows) {
  const Rows rows = rows_of(logits, "logits");
  const int64_t count = logits.size(0);
  const Samplings sampling(numbers, sampling_rows, "sampling");
  Tensor out[3];
  float* value[3];
  for (int i = 0; i < 3; ++i) {
    out[i] = empty({count}, ScalarType::Float);
    value[i] = static_cast<float*>(out[i].mutable_data_ptr());
  }
  for_requests(count, rows.vocab, [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    for (int64_t i = first; i < last; ++i) {
      const Law law = runner.law(rows, i, sampling[i], true);
      float max = law.max, logsumexp = static_cast<float>(law.max * law.scale + std::log(law.mass)), cutoff = law.cutoff;
      if (law.broken) max = logsumexp = cutoff = -HUGE_VALF;
      else if (law.max >= kLargest) max = cutoff = HUGE_VALF, logsumexp = law.only >= 0 ? 0 : HUGE_VALF;
      else if (law.only >= 0) logsumexp = 0, cutoff = max;
      else if (cutoff <= -FLT_MAX) cutoff = -HUGE_VALF;
      value[0][i] = max, value[1][i] = logsumexp, value[2][i] = cutoff;
    }
  });
  return {out[0], out[1], out[2]};
}

}  // namespace
}  // namespace SPS_NAMESPACE

STABLE_TORCH_LIBRARY_IMPL(specsample, CPU, m) {
  m.impl("sample", TORCH_BOX(&specsample::sample));
  m.impl("draft", TORCH_BOX(&specsample::draft));
  m.impl("row_stats", TORCH_BOX(&specsample::row_stats));
}
