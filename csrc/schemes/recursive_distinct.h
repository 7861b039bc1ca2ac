// `recursive_distinct`: children drawn without replacement, tested one after the other.
// Jeon et al. 2024 (RSD), Chen et al. 2024 (Sequoia); the reference is specsample/schemes/recursive_distinct.py.
//
// A child drawn after R was rejected has the law d / (1 - d(R)) off R, so c grows by Z(c) / (1 - d(R)); the residual is (t - c d)+.
#pragma once
#include "recursive.h"

namespace SPS_NAMESPACE {

struct RecursiveDistinctRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    double c = 0, mass = 1, rest = 1;
    for (int i = 0; i < live.count; ++i) {
      if (i > 0) {
        rest = ex.rest_mass(live.draft, live.token, i);
        if (!(rest > 0)) break;  // nothing was left to draw this child from
        mass = clipped_mass(ex, target, live.draft, c);
      }
      const double t = ex.prob(target, live.token[i]), d = ex.prob(live.draft, live.token[i]);
      if (ex.accept(live.node[i], fmax(t - c * d, 0.0) * rest, mass * d)) return {live.node[i], -1};
      c += mass / rest;
    }
    return {-1, ex.residual_race(target, live.draft, Residual{1 / c})};
  }
};

template <class Ex>
SPS_HD void verify_recursive_distinct(const Request& request, Ex& ex, const Output& out) {
  walk<RecursiveDistinctRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
