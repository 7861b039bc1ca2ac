// `race`: the target's winner on the clocks of the token's position is emitted; a draft is accepted if it is that token.
// Kobus and Gunduz 2025; the reference is specsample/schemes/race.py.
#pragma once
#include "../walk.h"

namespace SPS_NAMESPACE {

struct RaceRule {
  static constexpr bool kNeedsMass = false, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const int64_t winner = ex.clock_race(target, depth);
    for (; child >= 0; child = request.child(node, child))
      if (request.token(child) == winner) return {child, -1};
    return {-1, winner};
  }
};

template <class Ex>
SPS_HD void verify_race(const Request& request, Ex& ex, const Output& out) {
  walk<RaceRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
