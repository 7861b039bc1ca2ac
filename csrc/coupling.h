// The optimal selection among k i.i.d. draws: from a histogram of target/draft ratios to the law b of the selected draw and the
// coupling that draws it. The reference, with the derivation, is specsample/reference/coupling.py.
//
// Bins are numbered by ascending ratio; everything below is O(bins) plus a few scalars. The tokens of a bin share its ratio
// rho = clip(T / D, c2, c1), so b_i = rho d_i, and the bin's interval of [0, 1].
#pragma once
#include "common.h"

namespace SPS_NAMESPACE {

// The bin of a ratio t/d: floor(per_unit t/d + 1/2), so that t = d is the middle of a bin and rounding does not split it.
// All tokens with both probabilities below `tail` belong to `tail_bin`, the bin of their joint ratio.
struct Binning {
  float per_unit = 1;
  int count = 0;  // number of bins; the last one takes all larger ratios
  float tail = 0;
  int tail_bin = 0;

  SPS_HD int of_ratio(double t, double d) const {
    return d > 0 ? static_cast<int>(fmin(t / d * per_unit + 0.5, count - 1.0)) : t > 0 ? count - 1 : 0;
  }
  // `bins` linear bins over ratios in [0, k] and one for larger ratios. The tail holds at most 1e-3 of either law.
  static SPS_HD Binning of(int bins, int k, int64_t vocab) {
    const int per_unit = bins / k > 1 ? bins / k : 1;
    return {static_cast<float>(per_unit), per_unit * k + 1, static_cast<float>(1e-3 / static_cast<double>(vocab)), 0};
  }
};

constexpr double kEmpty = 0x1p-53;  // a bin with less draft mass is never drawn from; its midpoint is used as its ratio

// Sums over bins are computed strip by strip, in an order that does not depend on how many threads share the work: first each
// strip is summed, then the bins of a strip continue from the sum of the earlier strips.
constexpr int kStrips = 64;

// Doubles of scratch that a coupling over n bins needs.
constexpr SPS_HD int64_t coupling_scratch(int64_t n) { return 6 * (n + 1) + 9 * (kStrips + 1); }

// The threads that share the work on a coupling: on the CPU a single one.
struct Alone {
  static constexpr bool kOne = true;
  SPS_HD int rank() const { return 0; }
  SPS_HD int size() const { return 1; }
  SPS_HD void barrier() const {}
};

// fmax and fmin may compile to calls because they must handle NaN; there is none here.
SPS_HD double larger(double a, double b) { return a > b ? a : b; }
SPS_HD double smaller(double a, double b) { return a < b ? a : b; }

SPS_HD double power(double x, int k) {
  double out = 1;
  for (; k > 0; k >>= 1, x *= x)
    if (k & 1) out *= x;
  return out;
}

// (1 - (1 - beta)^k) / beta, computed as a geometric sum: accurate for small beta.
SPS_HD double kseq_gamma(double beta, int k) {
  double gamma = 0;
  for (int i = 0; i < k; ++i) gamma = 1 + (1 - beta) * gamma;
  return gamma;
}

struct Coupling {
  Binning binning;
  int k = 0, unused = 0;   // (padding would be copied through a GPU's stack)
  double* sums = nullptr;  // [count + 1][2]: T and D of each bin, then of the tail
  double *ratio = nullptr, *edge = nullptr;  // [count], [count + 1]: rho, and the end of each bin's interval
  double *plus = nullptr, *minus = nullptr;  // [count + 1]: Phi+ and Phi- at edge[i]
  double* strip = nullptr;  // [9][kStrips + 1]: values per strip, and at the end the sum over all

  SPS_HD Coupling() {}
  SPS_HD Coupling(const Binning& binning, int k, double* scratch) : binning(binning), k(k) {
    const int64_t n = binning.count + 1;
    sums = scratch, ratio = sums + 2 * n, edge = ratio + n, plus = edge + n, minus = plus + n, strip = minus + n;
  }
  SPS_HD double& target(int i) const { return sums[2 * i]; }
  SPS_HD double& draft(int i) const { return sums[2 * i + 1]; }

