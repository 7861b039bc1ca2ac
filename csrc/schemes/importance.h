// `importance`: select between two draws by pair weights, then the winner against the third, and so on; verify the selected draw
// with its exact law P: accept if u P(Y) < t(Y), otherwise emit one token of (t - P)+. Khisti et al. 2024, section 4; the
// reference, which defines the letters, the laws of the stages and the weights, is specsample/schemes/importance.py.
//
// Letters are the bins of the ratio t/d (coupling.h), largest ratio first; or, in the paper's form, the likeliest tokens.
#pragma once
#include "recursive.h"

namespace SPS_NAMESPACE {

constexpr int kMaxFree = 64, kMaxLetters = 257;
constexpr double kLeast = 1e-6;  // gain in acceptance that a stage must bring: above the rounding of float sums
constexpr double kSmall = 1e-7;  // for the last letter's draft mass, which is computed as 1 - the others

// The fraction of `supply` that covers `lack`, at most 1.
SPS_HD double share(double lack, double supply) { return 0 < lack && lack < supply ? lack / supply : lack > 0; }

// Bins as letters, using the memory of an unsolved coupling: its `ratio` holds rho; for the last stage, `edge` holds the surplus
// fraction s of a winner's probability, and `plus` and `minus` the weights lambda and mu.
struct Ranked {
  const Coupling& bins;

  SPS_HD explicit Ranked(const Coupling& bins) : bins(bins) {
    for (int i = 0; i < bins.binning.count; ++i) bins.ratio[i] = 1;
  }

  // Compute the weights and the law of the next stage.
  SPS_HD void stage() const {
    const int n = bins.binning.count;
    double own = 0, over = 0, under = 0;
    for (int i = 0; i < n; ++i) {  // sums from the last letter on: positive terms, no cancellation
      const double ratio = bins.ratio[i], goal = this->goal(i), d = bins.draft(i);
      bins.edge[i] = own += d, bins.plus[i] = over, bins.minus[i] = under;
      over += larger(ratio - goal, 0) * d, under += smaller(ratio, goal) * d;
    }
    double idle_first = 0, idle_rest = 0;  // newcomers of earlier letters that do not replace the winner
    for (int i = n - 1; i >= 0; --i) {
      const double ratio = bins.ratio[i], goal = this->goal(i), d = bins.draft(i);
      own = bins.edge[i], over = bins.plus[i], under = bins.minus[i];
      const double s = ratio > 0 ? larger(ratio - goal, 0) / ratio : 0;
      const double stays = ratio * (own + s * idle_first + (1 - s) * idle_rest), lack = goal - stays;
      const double first = share(lack, over), rest = first == 1 ? share(lack - over, under) : 0;
      bins.edge[i] = s, bins.plus[i] = first, bins.minus[i] = rest;
      bins.ratio[i] = stays + first * over + rest * under;
      idle_first += d * (1 - first), idle_rest += d * (1 - rest);
    }
  }

  // Whether the winner of letter a stays when `node` joins with letter b, in the last stage.
  template <class Ex>
  SPS_HD bool stays(Ex& ex, int node, int a, int b) const {
    const double s = bins.edge[a];
    return b <= a || ex.stays(node, s * (1 - bins.plus[b]) + (1 - s) * (1 - bins.minus[b]), 1);
  }

 private:
  SPS_HD double goal(int i) const {  // t/d
    return bins.draft(i) > kEmpty ? bins.target(i) / bins.draft(i) : i / static_cast<double>(bins.binning.per_unit);
  }
};

// The likeliest tokens of the draft as one letter each, and one letter for all the others; the law of the winner on them.
struct Letters {
  int64_t token[kMaxLetters];  // [count + 1], ascending; letter `count` stands for all other tokens
  int count = 0, free = 0;     // `free`: number of first letters in the order whose pairs are shared
  bool more = false;           // whether the last letter is treated like the others
  double target[kMaxLetters], draft[kMaxLetters], before[kMaxLetters], law[kMaxLetters];
  double scale = 1;            // P(i) = scale d_i for the other tokens
  double accepted = 0;         // sum min(t, P) over all tokens
  int order[kMaxLetters], rank[kMaxLetters];
  double held[kMaxFree][kMaxFree], excess[kMaxFree];  // by place in the order: what a holds of the pair {a, b}; the excess

