// `recursive`: i.i.d. children tested one after another, each against the residual of the target after the earlier ones.
// Miao et al. 2023 (SpecInfer), Algorithm 2; the reference is specsample/schemes/recursive.py.
//
// After k rejections the residual is (t - c_k d)+, c_0 = 0, c_{k+1} = c_k + Z(c_k), Z(c) = sum (t - c d)+.
#pragma once
#include "token.h"

namespace SPS_NAMESPACE {

// Z(c), c > 0.
template <class Ex>
SPS_HD double clipped_mass(Ex& ex, const Law& target, const Law& draft, double c) {
  return c * ex.residual_mass(target, draft, Residual{1 / c});
}

struct RecursiveRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    double c = 0, mass = 1;
    for (int i = 0; i < live.count; ++i) {
      const double t = ex.prob(target, live.token[i]), d = ex.prob(live.draft, live.token[i]);
      if (ex.accept(live.node[i], fmax(t - c * d, 0.0), mass * d)) return {live.node[i], -1};
      c += mass;
      if (i + 1 < live.count) mass = clipped_mass(ex, target, live.draft, c);
    }
    return {-1, ex.residual_race(target, live.draft, Residual{1 / c})};
  }
};

template <class Ex>
SPS_HD void verify_recursive(const Request& request, Ex& ex, const Output& out) {
  walk<RecursiveRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