  // Call once the sums are complete: assigns the tail to the bin of its ratio and normalises both laws.
  template <class Team = Alone>
  SPS_HD void close_sums(const Team& team = Team()) {
    const double t = target(binning.count), d = draft(binning.count);
    binning.tail_bin = binning.of_ratio(t, d);
    if (team.rank() == 0) target(binning.tail_bin) += t, draft(binning.tail_bin) += d;
    team.barrier();
    strips(team, [&](int s, int begin, int end) {
      double t = 0, d = 0;
      for (int i = begin; i < end; ++i) t += target(i), d += draft(i);
      of(0, s) = t, of(1, s) = d;
    });
    double total_t = 0, total_d = 0;
    for (int s = 0; s < kStrips; ++s) total_t += of(0, s), total_d += of(1, s);
    const double unit_t = total_t > 0 ? 1 / total_t : 1, unit_d = total_d > 0 ? 1 / total_d : 1;
    team.barrier();
    strips(team, [&](int s, int begin, int end) {  // t and d below each strip, t and d above it, and the sum of (t - d)+
      double t = 0, d = 0, over = 0;
      for (int i = begin; i < end; ++i) {
        const double own_t = target(i) *= unit_t, own_d = draft(i) *= unit_d;
        t += own_t, d += own_d, over += larger(own_t - own_d, 0);
      }
      of(0, s) = of(2, s) = t, of(1, s) = of(3, s) = d, of(4, s) = over;
    });
    accumulate(team, 0, 5, 0b01100);
  }

  // The lower edge c of bin i. Z(c) is exact there, since no bin straddles it.
  SPS_HD double lower(int i) const { return i > 0 ? (i - 0.5) / binning.per_unit : 0; }

  // K-SEQ's threshold: the lowest edge c >= 1 with gamma((1 - Z(c)) / c) <= c, at or above the root of the equality.
  template <class Team = Alone>
  SPS_HD double kseq_threshold(const Team& team = Team()) const {
    const int least = static_cast<int>(binning.per_unit) + 1;  // the bin with the lowest edge above 1
    // The highest bin of each strip whose lower edge is too low. A thread working alone stops at the first.
    strips<true>(team, [&](int s, int begin, int end) {
      double above_t = of(2, s), above_d = of(3, s);
      int bad = -1;
      for (int i = end - 1; i >= begin && i >= least && bad < 0; --i) {
        above_t += target(i), above_d += draft(i);
        const double c = lower(i);
        if (kseq_gamma((1 - larger(above_t - c * above_d, 0)) / c, k) > c) bad = i;
      }
      of(5, s) = bad;
      return bad >= 0;
    });
    int bad = least - 1;
    for (int s = kStrips - 1; s >= 0 && bad < least; --s) bad = of(5, s) > bad ? static_cast<int>(of(5, s)) : bad;
    team.barrier();
    return bad + 1 < binning.count ? lower(bad + 1) : k;
  }

