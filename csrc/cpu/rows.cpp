// sample, draft and row_stats on the CPU.
#include "device.h"

#include "../row_ops.h"

namespace SPS_NAMESPACE {
namespace {

// The first k arrivals of a race, of which a token has one or, with renewals, many; without a stream, the k likeliest.
void arrivals(const RowRunner& runner, const Rows& rows, Law law, const Stream* stream, int k, int64_t* token,
              std::vector<double>& score, const Renewals* renewals = nullptr) {
  score.resize(k);
  Arrivals found{k, score.data(), token, renewals};
  const auto run = [&](float level = 0) {
    found = Arrivals{k, score.data(), token, renewals};
    const RaceArgs args{law.row, law.scale, law.cutoff, stream, 1, true, nullptr, 0, level};
    rows.passes->arrivals(args, 0, law.vocab, &found);
  };
  if (law.broken) {
  } else if (law.only >= 0) {
    do found.insert(0, law.only);
    while (renewals && found.count < k);
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
    // The same for arrivals far below the first: each relative to the largest remaining logit.
    for (int j = 0; j < k && !renewals; ++j) {
      if (j < found.count && std::fabs(score[j]) <= kPlainScores) continue;
      found.count = j;  // all later ones are far, too
      token[j] = runner.race(*rows.passes, law, *stream, token, j).id;
      if (token[j] < 0) break;
      found.count = j + 1;
    }
  } else {
    found.count = RowRunner::likeliest(*rows.passes, law, k, score.data(), token);
  }
  std::fill(token + found.count, token + k, -1);
}

void draw(const RowRunner& runner, const RowArgs& a, int64_t i, const Law& law, std::vector<double>& score) {
  int64_t* const token = a.token + i * a.k;
  const int k = a.k;
  if (a.op == RowOp::kSample || a.op == RowOp::kLists || (k == 1 && (a.op == RowOp::kArrivals || a.op == RowOp::kIid))) {
    std::vector<Stream> streams;
    for (int j = 0; j < k; ++j) streams.push_back(a.stream(i, j));
    std::vector<Best> best(k);
    runner.race(*a.rows.passes, law, streams.data(), k, false, best.data());
    for (int j = 0; j < k; ++j) token[j] = best[j].id;
  } else if (a.op == RowOp::kTop) {
    if (k > 1) arrivals(runner, a.rows, law, nullptr, k - 1, token, score);
    const bool left = k == 1 || token[k - 2] >= 0;  // otherwise there are no other tokens
    token[k - 1] = -1;
    if (left && (k == 1 || law.only < 0)) token[k - 1] = runner.race(*a.rows.passes, law, a.stream(i, k - 1), token, k - 1).id;
  } else {
    const Stream stream = a.stream(i, 0);
    const Renewals renewals{a.seed[i], a.position[i], a.node[i]};
    arrivals(runner, a.rows, law, a.op == RowOp::kTopK ? nullptr : &stream, k, token, score,
             a.op == RowOp::kIid ? &renewals : nullptr);
  }
}

void run_rows(const RowArgs& a, int64_t count, const Tensor&) {
  const int64_t races = a.op == RowOp::kLists ? a.k : 1;
  for_requests(count, a.rows.vocab * races, [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    std::vector<double> score;
    for (int64_t i = first; i < last; ++i) {
      const Law law = runner.law(a.rows, i, a.sampling[i], a.op == RowOp::kStats);
      if (a.op == RowOp::kStats) a.write_stats(i, law);
      else draw(runner, a, i, law, score);
    }
  });
}

}  // namespace
}  // namespace SPS_NAMESPACE
