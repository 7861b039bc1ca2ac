// The law of a row, never materialised: a few scalars that determine any token's probability.
#pragma once
#include "common.h"

namespace SPS_NAMESPACE {

constexpr float kMaxLogsumexp = 32;  // for statistics passed in: beyond it one ulp is too coarse to determine the law to 1e-6
constexpr double kSlack = 0x1p-20;  // of top-p and min-p: decides exact ties of mass the same way on every backend

struct Sampling {
  double temperature = 1, top_k = 0, top_p = 1, min_p = 0;

  SPS_HD bool greedy() const { return !(temperature > 0); }  // includes NaN
  SPS_HD double scale() const { return 1 / (temperature < 1e-30 ? 1e-30 : temperature); }
  SPS_HD bool by_k(int64_t vocab) const { return top_k >= 1 && top_k < static_cast<double>(vocab); }
  SPS_HD bool by_p() const { return top_p < 1; }
  SPS_HD bool by_min_p() const { return min_p > 0; }
  SPS_HD bool filters(int64_t vocab) const { return by_k(vocab) || by_p() || by_min_p(); }
};

// A GPU keeps laws in shared memory. There is no padding, which its compiler would copy through the stack.
struct Law {
  const void* row = nullptr;  // logits; null for a point mass without a row
  int64_t vocab = 0;
  double scale = 1;         // 1 / temperature
  float max = 0;            // largest logit
  float cutoff = -FLT_MAX;  // tokens with logit >= cutoff are kept (excludes -inf and NaN even when nothing filters)
  double mass = 0;          // sum over the kept tokens of exp((logit - max) scale)
  int64_t only = -1;        // >= 0: all mass on this token (greedy rows, one-hot drafts)
  const int64_t* without = nullptr;  // excluded tokens: of a draft's law, whose max and mass are then those of the others
  int without_count = 0;  // (used after earlier children), or of a target's law, whose mass is unchanged
  int broken = false;  // no finite logit

  static SPS_HD Law point(int64_t token) {
    Law law;
    law.only = token;
    return law;
  }
  // The law of a row that has not been read: sufficient for a race over an unfiltered row.
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

  // c times the law: weights that do not sum to one. (A point mass is unchanged.)
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
  // For a law obtained from `whole` by excluding tokens: the probability under `whole` of the remaining ones. Each mass is relative to
  // its own maximum, so this may underflow although the law does not.
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

// The law b of a selected draw if b = ratio d, with one ratio for most tokens and a list of exceptions.
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

// The weights of a residual race, the target t minus the draft's share:
//   max(scale t - b, floor t, 0), with b = d, or the law of the selected draw if several were drawn
struct Residual {
  double scale = 1, floor = 0;
  const Coupling* selected = nullptr;
  int slot = 0;  // of the residual stream: how many residual races this round has already run (`top` may run several)
  const Ratios* ratios = nullptr;  // instead of `selected`; for races

  SPS_HD double weight(double t, double b) const { return fmax(fmax(scale * t - b, floor * t), 0.0); }
};

// Logits as the laws use them: NaN stays NaN (every comparison with it is false, so it is never kept).
SPS_HD float clamp_logit(float z) { return z > kLargest ? kLargest : z; }

}  // namespace SPS_NAMESPACE
