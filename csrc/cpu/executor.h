// The CPU executor: laws, races and sums of rows by the passes of one instruction set, over a fixed tiling of the row.
//
// A row is cut into at most 64 tiles by its length alone. Sums are merged tile by tile in order, so the result is the same
// bits whether one thread runs the tiles or several.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "../walk.h"
#include "filters.h"
#include "passes.h"

namespace specsample {

constexpr int kMaxTiles = 64;
constexpr double kPlainScores = 1e6;  // scores above it, not relative to the row's maximum, would cost the clocks digits
constexpr int64_t kTile = kAhead, kSplitAbove = 16384;

// A matrix of logits: rows at a stride, the last dimension contiguous.
struct Rows {
  const char* data = nullptr;
  int64_t vocab = 0, stride = 0;  // in bytes
  const Passes* passes = nullptr;
  const void* at(int64_t row) const { return data + row * stride; }
};

class RowRunner {
 public:
  explicit RowRunner(bool split) : split_(split) {}

  // f(tile, begin, end) over the tiles of a row.
  template <class F>
  void tiles(int64_t vocab, const F& f) const {
    const int64_t count = tile_count(vocab), length = tile_length(vocab, count);
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(i, i * length, std::min(vocab, (i + 1) * length));
    };
    if (split_ && vocab >= kSplitAbove) {
      torch::stable::parallel_for(0, count, 1, run);
    } else {
      run(0, count);
    }
  }
  static int64_t tile_count(int64_t vocab) {
    return std::min<int64_t>(kMaxTiles, std::max<int64_t>(1, (vocab + kTile - 1) / kTile));
  }
  static int64_t tile_length(int64_t vocab, int64_t count) {
    return (((vocab + count - 1) / count) + kGroup - 1) / kGroup * kGroup;
  }

