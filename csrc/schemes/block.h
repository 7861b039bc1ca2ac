// `block`: verify a chain as a whole. Sun et al. 2024, Algorithm 2; the reference is specsample/schemes/block.py.
//
//   P_i = min(1, P_{i-1} t_i(x_i) / d_i(x_i)),  M_i = sum (P_i t_{i+1} - d_{i+1})+
//   h_i = M_i / (M_i + 1 - P_i) above the leaf (0/0 = 1), P_i at the leaf
// The longest prefix i with u_i < h_i is accepted; then a token of (P_i t_{i+1} - d_{i+1})+, or the bonus at the leaf.
#pragma once
#include "../walk.h"

namespace specsample {

template <class Ex>
SPS_HD void verify_block(const Request& request, Ex& ex, const Output& out) {
  *out.num_accepted = 0;
  if (!request.has_row(-1)) return;
  request.start();

  // The longest accepted prefix so far and what is needed to emit a token after it.
  struct Stop {
    int length, child;
    double weight;
    Law target, draft;
  };
  const auto below = [&](int node, int depth, Law& target, Law& draft) {  // next node of the chain, -1 at the leaf
    int child = depth < request.max_depth ? request.child(node, node) : -1;
    target = ex.target(static_cast<int>(request.target_row(node)), child >= 0);
    if (target.broken) return -1;
    for (; child >= 0; child = request.child(node, child)) {
      draft = ex.draft(child);
      if (!draft.broken) return child;
    }
    return -1;
  };

  Stop here{0, -1, 1.0, Law(), Law()};
  here.child = below(-1, 0, here.target, here.draft);
  Stop stop = here;
  while (here.child >= 0) {
    const int node = here.child;
    const int64_t x = request.token(node);
    const double t = ex.prob(here.target, x), d = ex.prob(here.draft, x);
    double weight = 0;
    if (t > 0) weight = d > 0 ? here.weight * (t / d) : 1;
    weight = weight < 1 ? weight : 1;

    out.nodes[here.length] = node;
    request.enter(node, false);
    Stop next{here.length + 1, -1, weight, Law(), Law()};
    if (weight == 0) {  // it stays 0: nothing from here on is accepted
      here = next;
      break;
    }
    next.child = below(node, next.length, next.target, next.draft);
    double numerator = weight, denominator = 1;
    if (next.child >= 0) {
      const double mass = ex.residual_mass(next.target, next.draft, Residual{weight});
      const bool certain = mass == 0 && weight == 1;
      numerator = certain ? 1 : mass;
      denominator = certain ? 1 : mass + 1 - weight;
    }
    if (ex.accept(node, numerator, denominator)) stop = next;
    here = next;
  }

  for (int i = 0; i < stop.length; ++i) out.tokens[i] = request.token(out.nodes[i]);
  for (int i = stop.length; i < here.length; ++i) out.nodes[i] = -1;
  *out.num_accepted = stop.length;
  if (stop.target.broken) return;
  out.tokens[stop.length] = stop.child < 0 ? ex.clock_race(stop.target, stop.length)
                                           : ex.residual_race(stop.target, stop.draft, Residual{stop.weight});
}

}  // namespace specsample
