// The CPU executor of the walk: one request, its rows run by a RowRunner.
#pragma once
#include <vector>

#include "../walk.h"
#include "row_runner.h"

namespace SPS_NAMESPACE {

// The executor of one request (see walk.h).
class CpuExecutor {
 public:
  CpuExecutor(const Request& request, const RowRunner& runner, const Rows& target_rows, const Rows& draft_rows,
              const Sampling& sampling, const Sampling* draft_sampling, int64_t draft_sampling_stride, const float* kept_max,
              const float* kept_logsumexp, const float* kept_cutoff)
      : request(request),
        runner(runner),
        target_rows(target_rows),
        draft_rows(draft_rows),
        sampling(sampling),
        draft_sampling(draft_sampling),
        draft_sampling_stride(draft_sampling_stride),
        kept_max(kept_max),
        kept_logsumexp(kept_logsumexp),
        kept_cutoff(kept_cutoff) {}

  const Request& request;
  const RowRunner& runner;
  Rows target_rows, draft_rows;  // from the request's first row
  Sampling sampling;
  // Stride 1: one per draft row; stride 0: one for all.
  const Sampling* draft_sampling;
  int64_t draft_sampling_stride;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;  // RowStats of the draft rows, or null

  Law target(int row, bool normalised) const { return runner.law(target_rows, row, sampling, normalised); }

  Law draft(int node) const {
    if (!request.has_draft) return Law::point(request.token(node));
    const int64_t row = request.draft_row(node);
    const Sampling& s = draft_sampling[row * draft_sampling_stride];
    // Kept statistics are used if float32 determines the law to 1e-6; other rows are read again.
    if (kept_max && !s.greedy() && std::fabs(kept_logsumexp[row]) <= kMaxLogsumexp) {
      Law law = Law::unread(draft_rows.at(row), draft_rows.vocab, s);
      law.max = kept_max[row];
      law.cutoff = std::max(kept_cutoff[row], -FLT_MAX);
      law.mass = std::exp(kept_logsumexp[row] - law.max * law.scale);
      return law;
    }
    return runner.law(draft_rows, row, s, true);
  }

  double prob(const Law& law, int64_t token) const { return RowRunner::prob(*target_rows.passes, law, token); }

  bool accept(int node, double numerator, double denominator) const {
    return Stream(request.seed, request.position, kAccept, node).uniform(0) * denominator < numerator;
  }
  int64_t clock_race(const Law& law, int depth, const int64_t* lists = nullptr, int count = 0) const {
    std::vector<Stream> streams;
    for (int i = 0; i < std::max(count, 1); ++i)
      streams.emplace_back(request.seed, request.position + depth, kClock, count > 0 ? lists[i] : 0);
    Best best;
    runner.race(*target_rows.passes, law, streams.data(), static_cast<int>(streams.size()), true, &best);
    return best.id;
  }
  int64_t residual_race(const Law& target, const Law& draft, const Residual& residual) const {
    return runner.residual_race(*target_rows.passes, target, draft, residual,
                                Stream(request.seed, request.position, kResidual, residual.slot));
  }
  double residual_mass(const Law& target, const Law& draft, const Residual& residual) const {
    return runner.residual_mass(*target_rows.passes, target, draft, residual);
  }

  Law law_without(const Law& law, const int64_t* tokens, int count) const {
    return runner.law_without(*target_rows.passes, law, tokens, count);
  }
  Coupling histogram(const Law& target, const Law& draft, int k) {
    const Binning binning = Binning::of(static_cast<int>(request.options[0]), k, target.vocab);
    scratch_.resize(coupling_scratch(binning.count));
    Coupling coupling(binning, k, scratch_.data());
    runner.histogram(*target_rows.passes, target, draft, coupling);
    return coupling;
  }
  int bin(const Law& target, const Law& draft, const Coupling& coupling, int64_t token) const {
    return RowRunner::bin(*target_rows.passes, target, draft, coupling, token);
  }
  double place(int node) const { return Stream(request.seed, request.position, kSelect, node).uniform(0); }
  double move(int node) const { return Stream(request.seed, request.position, kSelect, node).uniform(1); }
  bool stays(int node, double numerator, double denominator) const { return place(node) * denominator < numerator; }
  int likeliest(const Law& law, int k, int64_t* tokens) {
    scratch_.resize(std::max(scratch_.size(), static_cast<size_t>(k)));
    return RowRunner::likeliest(*target_rows.passes, law, k, scratch_.data(), tokens);
  }
  double* keep_ratios(const Coupling& coupling) {
    kept_ratios_.assign(coupling.ratio, coupling.ratio + coupling.binning.count);
    return kept_ratios_.data();
  }
  Mixture mixture(const Law& target, const MixedSiblings& live) {
    const Cells cells = live.cells(static_cast<int>(request.options[2]), target.vocab);
    scratch_.resize(Mixture::scratch(cells, live.laws));
    Mixture mixture = live.mixture(cells, static_cast<int>(request.options[0]), scratch_.data());
    runner.mixture(*target_rows.passes, target, mixture);
    mixture.climb(static_cast<int>(request.options[1]), target_rows.passes->levels);
    return mixture;
  }
  int cell(const Law& target, const Mixture& mixture, int64_t token) const {
    return token < target.vocab ? target_rows.passes->cell(target, mixture, token) : 0;
  }
  int level(const Mixture& mixture, int cell, int node) const { return mixture.level(cell, place(node)); }
  int64_t mixture_race(const Law& target, const Mixture& mixture) const {
    return runner.mixture_race(*target_rows.passes, target, mixture, Stream(request.seed, request.position, kResidual));
  }

 private:
  std::vector<double> scratch_, kept_ratios_;
};

}  // namespace SPS_NAMESPACE
