// `lists`: a race with one clock vector per path: the target's winner on the minimum of the live lists' clocks is emitted, and a
// child is accepted if it is that token. The reference is specsample/schemes/lists.py.
#pragma once
#include "../walk.h"

namespace SPS_NAMESPACE {

struct ClockLists {
  int64_t at[kMaxSiblings];
};

struct ListsRule {
  static constexpr bool kNeedsMass = false, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    Room<ClockLists> lists(ex);
    int count = 0, seen = 0;
    const auto add = [&](int64_t list) {
      ++seen;
      for (int i = 0; i < count; ++i)
        if (lists->at[i] == list) return;
      lists.put(lists.value.at[count++], list);
    };
    for (int c = child; c >= 0 && seen < kMaxSiblings; c = request.child(node, c)) add(request.list(c));
    if (count == 0) {  // at a leaf: the lists of the paths that end here
      if (node < 0) add(0);
      for (int i = 0; node >= 0 && i < request.nodes && seen < kMaxSiblings; ++i)
        if (i == node || (request.live && request.live[i + 1])) add(request.list(i));
    }
    const int64_t winner = ex.clock_race(target, depth, lists->at, count);
    for (; child >= 0; child = request.child(node, child))
      if (request.token(child) == winner) return {child, -1};
    return {-1, winner};
  }
};

template <class Ex>
SPS_HD void verify_lists(const Request& request, Ex& ex, const Output& out) {
  walk<ListsRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
