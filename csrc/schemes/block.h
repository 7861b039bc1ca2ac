// `block`: verify a chain as a whole. Sun et al. 2024, Algorithm 2; the reference is specsample/schemes/block.py.
//
//   P_i = min(1, P_{i-1} t_i(x_i) / d_i(x_i)),  M_i = sum (P_i t_{i+1} - d_{i+1})+
//   h_i = M_i / (M_i + 1 - P_i) before the leaf (0/0 = 1), P_i at the leaf
// The longest prefix i with u_i < h_i is accepted, followed by a token of (P_i t_{i+1} - d_{i+1})+, or the bonus at the leaf.
#pragma once
#include "../walk.h"

namespace SPS_NAMESPACE {

template <class Ex>
SPS_HD void verify_block(const Request& request, Ex& ex, const Output& out) {
  *out.num_accepted = 0;
  if (!request.has_row(-1)) return;
  request.start();

  // A candidate prefix of the chain, and what is needed to emit a token after it.
  struct Prefix {
    int length, child;  // the node below it, -1 at the leaf
    double weight;
    Law target, draft;
  };
  Prefix here{0, -1, 1.0, Law(), Law()};  // the longest so far
  Room<Prefix> stop(ex);                  // the longest accepted one
  for (int node = -1;;) {
    here.child = here.length < request.max_depth ? request.child(node, node) : -1;
    here.target = ex.target(static_cast<int>(request.target_row(node)), here.child >= 0);
    if (here.target.broken) here.child = -1;
    for (; here.child >= 0; here.child = request.child(node, here.child)) {
      here.draft = ex.draft(here.child);
      if (!here.draft.broken) break;
    }
    if (node < 0) {
      stop = here;
    } else {
      double numerator = here.weight, denominator = 1;
      if (here.child >= 0) {
        const double mass = ex.residual_mass(here.target, here.draft, Residual{here.weight});
        const bool certain = mass == 0 && here.weight == 1;
        numerator = certain ? 1 : mass;
        denominator = certain ? 1 : mass + 1 - here.weight;
      }
      if (ex.accept(node, numerator, denominator)) stop = here;
    }
    if (here.child < 0) break;

    node = here.child;
    const int64_t x = request.token(node);
    const double t = ex.prob(here.target, x), d = ex.prob(here.draft, x);
    double weight = 0;
    if (t > 0) weight = d > 0 ? here.weight * (t / d) : 1;
    here.weight = weight < 1 ? weight : 1;
    out.tokens[here.length] = x, out.nodes[here.length] = node;
    ++here.length;
    if (here.weight == 0) break;  // it stays 0: nothing further is accepted
    request.enter(node, false);
  }

  const int length = stop->length;
  for (int i = length; i < here.length; ++i) out.tokens[i] = -1, out.nodes[i] = -1;
  *out.num_accepted = length;
  if (stop->target.broken) return;
  out.tokens[length] =
      stop->child < 0 ? ex.clock_race(stop->target, length) : ex.residual_race(stop->target, stop->draft, Residual{stop->weight});
}

}  // namespace SPS_NAMESPACE
