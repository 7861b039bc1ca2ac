// `recursive_distinct`: children drawn without replacement, tested one after another.
// Jeon et al. 2024 (RSD), Chen et al. 2024 (Sequoia); the reference is specsample/schemes/recursive_distinct.py.
//
// A child tested after the tokens R were rejected has law d_R, the draft off R renormalised. The residual is (t - c d_R)+ off R,
// its sum Z; after a rejection of x it is (t - (c + Z) d_R)+ off R and x: in units of the next child's law, c <- (c + Z) (1 - d_R(x)).
#pragma once
#include "recursive.h"

namespace SPS_NAMESPACE {

struct RecursiveDistinctRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    Law left = live.draft;  // d_R
    double c = 0, mass = 1;
    int rejected = 0;
    for (;;) {
      const int64_t x = live.token[rejected];
      const double t = ex.prob(target, x), d = ex.prob(left, x);
      if (ex.accept(live.node[rejected], fmax(t - c * d, 0.0), mass * d)) return {live.node[rejected], -1};
      c += mass;
      if (++rejected == live.count) break;
      const Law next = ex.law_without(live.draft, live.token, rejected);
      if (next.broken) break;  // there was nothing left to draw from
      c *= next.share_of(left), left = next;
      mass = ex.residual_mass(target.off(live.token, rejected), left.times(c), Residual());
    }
    return {-1, ex.residual_race(target.off(live.token, rejected), left.times(c), Residual())};
  }
};

template <class Ex>
SPS_HD void verify_recursive_distinct(const Request& request, Ex& ex, const Output& out) {
  walk<RecursiveDistinctRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
