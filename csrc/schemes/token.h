// `token`: accept the child x if u d(x) < t(x), otherwise emit one token of the residual (t - d)+.
// Leviathan et al. 2022, Algorithm 1; the reference is specsample/schemes/token.py.
#pragma once
#include "../walk.h"

namespace SPS_NAMESPACE {

// One child: the rule to which every multi-draft scheme reduces when only one child is live.
template <class Ex>
SPS_HD Step token_step(Ex& ex, const Law& target, const Law& draft, int child, int64_t x) {
  if (ex.accept(child, ex.prob(target, x), ex.prob(draft, x))) return {child, -1};
  return {-1, ex.residual_race(target, draft, Residual())};
}

struct TokenRule {
  static constexpr bool kNeedsMass = true, kSharesToken = false;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    for (; child >= 0; child = request.child(node, child)) {
      const Law draft = ex.draft(child);
      if (draft.broken) continue;  // its row has no finite logit: the node does not exist
      return token_step(ex, target, draft, child, request.token(child));
    }
    return {-1, ex.clock_race(target, depth)};
  }
};

template <class Ex>
SPS_HD void verify_token(const Request& request, Ex& ex, const Output& out) {
  walk<TokenRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
