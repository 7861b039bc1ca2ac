// Selection among independent draws from different laws: cells of tokens, weights computed from the cells' sums, and the exact law of
// the selected draw. The reference, with the derivation, is specsample/reference/mixture.py.
//
// Every draw gets a level; the lowest wins, on ties the earlier draw. The tokens of a cell share the weight that determines the law of
// the level, so the winner's law is P(i) = sum over laws g of d^g_i share(cell of i, g).
#pragma once
#include "law.h"

namespace SPS_NAMESPACE {

constexpr int kMaxLaws = 8;  // distinct draft rows among a node's children: children of further rows are not considered
constexpr int kMaxLevels = 32;
constexpr int kMaxDraws = 64;
constexpr int kColumns = 8;  // intervals of the second coordinate, between the first and the last law
constexpr int kLanes = 16;  // cells processed at a time, on every machine

// The cell of a token: by t / (t + m), m the mean of the draws' laws, and by which of the laws contribute to m. Both are rounded to
// the nearest, so that t = m and equal laws lie in the middle of a cell and rounding does not split them.
struct Cells {
  int rows = 1, columns = 0;  // the largest index of each; row 0 is ratio 0, column 0 is place 0
  float tail = 0;  // tokens with t and m below it share one cell
  float mean[kMaxLaws] = {}, along[kMaxLaws] = {};  // m = sum mean d; the second coordinate ("place") is sum along d / m

  SPS_HD int tail_cell() const { return (rows + 1) * (columns + 1); }
  SPS_HD int count() const { return tail_cell() + 1; }
  SPS_HD double least() const { return tail * 1e-3; }  // smaller m have place 0: no division by 0, one division for both

  // About `cells` cells; draws[g]: how many draws have law g. The tail holds at most 1e-2 of t or m (for language models a tenth of
  // that).
  static SPS_HD Cells of(int cells, const int* draws, int laws, int64_t vocab) {
    Cells out;
    out.columns = laws > 1 ? kColumns : 0;
    out.rows = laws > 1 ? cells / kColumns : cells;
    out.tail = static_cast<float>(1e-2 / static_cast<double>(vocab));
    int all = 0;
    for (int g = 0; g < laws; ++g) all += draws[g];
    for (int g = 0; g < laws; ++g) {
      out.mean[g] = static_cast<float>(draws[g]) / static_cast<float>(all);
      out.along[g] = laws > 1 ? out.mean[g] * static_cast<float>(g) / static_cast<float>(laws - 1) : 0;
    }
    return out;
  }
  // In double; the passes compute the same in float, 16 tokens at a time.
  SPS_HD int cell(double t, const double* d, int laws) const {
    double m = 0, a = 0;
    for (int g = 0; g < laws; ++g) m += mean[g] * d[g], a += along[g] * d[g];
    if (t < tail && m < tail) return tail_cell();
    return static_cast<int>(rows * (t / (t + m)) + 0.5) * (columns + 1) + static_cast<int>(columns * (a / fmax(m, least())) + 0.5);
  }
};

// The loops over cells, a multiple of kLanes; d and share are [laws][cells]. For level n of a cell f = Pr(level <= n); for level n + 1
// it is f (2 - f).
struct LevelLoops {
  void (*first)(const double* weight, double tau, int64_t cells, double* f);  // f = 1 - e^(-weight tau)
  // out[n][g] = sum of d_g Pr(level <= n), n = 1 .. levels - 1
  void (*masses)(const double* first, const double* d, int64_t cells, int laws, int levels, double (*out)[kMaxLaws]);
  // share_g = step[levels][g] + sum over n < levels of Pr(level <= n) step[n][g]
  void (*shares)(const double* first, const double (*step)[kMaxLaws], int64_t cells, int laws, int levels, double* share);
  // weight *= (target / won)^1.5, won = sum over g of d_g share_g
  void (*climb)(double* weight, const double* target, const double* d, const double* share, int64_t cells, int laws, double limit);
};

struct Mixture {
  Cells cells;
  const Law* law = nullptr;  // [laws]
  const uint8_t* law_of = nullptr;  // [draws]: each draw's law
  int laws = 0, draws = 0, levels = 0;
  double* sums = nullptr;  // [cells][stride]: t and each d of a cell's tokens

  SPS_HD Mixture() {}
  SPS_HD Mixture(const Cells& cells, const Law* law, int laws, const uint8_t* law_of, int draws, int levels, double* scratch)
      : cells(cells), law(law), law_of(law_of), laws(laws), draws(draws), levels(levels) {
    sums = scratch, slot_ = sums + cells.count() * stride();
    columns_ = slot_ + cells.count();
  }
  // Doubles of scratch: the sums, one slot number per cell, and per slot: t, weight, level 1, and d and share of each law.
  static SPS_HD int64_t scratch(const Cells& cells, int laws) {
    return static_cast<int64_t>(cells.count()) * (stride_of(laws) + 1) + columns_of(laws) * (cells.count() + kLanes);
  }
  SPS_HD int stride() const { return stride_of(laws); }