  template <class Ex>
  SPS_HD Letters(const Request& request, Ex& ex, const Law& t, const Law& d) {
    const int s = static_cast<int>(request.options[1]), alphabet = static_cast<int>(request.options[2]);
    count = ex.likeliest(d, alphabet + 1, token);
    while (count > 0 && !(ex.prob(d, token[count - 1]) > 0)) --count;
    const bool all = count <= alphabet;
    if (!all) count = alphabet;
    for (int i = 1; i < count; ++i) {
      const int64_t x = token[i];
      int at = i;
      for (; at > 0 && token[at - 1] > x; --at) token[at] = token[at - 1];
      token[at] = x;
    }
    double rest_t = 1, rest_d = 1;
    for (int a = 0; a < count; ++a) {
      target[a] = ex.prob(t, token[a]), draft[a] = ex.prob(d, token[a]);
      rest_t -= target[a], rest_d -= draft[a];
    }
    draft[count] = all ? 0 : fmax(rest_d, 0.0);
    more = draft[count] >= kSmall;
    target[count] = more ? fmax(rest_t, 0.0) : 0;
    for (int a = 0; a <= count; ++a) law[a] = before[a] = draft[a];
    free = s < count + more ? s : count + more;
    accepted = acceptance(ex, t, d);
  }

  SPS_HD int letter(int64_t x) const {
    for (int a = 0; a < count; ++a)
      if (token[a] == x) return a;
    return count;
  }
  SPS_HD double mass(int a, int b) const { return before[a] * draft[b] + before[b] * draft[a]; }

  // Sum min(t, P): over the letters' tokens directly, over the others as 1 - Z(c) minus what the letters would contribute to it.
  template <class Ex>
  SPS_HD double acceptance(Ex& ex, const Law& t, const Law& d) const {
    double inside = 0, under = 0;
    const double c = fmax(scale, 1e-7);
    for (int a = 0; a < count; ++a) inside += fmin(target[a], law[a]), under += fmin(target[a], c * draft[a]);
    return more ? inside + 1 - clipped_mass(ex, t, d, c) - under : inside;
  }

  // Compute the weights and the law of the next stage; false if it does not help, and the winner stays.
  template <class Ex>
  SPS_HD bool stage(Ex& ex, const Law& t, const Law& d) {
    const double kept_scale = scale, kept = accepted;
    for (int a = 0; a <= count; ++a) before[a] = law[a];
    for (int a = 0; a <= count; ++a) {  // by t - P d descending, the lowest token first on ties, the last letter last
      const double key = a < count || more ? target[a] - before[a] * draft[a] : -2;
      int at = a;
      for (; at > 0 && target[order[at - 1]] - before[order[at - 1]] * draft[order[at - 1]] < key; --at) order[at] = order[at - 1];
      order[at] = a;
    }
    double later = 0, later_d = 0;
    for (int i = count; i >= 0; --i) {  // each pair goes to the earlier letter
      const int a = order[i];
      rank[a] = i;
      law[a] = before[a] * (draft[a] + later_d) + draft[a] * later;
      later += before[a], later_d += draft[a];
    }
    for (int i = 0; i < free; ++i) {
      excess[i] = law[order[i]] - target[order[i]];
      for (int j = 0; j < free; ++j) held[i][j] = i < j ? mass(order[i], order[j]) : 0;
    }
    balance();
    for (int i = 0; i < free; ++i) law[order[i]] = target[order[i]] + excess[i];
    scale = more ? law[count] / draft[count] : scale * draft[count];
    accepted = acceptance(ex, t, d);
    if (accepted > kept + kLeast) return true;
    for (int a = 0; a <= count; ++a) law[a] = before[a];
    scale = kept_scale, accepted = kept;
    return false;
  }

