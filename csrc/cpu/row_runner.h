// Rows on the CPU: laws, races and sums, computed by the passes of one instruction set over a fixed tiling of the row.
//
// A row is cut into at most 64 tiles, determined by its length alone. Sums are merged tile by tile in order, so the result is
// bit-identical whether one thread runs the tiles or several.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <mutex>
#include <vector>

#include "filters.h"
#include "passes.h"

namespace SPS_NAMESPACE {

constexpr int kMaxTiles = 64;
constexpr double kPlainScores = 1e6;  // scores above this, unless relative to the row's maximum, would lose digits of the clocks
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

  // Call f(tile, begin, end) for the tiles of a row.
  template <class F>
  void tiles(int64_t vocab, const F& f) const {
    const int64_t length = tile_length(vocab, tile_count(vocab));
    spread(vocab, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(i, i * length, std::min(vocab, (i + 1) * length));
    });
  }
  // Call run(first tile, last tile), once or on several threads.
  template <class F>
  void spread(int64_t vocab, const F& run) const {
    if (split_ && vocab >= kSplitAbove) {
      torch::stable::parallel_for(0, tile_count(vocab), 1, run);
    } else {
      run(0, tile_count(vocab));
    }
  }
  static int64_t tile_count(int64_t vocab) {
    return std::min<int64_t>(kMaxTiles, std::max<int64_t>(1, (vocab + kTile - 1) / kTile));
  }
  static int64_t tile_length(int64_t vocab, int64_t count) {
    return (((vocab + count - 1) / count) + kAligned - 1) / kAligned * kAligned;
  }

  // The law of a row; its mass is computed only if `normalised`.
  Law law(const Rows& rows, int64_t index, const Sampling& sampling, bool normalised) const {
    const Passes& passes = *rows.passes;
    Law law = Law::unread(rows.at(index), rows.vocab, sampling);
    const bool greedy = sampling.greedy(), filtered = !greedy && sampling.filters(rows.vocab);
    if (!greedy && !filtered && !normalised) return law;

    float top[kMaxTiles];
    double sum[kMaxTiles];
    const bool sums = !greedy && (!filtered || (sampling.by_p() && !sampling.by_k(rows.vocab)));
    tiles(rows.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      if (sums) sum[i] = passes.tile(law.row, begin, end, Affine::of(law), &top[i]);
      else top[i] = passes.max(law.row, begin, end);
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
    if (law.max >= kLargest) {  // +inf logits share all mass
      law.cutoff = kLargest, law.scale = 0;
      law.mass = kept_mass(passes, law);
      return law;
    }
    if (filtered) {
      law.cutoff = cutoff(passes, law, sampling, sums ? merge(law, top, sum, count) : 0);
      if (normalised) law.mass = kept_mass(passes, law);
      return law;
    }
    law.mass = merge(law, top, sum, count);
    return law;
  }

  // The winner on each of the streams, or with `together` on the minimum of their clocks. The row is read once.
  // exclude: tokens that are not in the race.
  void race(const Passes& passes, const Law& law, const Stream* streams, int count, bool together, Best* best,
            const int64_t* exclude = nullptr, int exclude_count = 0) const {
    const int sinks = together ? 1 : count;
    std::fill(best, best + sinks, law.only >= 0 ? Best{0, law.only} : Best());
    if (law.only >= 0 || law.broken) return;
    RaceArgs args{law.row, law.scale, law.cutoff, streams, count, together, exclude, exclude_count};
    const auto run = [&] {
      merged([&](int64_t begin, int64_t end, Best* b) { passes.race(args, begin, end, b); }, law.vocab, best, sinks);
    };
    run();
    if (best->infinite) args.cutoff = kLargest, args.scale = 0, run();
    // Nothing finite, or logits so large that the clocks are rounded away: run relative to the largest logit.
    const auto far = [](const Best& b) { return b.id < 0 || std::fabs(b.score) > kPlainScores; };
    if (!std::any_of(best, best + sinks, far)) return;
    const float top = max_without(passes, law, exclude, exclude_count);
    if (top > -HUGE_VALF && top != 0) args.level = top, run();
  }
  Best race(const Passes& passes, const Law& law, const Stream& stream, const int64_t* exclude = nullptr, int count = 0) const {
    Best best;
    race(passes, law, &stream, 1, true, &best, exclude, count);
    return best;
  }

  int64_t residual_race(const Passes& passes, const Law& target, const Law& draft, const Residual& residual,
                        const Stream& stream) const {
    if (target.only >= 0) return target.only;
    Best best;
    if (draft.only >= 0) {
      best = point_residual_race(passes, target, draft.only, residual, stream);
    } else {
      const ResidualArgs args{target, draft, residual, stream};
      merged([&](int64_t begin, int64_t end, Best* b) { passes.residual_race(args, begin, end, b); }, target.vocab, &best);
    }
    // Nothing left: the draft covers the target up to rounding. Fall back to the target's law.
    return best.id >= 0 ? best.id : race(passes, target, stream).id;
  }

  double residual_mass(const Passes& passes, const Law& target, const Law& draft, const Residual& residual) const {
    if (draft.only >= 0) return residual.scale * (1 - prob(passes, target, draft.only));
    if (target.only >= 0) return std::max(0.0, residual.scale - prob(passes, draft, target.only));
    double sum[kMaxTiles];
    tiles(target.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      sum[i] = 0;
      around(
          begin, end, target.without, target.without_count,
          [&](int64_t from, int64_t to) { sum[i] += passes.residual_mass(target, draft, residual, from, to); },
          [&](int64_t token) { sum[i] += residual.weight(prob(passes, target, token), prob(passes, draft, token)); });
    });
    return total(sum, tile_count(target.vocab));
  }

  // Sums by ratio bin; both laws must have a mass, and the target must not be a point mass.
  void histogram(const Passes& passes, const Law& target, const Law& draft, Coupling& coupling) const {
    const int size = 2 * (coupling.binning.count + 1);
    double* sums = coupling.sums;
    std::fill(sums, sums + size, 0.0);
    if (draft.only >= 0) {
      const double t = prob(passes, target, draft.only);
      const int bin = coupling.binning.of_ratio(t, 1);
      sums[2 * bin] = t, sums[2 * bin + 1] = 1;
      sums[size - 4] += 1 - t;  // the other tokens are never drawn: the last bin
      return coupling.close_sums();
    }
    by_parts(target.vocab, size, sums, [&](int64_t begin, int64_t end, double* part) {
      passes.histogram(target, draft, coupling.binning, begin, end, part);
    });
    if (draft.vocab > target.vocab)  // tokens that the target lacks: ratio 0
      sums[1] += passes.sum(draft.row, target.vocab, draft.vocab, Affine::of(draft), draft.cutoff) / draft.mass;
    coupling.close_sums();
  }
  static int bin(const Passes& passes, const Law& target, const Law& draft, const Coupling& coupling, int64_t token) {
    if (draft.only >= 0) return coupling.binning.of_ratio(prob(passes, target, token), 1);
    if (token >= target.vocab) return 0;
    return passes.bin(target, draft, coupling.binning, token);
  }

  // Sums by cell for several laws; the target must not be a point mass.
  void mixture(const Passes& passes, const Law& target, Mixture& mixture) const {
    const int size = mixture.cells.count() * mixture.stride();
    std::fill(mixture.sums, mixture.sums + size, 0.0);
    by_parts(target.vocab, size, mixture.sums,
             [&](int64_t begin, int64_t end, double* part) { passes.mixture_sums(target, mixture, begin, end, part); });
    for (int g = 0; g < mixture.laws; ++g) {  // tokens missing from the target: the first cell
      const Law& draft = mixture.law[g];
      if (draft.only >= target.vocab) mixture.sums[1 + g] += 1;
      if (draft.only < 0 && draft.vocab > target.vocab)
        mixture.sums[1 + g] += passes.sum(draft.row, target.vocab, draft.vocab, Affine::of(draft), draft.cutoff) / draft.mass;
    }
    mixture.close_sums();
  }
  int64_t mixture_race(const Passes& passes, const Law& target, const Mixture& mixture, const Stream& stream) const {
    Best best;
    merged([&](int64_t begin, int64_t end, Best* b) { passes.mixture_race(target, mixture, stream, begin, end, b); }, target.vocab,
           &best);
    return best.id >= 0 ? best.id : race(passes, target, stream).id;  // as in residual_race
  }

  // The law conditioned on the token being none of these, relative to the largest of the others: 1 - d(tokens) would suffer complete
  // cancellation if they hold nearly all mass, and weights relative to the row's maximum would underflow.
  Law law_without(const Passes& passes, const Law& law, const int64_t* tokens, int count) const {
    Law rest = law.off(tokens, count);
    if (law.only >= 0) {
      rest.broken = rest.lacks(law.only);
      return rest;
    }
    rest.max = max_without(passes, law, tokens, count);
    rest.broken = !(rest.max >= law.cutoff);
    if (rest.broken) return rest;
    double sum[kMaxTiles];
    tiles(law.vocab, [&](int64_t i, int64_t begin, int64_t end) {
      sum[i] = 0;
      around(
          begin, end, tokens, count,
          [&](int64_t from, int64_t to) { sum[i] += passes.sum(law.row, from, to, Affine::of(rest), law.cutoff); },
          [&](int64_t token) { sum[i] += rest.weight(passes.value(law.row, token)); });
    });
    rest.mass = total(sum, tile_count(law.vocab));
    return rest;
  }

  static double prob(const Passes& passes, const Law& law, int64_t token) {
    if (law.only >= 0) return token == law.only;
    if (law.lacks(token)) return 0;
    return token < law.vocab ? law.prob(passes.value(law.row, token)) : 0;
  }

  // The k likeliest tokens in order, lowest id first on ties; score, token: [k]. Returns how many there are.
  static int likeliest(const Passes& passes, const Law& law, int k, double* score, int64_t* token) {
    Arrivals found{k, score, token};
    if (law.only >= 0) {
      found.offer(0, law.only);
      return found.count;
    }
    const Visit visit = [](void* context, int64_t first, uint32_t mask, const float* logits, const float*) {
      for (; mask; mask &= mask - 1) {
        const int l = __builtin_ctz(mask);
        static_cast<Arrivals*>(context)->offer(logits[l], first + l);
      }
    };
    for (int64_t i = 0; i < law.vocab; i += kTile) {
      const float bound = std::max(law.cutoff, static_cast<float>(std::max<double>(found.threshold(), -FLT_MAX)));
      passes.scan(law.row, i, std::min(law.vocab, i + kTile), bound, nullptr, visit, &found);
    }
    // +inf logits share all mass: nothing else has positive weight.
    if (found.count && score[0] >= kLargest)
      while (score[found.count - 1] < kLargest) --found.count;
    return found.count;
  }

  static int64_t first_at_least(const Rows& rows, const void* row, float bound) {
    int64_t found = -1;
    for (int64_t i = 0; i < rows.vocab && found < 0; i += kTile)
      rows.passes->scan(
          row, i, std::min(rows.vocab, i + kTile), bound, nullptr,
          [](void* context, int64_t first, uint32_t mask, const float*, const float*) {
            auto& id = *static_cast<int64_t*>(context);
            if (id < 0) id = first + __builtin_ctz(mask);
          },
          &found);
    return found;
  }

 private:
  // Add to sums [size] what pass(begin, end, part) adds to `part` over all tiles.
  template <class F>
  void by_parts(int64_t vocab, int size, double* sums, const F& pass) const {
    const int64_t length = tile_length(vocab, tile_count(vocab));
    std::mutex merging;
    spread(vocab, [&](int64_t first, int64_t last) {
      const auto add = [&](double* to) {
        for (int64_t i = first; i < last; ++i) pass(i * length, std::min(vocab, (i + 1) * length), to);
      };
      if (first == 0 && last == tile_count(vocab)) return add(sums);
      std::vector<double> part(size);
      add(part.data());
      const std::lock_guard<std::mutex> lock(merging);
      for (int i = 0; i < size; ++i) sums[i] += part[i];  // exact, so the order of the threads does not matter
    });
  }

  // Races over a row, on one thread or in segments on several: best [sinks]. A segment is raced as a whole, not tile by tile, because
  // its best score so far is what rules most tokens out.
  template <class F>
  void merged(const F& pass, int64_t vocab, Best* best, int sinks = 1) const {
    constexpr int64_t kStretch = kAlignedRace;
    std::fill(best, best + sinks, Best());
    if (!split_ || vocab < kSplitAbove) return pass(0, vocab, best);
    std::mutex merging;
    torch::stable::parallel_for(0, (vocab + kStretch - 1) / kStretch, 1, [&](int64_t first, int64_t last) {
      std::vector<Best> part(sinks);
      pass(first * kStretch, std::min(vocab, last * kStretch), part.data());
      const std::lock_guard<std::mutex> lock(merging);
      for (int i = 0; i < sinks; ++i) best[i].merge(part[i]);  // the lowest id wins ties, whatever the order
    });
  }

  // Call stretch(begin, end) or single(token) over [begin, end) except for the excluded tokens: blocks of 64 that contain one are
  // visited token by token.
  template <class F, class G>
  static void around(int64_t begin, int64_t end, const int64_t* exclude, int count, const F& stretch, const G& single) {
    while (begin < end) {
      int64_t next = end;  // first excluded token from here
      for (int i = 0; i < count; ++i)
        if (exclude[i] >= begin && exclude[i] < next) next = exclude[i];
      const int64_t near = next < end ? begin + (next - begin) / kAligned * kAligned : end;
      if (near > begin) stretch(begin, near);
      const int64_t until = std::min(end, near + kAligned);
      for (int64_t token = near; token < until; ++token)
        if (std::find(exclude, exclude + count, token) == exclude + count) single(token);
      begin = until;
    }
  }

  // Largest logit of the row, except for some tokens.
  static float max_without(const Passes& passes, const Law& law, const int64_t* exclude, int count) {
    float top = -HUGE_VALF;
    around(
        0, law.vocab, exclude, count, [&](int64_t from, int64_t to) { top = std::max(top, passes.max(law.row, from, to)); },
        [&](int64_t token) {
          const float z = passes.value(law.row, token);
          top = z > top ? z : top;
        });
    return top;
  }

  // The draft is a point mass on x: the weights are the target's elsewhere, and max(scale t - 1, floor t) at x.
  Best point_residual_race(const Passes& passes, const Law& target, int64_t x, const Residual& residual,
                           const Stream& stream) const {
    const bool gone = target.lacks(x);
    Best best = race(passes, target, stream, gone ? target.without : &x, gone ? target.without_count : 1);
    const double t = prob(passes, target, x), w = residual.weight(t, 1);
    if (!(w > 0)) return best;
    const float level = passes.value(target.row, x);  // scores relative to x, so that both sides are on the same scale
    if (best.id >= 0)
      best.score = (static_cast<double>(passes.value(target.row, best.id)) - level) * target.scale + std::log(residual.scale * t) -
                   stream.log_clock(best.id);
    best.offer(std::log(w) - stream.log_clock(x), x);
    return best;
  }

  double kept_mass(const Passes& passes, const Law& law) const {
    double sum[kMaxTiles];
    tiles(law.vocab,
          [&](int64_t i, int64_t begin, int64_t end) { sum[i] = passes.sum(law.row, begin, end, Affine::of(law), law.cutoff); });
    return total(sum, tile_count(law.vocab));
  }
  static double total(const double* sum, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += sum[i];
    return total;
  }

  // Sum of tiles that are each relative to their own maximum.
  static double merge(const Law& law, const float* top, const double* sum, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i)
      if (sum[i] > 0) total += sum[i] * std::exp((static_cast<double>(top[i]) - law.max) * law.scale);
    return total;
  }

  // all: the mass of the whole row, if the first filter is top-p.
  float cutoff(const Passes& passes, Law law, const Sampling& sampling, double all) const {
    if (sampling.by_k(law.vocab)) law.cutoff = kth_largest(passes, law.row, law.vocab, static_cast<int64_t>(sampling.top_k));
    if (sampling.by_p()) {
      const double total = sampling.by_k(law.vocab) ? kept_mass(passes, law) : all;
      const double goal = std::max(sampling.top_p, 0.0) * (1 - kSlack) * total;
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

}  // namespace SPS_NAMESPACE
