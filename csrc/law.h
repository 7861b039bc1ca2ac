// The law of a row, never written out: a few scalars from which any token's probability follows.
#pragma once
#include "common.h"

namespace SPS_NAMESPACE {

constexpr float kMaxLogsumexp = 32;  // of given statistics: a larger float has too coarse an ulp to determine the law to 1e-6
constexpr double kSlack = 0x1p-20;  // of top-p and min-p: decides exact ties of mass alike on every backend

struct Sampling {
  double temperature = 1, top_k = 0, top_p = 1, min_p = 0;

  SPS_HD bool greedy() const { return !(temperature > 0); }  // includes NaN
  SPS_HD double scale() const { return 1 / (temperature < 1e-30 ? 1e-30 : temperature); }
  SPS_HD bool by_k(int64_t vocab) const { return top_k >= 1 && top_k < static_cast<double>(vocab); }
  SPS_HD bool by_p() const { return top_p < 1; }
  SPS_HD bool by_min_p() const { return min_p > 0; }
  SPS_HD bool filters(int64_t vocab) const { return by_k(vocab) || by_p() || by_min_p(); }
};

// A GPU keeps laws in shared memory: no padding here, which its compiler would copy by way of the stack.
struct Law {
  const void* row = nullptr;  // logits; null for a point mass without a row
  int64_t vocab = 0;
  double scale = 1;         // 1 / temperature
  float max = 0;            // largest logit
  float cutoff = -FLT_MAX;  // tokens with logit >= cutoff are kept (excludes -inf and NaN even when nothing filters)
  double mass = 0;          // sum over the kept tokens of exp((logit - max) scale)
  int64_t only = -1;        // >= 0: all the mass on this token (greedy rows, one-hot drafts)
  const int64_t* without = nullptr;  // tokens taken out: of a draft's law, whose max and mass are then those of the others (what
  int without_count = 0;  // is left after earlier children), or of a target's, whose mass stays (what they leave of it)
  int broken = false;  // no finite logit

  static SPS_HD Law point(int64_t token) {
    Law law;
    law.only = token;
    return law;
  }
  // Of a row before anything of it is known, which is all that a race over an unfiltered row takes.
  static SPS_HD Law unread(const void* row, int64_t vocab, const Sampling& sampling) {
    Law law;
    law.row = row, law.vocab = vocab, law.scale = sampling.scale();
    return law;
  }
  static SPS_HD Law none() {
    Law law;
    law.broken = true;
    return law;
  }

  // c times the law: weights that do not add up to one. (A point mass stays what it is.)
  SPS_HD Law times(double c) const {
    Law law = *this;
    law.mass /= c;
    return law;
  }
  SPS_HD Law off(const int64_t* tokens, int count) const {
    Law law = *this;
    law.without = tokens, law.without_count = count;
    return law;
  }
  // Of a law that was taken from `whole` by leaving tokens out: how probable the others are there. Neither mass is relative to the
  // other's maximum, so that this may vanish while the law does not.
  SPS_HD double share_of(const Law& whole) const {
    if (broken || only >= 0) return !broken;
    return mass / whole.mass * exp((static_cast<double>(max) - whole.max) * scale);
  }
  SPS_HD bool lacks(int64_t token) const {
    for (int i = 0; i < without_count; ++i)
      if (without[i] == token) return true;
    return false;
  }
  // Unnormalised: exp((z - max) scale) for a kept logit, else 0.
  SPS_HD double weight(float z) const { return z >= cutoff ? exp((static_cast<double>(z) - max) * scale) : 0; }
  SPS_HD double prob(float z) const { return weight(z) / mass; }
  SPS_HD double log_prob(float z) const { return z >= cutoff ? (static_cast<double>(z) - max) * scale - log(mass) : -kInfinity; }
};

struct Coupling;

// The law b of a selected draw where it is b = ratio d, with one ratio for most tokens and a list of exceptions.
struct Ratios {
  double others = 1;
  int count = 0;
  const int64_t* token = nullptr;  // ascending
  const double* ratio = nullptr;

  SPS_HD double of(int64_t x) const {
    int low = 0, high = count;  // the first token >= x
    while (low < high) {
      const int middle = (low + high) / 2;
      if (token[middle] < x) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < count && token[low] == x ? ratio[low] : others;
  }
};

// The weights of a residual race: what is left of the target t when the draft's share is taken away,
//   max(scale t - b, floor t, 0), with b = d, or the law of the selected draw when several were drawn
struct Residual {
  double scale = 1, floor = 0;
  const Coupling* selected = nullptr;
  int slot = 0;  // of the residual stream: how many residual races this round has run before (`top` goes on after some)
  const Ratios* ratios = nullptr;  // in the place of `selected`; for races

  SPS_HD double weight(double t, double b) const { return fmax(fmax(scale * t - b, floor * t), 0.0); }
};

// Logits as the laws see them: NaN stays NaN (every comparison with it is false, so it is never kept).
SPS_HD float clamp_logit(float z) { return z > kLargest ? kLargest : z; }

}  // namespace SPS_NAMESPACE
