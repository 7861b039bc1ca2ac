// `kseq`: i.i.d. children, all tested alike: each is accepted if u c d(x) < t(x). Sun et al. 2023 (SpecTr), Algorithm 3; the
// reference is specsample/schemes/kseq.py.
//
// With beta = (1 - Z(c)) / c and gamma = (1 - (1 - beta)^k) / beta, any c >= gamma is lossless with the residual
// t - gamma min(d, t / c); the smallest, c = gamma, accepts the most. The histogram chooses c; Z(c) is computed exactly.
#pragma once
#include "recursive.h"

namespace SPS_NAMESPACE {

struct KseqRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    const int k = live.count;
    if (k == 1) return token_step(ex, target, live.draft, live.node[0], live.token[0]);
    const Coupling sums = ex.histogram(target, live.draft, k);
    double c = kseq_threshold(ex, sums), gamma;
    for (;; c = fmin(c + 1 / sums.binning.per_unit, static_cast<double>(k))) {
      gamma = fmin(kseq_gamma((1 - clipped_mass(ex, target, live.draft, c)) / c, k), static_cast<double>(k));
      if (gamma <= c) break;  // the bin of the tail is approximate, so the root may lie just above
    }
    for (int i = 0; i < k; ++i) {
      const double t = ex.prob(target, live.token[i]), d = ex.prob(live.draft, live.token[i]);
      if (ex.accept(live.node[i], t, c * d)) return {live.node[i], -1};
    }
    return {-1, ex.residual_race(target, live.draft, Residual{1 / gamma, 1 / gamma - 1 / c})};
  }
};

template <class Ex>
SPS_HD void verify_kseq(const Request& request, Ex& ex, const Output& out) {
  walk<KseqRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
