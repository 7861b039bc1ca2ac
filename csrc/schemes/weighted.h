// `weighted`: independent children from different draft laws. Select one by random levels that depend on weights, with law P, then
// accept it if u P(Y) < t(Y), otherwise emit one token of (t - P)+. Reference: specsample/schemes/weighted.py; weights: mixture.h.
#pragma once
#include "token.h"

namespace SPS_NAMESPACE {

struct WeightedRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const MixedSiblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    // One draw, or draws that are all the same token: P = d.
    if (live.count == 1 || (live.laws == 1 && live.draft[0].only >= 0))
      return token_step(ex, target, live.draft[0], live.node[0], live.token[0]);
    const Mixture mixture = ex.mixture(target, live);

    int y = 0, lowest = mixture.levels + 1, cell_of_y = 0;
    for (int i = 0; i < live.count; ++i) {
      const int cell = ex.cell(target, mixture, live.token[i]), level = ex.level(mixture, cell, live.node[i]);
      if (level < lowest) lowest = level, y = i, cell_of_y = cell;  // the earlier draw on ties
    }
    double won = 0;  // P(Y)
    for (int g = 0; g < live.laws; ++g) won += mixture.share_of(cell_of_y, g) * ex.prob(live.draft[g], live.token[y]);
    if (ex.accept(live.node[y], ex.prob(target, live.token[y]), won)) return {live.node[y], -1};
    return {-1, ex.mixture_race(target, mixture)};
  }
};

template <class Ex>
SPS_HD void verify_weighted(const Request& request, Ex& ex, const Output& out) {
  walk<WeightedRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
