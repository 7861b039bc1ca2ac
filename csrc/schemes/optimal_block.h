// `optimal_block`: multi-path block verification. Select a path through the tree, at each node one of the live draws with the
// optimal coupling (law b of that node), and verify that path as a whole with b in place of the draft's law.
// The reference is specsample/schemes/optimal_block.py; with one draw per node it is `block`.
#pragma once
#include "optimal.h"

namespace SPS_NAMESPACE {

// The law b of the selected draw at a node.
struct Selected {
  Law target, draft;
  int count = 0;             // live draws
  int binned = false;        // b = rho d by bins; otherwise b = d (one draw), or b of the target's only token
  Coupling coupling;
  double only = 0;           // b of the target's only token

  SPS_HD Residual residual(double weight) const { return Residual{weight, 0, binned ? &coupling : nullptr}; }
  template <class Ex>
  SPS_HD double mass(Ex& ex, double weight) const {
    if (count > 1 && target.only >= 0) return fmax(weight - only, 0.0);
    return ex.residual_mass(target, draft, residual(weight));
  }
};

// At the current node, and at the end of the longest accepted prefix.
struct Selections {
  Selected here, stop;
  double stop_weight;
};

template <class Ex>
SPS_HD void verify_optimal_block(const Request& request, Ex& ex, const Output& out) {
  *out.num_accepted = 0;
  if (!request.has_row(-1)) return;
  request.start();

  Room<Selections> at(ex);
  int stop_length = 0, length = 0, node = -1, selected = -1;
  double weight = 1;
  for (;; ++length) {
    const int child = length < request.max_depth ? request.child(node, node) : -1;
    const Law target = ex.target(static_cast<int>(request.target_row(node)), child >= 0);
    const Siblings live(request, ex, node, target.broken ? -1 : child);
    const bool single = live.count == 1 || live.draft.only >= 0, point = target.only >= 0;
    int y = 0, bin = 0;
    {
      Selected here;
      here.target = target, here.draft = live.draft, here.count = live.count;
      if (live.count > 1 && point) {
        here.only =
            live.draft.only >= 0 ? ex.prob(live.draft, target.only) : 1 - power(1 - ex.prob(live.draft, target.only), live.count);
        while (y + 1 < live.count && live.token[y] != target.only) ++y;
        if (live.token[y] != target.only) y = 0;
      } else if (live.count > 1 && !single) {
        here.binned = true;
        here.coupling = ex.histogram(target, live.draft, live.count);
        solve(ex, here.coupling);
        y = select(ex, target, live, here.coupling, &bin);
      }
      at.put(at.value.here, here);
    }

    bool stops = length == 0;
    if (length > 0) {
      double numerator = weight, denominator = 1;
      if (live.count > 0) {
        const double mass = at->here.mass(ex, weight);
        const bool certain = mass == 0 && weight == 1;
        numerator = certain ? 1 : mass;
        denominator = certain ? 1 : mass + 1 - weight;
      }
      stops = ex.accept(selected, numerator, denominator);
    }
    if (stops) {
      stop_length = length;
      at.put(at.value.stop_weight, weight);
      if (at->here.binned) at.put(at.value.here.coupling.ratio, ex.keep_ratios(at->here.coupling));
      at.put(at.value.stop, at->here);
    }
    if (live.count == 0) break;

    const int64_t x = live.token[y];
    const double t = ex.prob(at->here.target, x), d = ex.prob(at->here.draft, x);
    const double b = at->here.binned ? at->here.coupling.ratio[bin] * d : live.count > 1 && point ? at->here.only : d;
    double next = 0;
    if (t > 0) next = b > 0 ? weight * (t / b) : 1;
    weight = next < 1 ? next : 1;
    selected = live.node[y];
    node = live.first_with(x);
    out.tokens[length] = x, out.nodes[length] = node;
    request.enter(node, true);
    if (weight == 0) {  // it stays 0: nothing further is accepted
      ++length;
      break;
    }
  }

  for (int i = stop_length; i < length; ++i) out.tokens[i] = -1, out.nodes[i] = -1;
  *out.num_accepted = stop_length;
  const Selected& stop = at->stop;
  if (stop.target.broken) return;
  out.tokens[stop_length] = stop.count == 0 ? ex.clock_race(stop.target, stop_length)
                                            : ex.residual_race(stop.target, stop.draft, stop.residual(at->stop_weight));
}

}  // namespace SPS_NAMESPACE
