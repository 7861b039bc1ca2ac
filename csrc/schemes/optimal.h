// `optimal`: the optimum of the transport problem over k i.i.d. children, in closed form: select one child with law b, then accept
// it if u b(Y) < t(Y), otherwise emit one token of (t - b)+. The reference is specsample/schemes/optimal.py.
// Khisti et al. 2024, Theorem 1 (the decomposition); the law b and the selection are in coupling.h.
#pragma once
#include "token.h"

namespace SPS_NAMESPACE {

// The index, among the siblings, of the draw with the smallest priority.
template <class Ex>
SPS_HD int select(Ex& ex, const Law& target, const Siblings& live, const Coupling& coupling, int* bin_of_selected) {
  int selected = 0;
  double least = kInfinity;
  for (int i = 0; i < live.count; ++i) {
    const int bin = ex.bin(target, live.draft, coupling, live.token[i]);
    const double u = coupling.priority(bin, ex.place(live.node[i]), ex.move(live.node[i]));
    if (u < least) least = u, selected = i, *bin_of_selected = bin;
  }
  return selected;
}

struct OptimalRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    // One draw, or draws that are all the same token: b = d.
    if (live.count == 1 || live.draft.only >= 0) return token_step(ex, target, live.draft, live.node[0], live.token[0]);
    Coupling coupling = ex.histogram(target, live.draft, live.count);
    solve(ex, coupling);
    int bin = 0;
    const int y = select(ex, target, live, coupling, &bin);
    const double b = coupling.ratio[bin] * ex.prob(live.draft, live.token[y]);
    if (ex.accept(live.node[y], ex.prob(target, live.token[y]), b)) return {live.node[y], -1};
    return {-1, ex.residual_race(target, live.draft, Residual{1, 0, &coupling})};
  }
};

template <class Ex>
SPS_HD void verify_optimal(const Request& request, Ex& ex, const Output& out) {
  walk<OptimalRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