  // The law of a row; its mass only when `normalised`.
  Law law(const Rows& rows, int64_t index, const Sampling& sampling, bool normalised) const {
    const Passes& passes = *rows.passes;
    Law law;
    law.row = rows.at(index), law.vocab = rows.vocab, law.scale = sampling.scale();
    const bool greedy = sampling.greedy(), filtered = !greedy && sampling.filters(rows.vocab);
    if (!greedy && !filtered && !normalised) return law;

    float top[kMaxTiles];
    double sum[kMaxTiles];
    const bool sums = !greedy && !filtered;
    tiles(rows.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      top[i] = passes.max(law.row, begin, end);
      Law tile = law;
      tile.max = top[i];
      sum[i] = sums && top[i] > -HUGE_VALF ? passes.sum(law.row, begin, end, Affine::of(tile), law.cutoff) : 0;
    });
    const int64_t count = tile_count(rows.vocab);
    law.max = *std::max_element(top, top + count);
    law.broken = !(law.max > -HUGE_VALF);
    if (law.broken) return law;
    if (greedy) {
      law.only = first_at_least(rows, law.row, law.max);
      law.mass = 1;
      return law;
    }
    if (law.max >= kLargest) {  // +inf logits share all the mass
      law.cutoff = kLargest, law.scale = 0;
      law.mass = kept_mass(passes, law);
      return law;
    }
    if (filtered) {
      law.cutoff = cutoff(passes, law, sampling);
      if (normalised) law.mass = kept_mass(passes, law);
      return law;
    }
    law.mass = merge(law, top, sum, count);
    return law;
  }

  int64_t race(const Passes& passes, Law law, const Stream& stream, int64_t exclude) const {
    if (law.only >= 0) return law.only;
    if (law.broken) return -1;
    Best best = race_once(passes, law, stream, exclude);
    if (best.infinite) {
      law.cutoff = kLargest, law.scale = 0;
      best = race_once(passes, law, stream, exclude);
    }
    // Nothing finite, or logits so large that the clocks are lost beside them: run relative to the largest.
    if (best.id < 0 || std::fabs(best.score) > kPlainScores) {
      const float top = largest(passes, law, exclude);
      if (top > -HUGE_VALF) best = race_once(passes, law, stream, exclude, top);
    }
    return best.id;
  }

  int64_t residual_race(const Passes& passes, const Law& target, const Law& draft, double scale,
                        const Stream& stream) const {
    if (target.only >= 0) return target.only;
    if (draft.only >= 0) {  // (scale t - 1)+ vanishes on the one-hot draft's token, and elsewhere the weights are t's
      const int64_t id = race(passes, target, stream, draft.only);
      return id >= 0 ? id : race(passes, target, stream, -1);
    }
    const ResidualArgs args{target, draft, scale, stream};
    const Best best = merged([&](int64_t begin, int64_t end, Best* b) { passes.residual_race(args, begin, end, b); },
                             target.vocab);
    // Nothing left: the draft covers the target up to rounding. Fall back to the target's law.
    return best.id >= 0 ? best.id : race(passes, target, stream, -1);
  }

  double residual_mass(const Passes& passes, const Law& target, const Law& draft, double scale) const {
    if (draft.only >= 0) return scale * (1 - prob(passes, target, draft.only));
    if (target.only >= 0) return std::max(0.0, scale - prob(passes, draft, target.only));
    double sum[kMaxTiles];
    tiles(target.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      sum[i] = passes.residual_mass(target, draft, scale, begin, end);
    });
    double total = 0;
    for (int64_t i = 0; i < tile_count(target.vocab); ++i) total += sum[i];
    return total;
  }

  static double prob(const Passes& passes, const Law& law, int64_t token) {
    if (law.only >= 0) return token == law.only;
    return token < law.vocab ? law.prob(passes.value(law.row, token)) : 0;
  }

  static int64_t first_at_least(const Rows& rows, const void* row, float bound) {
    int64_t found = -1;
    for (int64_t i = 0; i < rows.vocab && found < 0; i += kTile)
      rows.passes->scan(row, i, std::min(rows.vocab, i + kTile), bound, nullptr,
                        [](void* context, int64_t first, uint32_t mask, const float*, const float*) {
                          auto& id = *static_cast<int64_t*>(context);
                          if (id < 0) id = first + __builtin_ctz(mask);
                        },
                        &found);
    return found;
  }

 private:
  template <class F>
  Best merged(const F& pass, int64_t vocab) const {
    if (!split_ || vocab < kSplitAbove) {
      Best best;
      pass(0, vocab, &best);
      return best;
    }
    Best part[kMaxTiles];
    tiles(vocab, [&](int64_t i, int64_t begin, int64_t end) { pass(begin, end, &part[i]); });
    for (int64_t i = 1; i < tile_count(vocab); ++i) part[0].merge(part[i]);
    return part[0];
  }

  // Largest logit of the row but for one token.
  static float largest(const Passes& passes, const Law& law, int64_t exclude) {
    const float below = passes.max(law.row, 0, exclude < 0 ? law.vocab : exclude);
    if (exclude < 0) return below;
    float above = -HUGE_VALF;  // token by token: the passes start at multiples of 64
    for (int64_t i = exclude + 1; i < law.vocab; ++i) above = std::max(above, passes.value(law.row, i));
    return std::max(below, above);
  }

  Best race_once(const Passes& passes, const Law& law, const Stream& stream, int64_t exclude, float level = 0) const {
    const RaceArgs args{law.row, law.scale, law.cutoff, stream, exclude, level};
    return merged([&](int64_t begin, int64_t end, Best* b) { passes.race(args, begin, end, b); }, law.vocab);
  }

  double kept_mass(const Passes& passes, const Law& law) const {
    double sum[kMaxTiles];
    tiles(law.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      sum[i] = passes.sum(law.row, begin, end, Affine::of(law), law.cutoff);
    });
    double total = 0;
    for (int64_t i = 0; i < tile_count(law.vocab); ++i) total += sum[i];
    return total;
  }

  // Sum of tiles that are each relative to their own maximum.
  static double merge(const Law& law, const float* top, const double* sum, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i)
      if (sum[i] > 0) total += sum[i] * std::exp((static_cast<double>(top[i]) - law.max) * law.scale);
    return total;
  }

  float cutoff(const Passes& passes, Law law, const Sampling& sampling) const {
    if (sampling.by_k(law.vocab))
      law.cutoff = kth_largest(passes, law.row, law.vocab, static_cast<int64_t>(sampling.top_k));
    if (sampling.by_p()) {
      const double total = kept_mass(passes, law), goal = std::max(sampling.top_p, 0.0) * (1 - kSlack) * total;
      law.cutoff = std::max(law.cutoff, goal > 0 ? top_p_cutoff(passes, law, goal, total) : law.max);
    }
    if (sampling.by_min_p()) {
      const double bound = law.max + (std::log(std::min(sampling.min_p, 1.0)) - kSlack) / law.scale;
      float rounded = static_cast<float>(std::max(bound, -static_cast<double>(FLT_MAX)));
      if (rounded < bound) rounded = std::nextafter(rounded, FLT_MAX);
      law.cutoff = std::max(law.cutoff, rounded);
    }
    return law.cutoff;
  }

  bool split_;
};

// The executor of one request (see walk.h).
class CpuExecutor {
 public:
  const Request& request;
  const RowRunner& runner;
  Rows target_rows, draft_rows;  // from the request's first row
  Sampling sampling;
  // Per draft row when strided by 1, one for all when by 0.
  const Sampling* draft_sampling;
  int64_t draft_sampling_stride;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;  // RowStats of the draft rows, or null

  Law target(int row, bool normalised) const { return runner.law(target_rows, row, sampling, normalised); }

  Law draft(int node) const {
    if (!request.has_draft) return Law::point(request.token(node));
    const int64_t row = request.draft_row(node);
    const Sampling& s = draft_sampling[row * draft_sampling_stride];
    // Kept statistics serve where float32 determines the law to 1e-6; other rows are read again.
    if (kept_max && !s.greedy() && std::fabs(kept_logsumexp[row]) <= 32.f) {
      Law law;
      law.row = draft_rows.at(row), law.vocab = draft_rows.vocab, law.scale = s.scale();
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
  int64_t clock_race(const Law& law, int depth) const {
    return runner.race(*target_rows.passes, law, Stream(request.seed, request.position + depth, kClock), -1);
  }
  int64_t residual_race(const Law& target, const Law& draft, double scale) const {
    return runner.residual_race(*target_rows.passes, target, draft, scale,
                                Stream(request.seed, request.position, kResidual));
  }
  double residual_mass(const Law& target, const Law& draft, double scale) const {
    return runner.residual_mass(*target_rows.passes, target, draft, scale);
  }
};

}  // namespace specsample
