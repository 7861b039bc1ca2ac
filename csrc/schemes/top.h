// `top`: the k - 1 likeliest draft tokens T and one drawn from the rest, d'. Hu et al. 2025; reference: specsample/schemes/top.py.
//
// The drawn child is accepted if u d'(x) < t(x); otherwise one race over t on T and (t - d')+ off T: a winner in T is an accepted
// child, any other is emitted.
#pragma once
#include "token.h"

namespace SPS_NAMESPACE {

struct TopRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;
  int races = 0;  // a race that accepts is followed by others: each has its own stream

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    const int top = live.count - 1, drawn = live.node[top];
    const int64_t x = live.token[top];
    Law rest = live.draft;
    if (top > 0) {
      rest = ex.law_without(live.draft, live.token, top);
      if (rest.broken) rest = Law::point(-2);  // nothing to draw from
    }
    if (ex.accept(drawn, ex.prob(target, x), ex.prob(rest, x))) return {drawn, -1};
    const int64_t winner = ex.residual_race(target, rest, Residual{1, 0, nullptr, races++});
    for (int i = 0; i < top; ++i)
      if (live.token[i] == winner) return {live.node[i], -1};
    return {-1, winner};
  }
};

template <class Ex>
SPS_HD void verify_top(const Request& request, Ex& ex, const Output& out) {
  walk<TopRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