  // Move mass from letters with positive excess to those with negative excess: maximum flow by shortest paths, the first on ties.
  SPS_HD void balance() {
    int distance[kMaxFree], reached[kMaxFree], path[kMaxFree];
    for (;;) {
      int reach = 0, source = -1;
      for (int a = 0; a < free; ++a) {  // distance of each letter from the nearest with negative excess
        distance[a] = excess[a] < 0 ? 0 : -1;
        if (excess[a] < 0) reached[reach++] = a;
      }
      for (int i = 0; i < reach; ++i)
        for (int a = 0; a < free; ++a)
          if (distance[a] < 0 && held[a][reached[i]] > 0) distance[a] = distance[reached[i]] + 1, reached[reach++] = a;
      for (int a = 0; a < free; ++a)
        if (excess[a] > 0 && distance[a] > 0 && (source < 0 || distance[a] < distance[source])) source = a;
      if (source < 0) return;
      const int length = distance[source];
      double amount = excess[source];
      path[0] = source;
      for (int i = 0; i < length; ++i) {
        const int a = path[i];
        int b = 0;
        while (!(distance[b] == distance[a] - 1 && held[a][b] > 0)) ++b;
        amount = fmin(amount, held[a][b]), path[i + 1] = b;
      }
      amount = fmin(amount, -excess[path[length]]);
      for (int i = 0; i < length; ++i) held[path[i]][path[i + 1]] -= amount, held[path[i + 1]][path[i]] += amount;
      excess[source] -= amount, excess[path[length]] += amount;
    }
  }

  // Whether the winner of letter a stays when `node` joins with letter b, in the last stage.
  template <class Ex>
  SPS_HD bool stays(Ex& ex, int node, int a, int b) const {
    const int i = rank[a], j = rank[b];
    if (i != j && i < free && j < free) return ex.stays(node, held[i][j], mass(a, b));
    return i <= j;
  }
};

struct ImportanceRule {
  static constexpr bool kNeedsMass = true, kSharesToken = true;

  template <class Ex>
  SPS_HD Step step(const Request& request, Ex& ex, const Law& target, int node, int child, int depth) {
    const Siblings live(request, ex, node, child);
    if (live.count == 0) return {-1, ex.clock_race(target, depth)};
    // One draw, or draws that are all the same token: P = d.
    if (live.count == 1 || live.draft.only >= 0) return token_step(ex, target, live.draft, live.node[0], live.token[0]);
    return request.options[2] < 1 ? by_ratio(ex, target, live) : by_token(request, ex, target, live);
  }

 private:
  template <class Ex>
  SPS_HD static Step by_ratio(Ex& ex, const Law& target, const Siblings& live) {
    const Coupling bins = ex.histogram(target, live.draft, live.count);
    const Ranked letters(bins);
    int y = 0, a = ex.bin(target, live.draft, bins, live.token[0]);
    for (int i = 1; i < live.count; ++i) {
      letters.stage();
      const int b = ex.bin(target, live.draft, bins, live.token[i]);
      if (!letters.stays(ex, live.node[i], a, b)) y = i, a = b;
    }
    const int64_t x = live.token[y];
    if (ex.accept(live.node[y], ex.prob(target, x), bins.ratio[a] * ex.prob(live.draft, x))) return {live.node[y], -1};
    return {-1, ex.residual_race(target, live.draft, Residual{1, 0, &bins})};
  }

  template <class Ex>
  SPS_HD static Step by_token(const Request& request, Ex& ex, const Law& target, const Siblings& live) {
    Letters letters(request, ex, target, live.draft);
    int y = 0, a = letters.letter(live.token[0]);
    for (int i = 1; i < live.count && letters.stage(ex, target, live.draft); ++i) {
      const int b = letters.letter(live.token[i]);
      if (!letters.stays(ex, live.node[i], a, b)) y = i, a = b;
    }
    const int64_t x = live.token[y];
    const double law = a < letters.count ? letters.law[a] : letters.scale * ex.prob(live.draft, x);
    if (ex.accept(live.node[y], ex.prob(target, x), law)) return {live.node[y], -1};
    for (a = 0; a < letters.count; ++a) letters.law[a] /= letters.draft[a];
    const Ratios ratios{letters.scale, letters.count, letters.token, letters.law};
    return {-1, ex.residual_race(target, live.draft, Residual{1, 0, nullptr, 0, &ratios})};
  }
};

template <class Ex>
SPS_HD void verify_importance(const Request& request, Ex& ex, const Output& out) {
  walk<ImportanceRule>(request, ex, out);
}

}  // namespace SPS_NAMESPACE