  // Compute the law b and the coupling from the sums.
  template <class Team = Alone>
  SPS_HD void solve(const Team& team = Team()) const {
    const int n = binning.count;
    // D = max over lower sets of d(S)^k - t(S), at most Z(1), where b = d. First at strip boundaries; the inside of a strip is searched
    // only if d at its end and t at its begin allow a larger value.
    double most = 0;
    const auto excess = [&](double t, double d) { return power(smaller(d, 1), k) - t; };
    strips(team, [&](int s, int, int) { most = larger(most, excess(of(0, s + 1), of(1, s + 1))); });
    strips(team, [&](int s, int begin, int end) {
      double t = of(0, s), d = of(1, s);
      if (excess(t, of(1, s + 1)) > most)
        for (int i = begin; i < end; ++i) t += target(i), d += draft(i), most = larger(most, excess(t, d));
      of(5, s) = most;
    });
    for (int s = 0; s < kStrips; ++s) most = larger(most, of(5, s));
    const double rejection = smaller(most, of(4, kStrips));

    // c1 = max over upper sets of (t(S) - D) / d(S) removes D at the top, c2 = min over lower sets of (t(S) + D) / d(S) adds D at the
    // bottom. Bins are ordered by ratio, so both are unimodal: first at strip boundaries (row 6: the set above bin `end` of the
    // preceding strip, row 7: below bin `begin`), then inside those strips whose ends are not beaten by the adjacent ones.
    const auto take = [&](double t, double d) { return d > 0 ? (t - rejection) / d : -kInfinity; };
    const auto give = [&](double t, double d) { return d > 0 ? (t + rejection) / d : kInfinity; };
    strips(team, [&](int s, int, int) {
      of(6, s + 1) = take(of(2, s), of(3, s)), of(7, s) = give(of(0, s), of(1, s));
      if (s == 0) of(6, 0) = take(of(2, kStrips), of(3, kStrips)), of(7, kStrips) = give(of(0, kStrips), of(1, kStrips));
    });
    strips(team, [&](int s, int begin, int end) {
      const bool first = s == 0, last = s + 1 == kStrips, drafted = of(1, s + 1) > of(1, s);
      double upper = of(6, s), under = of(7, s + 1);
      if (drafted && (last || of(6, s + 1) >= of(6, s + 2)) && (first || of(6, s) >= of(6, s - 1))) {
        double t = of(2, s), d = of(3, s);
        for (int i = end - 1; i >= begin; --i) t += target(i), d += draft(i), upper = larger(upper, take(t, d));
      }
      if (drafted && (first || of(7, s) <= of(7, s - 1)) && (last || of(7, s + 1) <= of(7, s + 2))) {
        double t = of(0, s), d = of(1, s);
        for (int i = begin; i < end; ++i) t += target(i), d += draft(i), under = smaller(under, give(t, d));
      }
      of(5, s) = upper, of(8, s) = under;
    });
    double upper = -kInfinity, under = kInfinity;
    for (int s = 0; s < kStrips; ++s) upper = larger(upper, of(5, s)), under = smaller(under, of(8, s));
    if (!(under < upper)) under = upper = 1;  // they meet where b = d
    team.barrier();

    // Intervals of [0, 1], largest ratio first, and what those of each strip contribute to Phi+ and Phi-.
    const double unit = 1 / static_cast<double>(binning.per_unit);
    strips(team, [&](int s, int begin, int end) {
      double d = of(3, s), a = smaller(d, 1), rest = power(1 - a, k - 1), p = 0, m = 0;  // G(a) = k rest
      for (int i = end - 1; i >= begin; --i) {
        const double own = draft(i) > kEmpty ? target(i) / draft(i) : i * unit, r = smaller(larger(own, under), upper);
        const double b = smaller(d += draft(i), 1);
        ratio[i] = r, edge[i] = b;
        if (b > a) {
          const double next = power(1 - b, k - 1);
          if (k * rest <= r) {
            m += r * (b - a) - ((1 - a) * rest - (1 - b) * next);
          } else if (k * next >= r) {
            p += (1 - a) * rest - (1 - b) * next - r * (b - a);
          } else {
            const double cross = crossing(r, a, b);
            p += gain(r, a, cross), m -= gain(r, cross, b);
          }
          a = b, rest = next;
        }
        plus[i] = p, minus[i] = m;
      }
      of(5, s) = p, of(6, s) = m;
      if (s == 0) edge[n] = plus[n] = minus[n] = 0;
    });
    accumulate(team, 5, 2, 0b11);
    strips(team, [&](int s, int begin, int end) {
      const double p = of(5, s), m = of(6, s);
      for (int i = begin; i < end; ++i) plus[i] += p, minus[i] += m;
    });
  }

  SPS_HD double density(double u) const { return k * power(1 - u, k - 1); }  // G, the density of the smallest of k uniforms

  // Integral of G - r over [a, x].
  SPS_HD double gain(double r, double a, double x) const { return power(1 - a, k) - power(1 - x, k) - r * (x - a); }

  // The point in [a, b] where G falls below r; and the same for the ratio and interval of bin i.
  SPS_HD double crossing(double r, double a, double b) const {
    if (density(a) <= r) return a;
    if (density(b) >= r) return b;
    const double rest = r / k;
    return smaller(larger(1 - (k == 2 ? rest : k == 3 ? sqrt(rest) : exp(log(rest) / (k - 1))), a), b);
  }
  SPS_HD double crossing(int i) const { return crossing(ratio[i], edge[i + 1], edge[i]); }