  // Call once the sums are complete: normalises each law and assigns slots 1, 2, ... to cells with draft mass. Slot 0 is for the others: a
  // draw from them occurs once in 2^52 at most, but must still get a level.
  SPS_HD void close_sums() {
    double total[kMaxLaws + 1] = {};
    used_ = 1;
    for (int c = 0; c < cells.count(); ++c) {
      double drafted = 0;
      for (int j = 0; j <= laws; ++j) total[j] += sum(c, j), drafted += j > 0 ? sum(c, j) : 0;
      slot_[c] = drafted > 0 ? used_++ : 0;
    }
    padded_ = (used_ + kLanes - 1) / kLanes * kLanes;
    for (int i = 0; i < columns_of(laws) * padded_; ++i) columns_[i] = 0;
    weight()[0] = 1;
    for (int c = 0; c < cells.count(); ++c) {
      const int i = slot(c);
      if (i == 0) continue;
      double mean = 0;
      for (int g = 0; g < laws; ++g) {
        draft(g)[i] = total[1 + g] > 0 ? sum(c, 1 + g) / total[1 + g] : 0;
        mean += cells.mean[g] * draft(g)[i];
      }
      target()[i] = total[0] > 0 ? sum(c, 0) / total[0] : 0;
      weight()[i] = clip(target()[i] / mean, kStart);
    }
  }

  // Adapt the weights, multiplying them by (t / P)^1.5 in each round, and compute the resulting shares.
  SPS_HD void climb(int rounds, const LevelLoops& loops) {
    solve(loops);
    for (int round = 0; round < rounds; ++round) {
      loops.climb(weight(), target(), draft(0), share(0), padded_, laws, kLimit);
      weight()[0] = 1;
      solve(loops);
    }
  }

  SPS_HD int slot(int cell) const { return static_cast<int>(slot_[cell]); }
  // The contribution of law g to P(i), divided by d^g_i, for tokens of the cell.
  SPS_HD double share_of(int cell, int g) const { return share(g)[slot(cell)]; }

  // Pr(level <= n) of a draw in the cell, n = 1 .. levels: 1 - exp(-weight tau_n), tau doubling from level to level.
  SPS_HD double within(int cell, int n) const {
    if (n >= levels) return 1;
    double f = first()[slot(cell)];
    for (; n > 1; --n) f *= 2 - f;
    return f;
  }
  // The level of a draw whose uniform is u.
  SPS_HD int level(int cell, double u) const {
    double f = first()[slot(cell)];
    int n = 1;
    for (; n < levels && u >= f; ++n) f *= 2 - f;
    return n;
  }

 private:
  static constexpr double kStart = 403.4287934927351, kLimit = 3269017.3724721107;  // e^6 and e^15
  double *slot_ = nullptr, *columns_ = nullptr;
  int used_ = 1, padded_ = kLanes;  // slots

  static SPS_HD int stride_of(int laws) { return laws / 2 * 2 + 2; }  // sums are added two at a time
  static SPS_HD int columns_of(int laws) { return 3 + 2 * laws; }
  SPS_HD double sum(int cell, int j) const { return sums[cell * stride() + j]; }
  static SPS_HD double clip(double x, double limit) { return fmin(fmax(x, 1 / limit), limit); }
  SPS_HD double* column(int j) const { return columns_ + j * padded_; }
  SPS_HD double* target() const { return column(0); }
  SPS_HD double* weight() const { return column(1); }
  SPS_HD double* first() const { return column(2); }  // Pr(level = 1)
  SPS_HD double* draft(int g) const { return column(3 + g); }
  SPS_HD double* share(int g) const { return column(3 + laws + g); }

  // Compute the shares from the weights: with G_l(n) = Pr(draw l has a level above n),
  //   share(cell, g) = sum over n of Pr(level = n | cell) W_g(n),  W_g(n) = sum over draws k of law g of
  //                    prod_{l < k} G_l(n) prod_{l > k} G_l(n - 1).
  SPS_HD void solve(const LevelLoops& loops) const {
    const double start = 1.0 / static_cast<double>(1 << (levels / 2 - 1));  // tau_1; the last level takes the rest
    loops.first(weight(), start, padded_, first());
    double above[kMaxLevels + 1][kMaxLaws], wins[kMaxLevels + 1][kMaxLaws] = {};  // G of level n at [n], W at [n - 1], then at [n]
    loops.masses(first(), draft(0), padded_, laws, levels, above);
    for (int g = 0; g < laws; ++g) {
      above[0][g] = 1, above[levels][g] = 0;
      for (int n = 1; n < levels; ++n) above[n][g] = fmax(0.0, 1 - above[n][g]);
    }
    for (int n = 0; n < levels; ++n) {
      double later[kMaxDraws + 1];
      later[draws] = 1;
      for (int k = draws - 1; k >= 0; --k) later[k] = later[k + 1] * above[n][law_of[k]];
      double earlier = 1;
      for (int k = 0; k < draws; ++k) {
        wins[n][law_of[k]] += earlier * later[k + 1];
        earlier *= above[n + 1][law_of[k]];
      }
    }
    double after[kMaxLaws];
    for (int n = levels; n > 0; --n)  // summation by parts: from Pr(level = n) to Pr(level <= n)
      for (int g = 0; g < laws; ++g) wins[n][g] = wins[n - 1][g] - (n < levels ? after[g] : 0), after[g] = wins[n - 1][g];
    loops.shares(first(), wins, padded_, laws, levels, share(0));
  }
};

}  // namespace SPS_NAMESPACE