  // The point w that v is exchanged with: Phi-(w) = Phi+(v) if G(v) > R(v), else Phi+(w) = Phi-(v).
  SPS_HD double partner(double v, int bin) const {
    const double cross = crossing(bin), a = edge[bin + 1];
    const bool gains = v < cross;
    const double goal = gains ? plus[bin + 1] + gain(ratio[bin], a, v) : minus[bin + 1] - gain(ratio[bin], cross, v);
    const double* table = gains ? minus : plus;
    int low = 0, high = binning.count;  // tables decrease with the bin number: find the last bin with table[i] >= goal
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (table[middle] >= goal ? low : high) = middle;
    }
    const int i = low;
    const double turn = crossing(i), r = ratio[i];
    double left = gains ? turn : edge[i + 1], right = gains ? edge[i] : turn;
    const double base = table[i + 1], from = left, sign = gains ? -1 : 1;
    // Newton's method, with bisection where a step would leave the remaining interval.
    double w = 0.5 * (left + right);
    for (int round = 0; round < 60 && left < w && w < right; ++round) {
      const double lack = goal - (base + sign * gain(r, from, w));
      (lack > 0 ? left : right) = w;
      const double slope = sign * (density(w) - r), newton = w + lack / slope;
      const double next = slope > 0 && left < newton && newton < right ? newton : 0.5 * (left + right);
      if (larger(next - w, w - next) < 0x1p-53) return next;
      w = next;
    }
    return w;
  }

  // A draw's priority, from its token's bin, its place in the bin's interval, and a uniform that decides whether to move. It is uniform
  // over all draws, with E[G(priority) | token] = rho, so the draw with the smallest priority has law b.
  SPS_HD double priority(int bin, double place, double move) const {
    const double v = edge[bin + 1] + (edge[bin] - edge[bin + 1]) * place, w = partner(v, bin);
    const double span = fabs(density(v) - density(w));
    return move * span < fabs(density(v) - ratio[bin]) ? w : v;
  }

 private:
  SPS_HD double& of(int what, int s) const { return strip[what * (kStrips + 1) + s]; }

  // Run f(strip, its bins [begin, end)) on the team's threads. kSearch: from the top; a thread working alone stops once f returns true.
  template <bool kSearch = false, class Team, class F>
  SPS_HD void strips(const Team& team, const F& f) const {
    const int length = (binning.count + kStrips - 1) / kStrips;
    for (int i = team.rank(); i < kStrips; i += team.size()) {
      const int s = kSearch ? kStrips - 1 - i : i, begin = s * length < binning.count ? s * length : binning.count;
      const int end = begin + length < binning.count ? begin + length : binning.count;
      if constexpr (kSearch) {
        if (f(s, begin, end) && Team::kOne) break;
      } else {
        f(s, begin, end);
      }
    }
    team.barrier();
  }
  // For `rows` rows of `strip` starting at `first`: replace each strip's sum by the sum of the strips below it, or above it if the row's
  // bit in `from_top` is set.
  template <class Team>
  SPS_HD void accumulate(const Team& team, int first, int rows, int from_top) const {
    for (int row = team.rank(); row < rows; row += team.size()) {
      const bool down = from_top >> row & 1;
      double sum = 0;
      for (int i = 0; i < kStrips; ++i) {
        double& at = of(first + row, down ? kStrips - 1 - i : i);
        const double own = at;
        at = sum, sum += own;
      }
      of(first + row, kStrips) = sum;
    }
    team.barrier();
  }
};

// Uses all the threads of the executor.
template <class Ex>
SPS_HD void solve(Ex& ex, const Coupling& coupling) {
#if SPS_GPU
  ex.solve(coupling);
#else
  coupling.solve();
#endif
}
template <class Ex>
SPS_HD double kseq_threshold(Ex& ex, const Coupling& coupling) {
#if SPS_GPU
  return ex.kseq_threshold(coupling);
#else
  return coupling.kseq_threshold();
#endif
}

}  // namespace SPS_NAMESPACE
