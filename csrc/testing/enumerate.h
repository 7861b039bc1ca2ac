// An executor that enumerates: it runs a scheme's template once for every combination of its random decisions, over laws given as
// plain probabilities, or as their logarithms (`logs`) if those would underflow, and sums up the exact probability of each outcome.
// No random numbers; the only tolerance is rounding.
#pragma once
#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "../cpu/passes.h"
#include "../schemes/optimal.h"

namespace SPS_NAMESPACE {

class EnumeratingExecutor {
 public:
  using Table = std::vector<std::vector<double>>;
  EnumeratingExecutor(const Request& request, const Table& target, const Table& draft, bool logs = false)
      : request_(request), target_(target), draft_(draft), logs_(logs) {}

  // Starts the next combination of decisions; false if all have been run.
  bool next() {
    if (started_) {
      while (!branches_.empty() && branches_.back().taken + 1 == branches_.back().weights.size()) branches_.pop_back();
      if (branches_.empty()) return false;
      ++branches_.back().taken;
    }
    started_ = true, at_ = 0, probability_ = 1;
    return true;
  }
  double probability() const { return probability_; }

  Law target(int row, bool) const { return law(target_[row]); }
  Law draft(int node) const {
    return request_.has_draft ? law(draft_[request_.draft_row(node)]) : Law::point(request_.token(node));
  }
  double prob(const Law& law, int64_t token) const {
    if (law.only >= 0) return law.only == token;
    if (law.lacks(token)) return 0;
    return token < law.vocab ? weight(law, token) / law.mass : 0;
  }
  bool accept(int, double numerator, double denominator) {
    const double a = numerator >= denominator && numerator > 0 ? 1 : denominator > 0 ? numerator / denominator : 0;
    return decide({1 - a, a}) == 1;
  }
  // On one clock list or on the minimum of several: the law is the same.
  int64_t clock_race(const Law& law, int, const int64_t* = nullptr, int = 0) {
    std::vector<double> weights(law.vocab);
    for (int64_t i = 0; i < law.vocab; ++i) weights[i] = prob(law, i);
    return decide(weights);
  }
  int64_t residual_race(const Law& target, const Law& draft, const Residual& residual) {
    const std::vector<double> weights = left(target, draft, residual);
    if (total(weights) <= 0) return clock_race(target.off(nullptr, 0), 0);
    return decide(weights);
  }
  double residual_mass(const Law& target, const Law& draft, const Residual& residual) const {
    return total(left(target, draft, residual));
  }

  Law law_without(const Law& law, const int64_t* tokens, int count) const {
    Law rest = law.off(tokens, count);
    rest.broken = law.only >= 0 ? rest.lacks(law.only) : !weigh(rest);
    return rest;
  }
  Coupling histogram(const Law& target, const Law& draft, int k) {
    const Binning binning = Binning::of(static_cast<int>(request_.options[0]), k, target.vocab);
    scratch_.assign(coupling_scratch(binning.count), 0.0);
    Coupling coupling(binning, k, scratch_.data());
    for (int64_t i = 0; i < target.vocab; ++i) {
      const int at = raw_bin(target, draft, binning, i);
      coupling.target(at) += prob(target, i), coupling.draft(at) += prob(draft, i);
    }
    coupling.close_sums();
    return coupling;
  }
  int bin(const Law& target, const Law& draft, const Coupling& coupling, int64_t token) const {
    const int at = raw_bin(target, draft, coupling.binning, token);
    return at == coupling.binning.count ? coupling.binning.tail_bin : at;
  }
  bool stays(int node, double numerator, double denominator) { return accept(node, numerator, denominator); }
  int likeliest(const Law& law, int k, int64_t* tokens) const {
    std::vector<int64_t> ids(law.vocab);
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return prob(law, a) > prob(law, b); });
    ids.resize(std::min<size_t>(k, ids.size()));
    std::copy(ids.begin(), ids.end(), tokens);
    return static_cast<int>(ids.size());
  }
  double* keep_ratios(const Coupling& coupling) {
    kept_.assign(coupling.ratio, coupling.ratio + coupling.binning.count);
    return kept_.data();
  }

  Mixture mixture(const Law& target, const MixedSiblings& live) {
    const Cells cells = live.cells(static_cast<int>(request_.options[2]), target.vocab);
    scratch_.assign(Mixture::scratch(cells, live.laws), 0.0);
    Mixture mixture = live.mixture(cells, static_cast<int>(request_.options[0]), scratch_.data());
    for (int64_t i = 0; i < target.vocab; ++i) {
      double* at = mixture.sums + cell(target, mixture, i) * mixture.stride();
      at[0] += prob(target, i);
      for (int g = 0; g < live.laws; ++g) at[1 + g] += prob(live.draft[g], i);
    }
    mixture.close_sums();
    mixture.climb(static_cast<int>(request_.options[1]), kBasePasses[kFloat32].levels);
    return mixture;
  }
  int cell(const Law& target, const Mixture& mixture, int64_t token) const {
    double d[kMaxLaws];
    for (int g = 0; g < mixture.laws; ++g) d[g] = prob(mixture.law[g], token);
    return mixture.cells.cell(prob(target, token), d, mixture.laws);
  }
  int level(const Mixture& mixture, int cell, int) {
    std::vector<double> weights;
    for (int n = 1; n <= mixture.levels; ++n)
      weights.push_back(mixture.within(cell, n) - (n > 1 ? mixture.within(cell, n - 1) : 0));
    return static_cast<int>(decide(weights)) + 1;
  }
  int64_t mixture_race(const Law& target, const Mixture& mixture) {
    std::vector<double> weights(target.vocab);
    for (int64_t i = 0; i < target.vocab; ++i) {
      double won = 0;
      for (int g = 0; g < mixture.laws; ++g) won += mixture.share_of(cell(target, mixture, i), g) * prob(mixture.law[g], i);
      weights[i] = std::max(prob(target, i) - won, 0.0);
    }
    if (total(weights) <= 0) return clock_race(target, 0);
    return decide(weights);
  }

  // Selection among several draws: one outcome per draw, with its probability given all tokens.
  int select_among(const std::vector<int>& bins, const Coupling& coupling) {
    return static_cast<int>(decide(selection_law(bins, coupling)));
  }

  static Law law_of(const std::vector<double>& row) {  // of probabilities
    Law law;
    law.row = row.data(), law.vocab = static_cast<int64_t>(row.size()), law.mass = 1;
    return law;
  }

 private:
  Law law(const std::vector<double>& row) const {
    Law law = law_of(row);
    if (logs_) law.broken = !weigh(law);
    return law;
  }
  double weight(const Law& law, int64_t token) const {
    const double value = static_cast<const double*>(law.row)[token];
    return logs_ ? std::exp(value - law.max) : value;
  }
  // Sets the law's mass over the tokens that it does not exclude, and the maximum it is relative to. Returns whether there is any.
  bool weigh(Law& law) const {
    double top = -kInfinity;
    for (int64_t i = 0; i < law.vocab && logs_; ++i)
      if (!law.lacks(i)) top = std::max(top, static_cast<const double*>(law.row)[i]);
    law.max = static_cast<float>(std::max(top, -3e38)), law.mass = 0;
    if (!logs_) law.max = 0;
    for (int64_t i = 0; i < law.vocab; ++i)
      if (!law.lacks(i)) law.mass += weight(law, i);
    return law.mass > 0;
  }

  struct Branch {
    std::vector<double> weights;
    size_t taken;
  };
  static double total(const std::vector<double>& weights) {
    double sum = 0;
    for (double w : weights) sum += w;
    return sum;
  }
  std::vector<double> left(const Law& target, const Law& draft, const Residual& residual) const {
    std::vector<double> weights(target.vocab);
    for (int64_t i = 0; i < target.vocab; ++i) {
      double b = prob(draft, i);
      if (residual.selected && b > 0) b *= residual.selected->ratio[bin(target, draft, *residual.selected, i)];
      if (residual.ratios) b *= residual.ratios->of(i);
      weights[i] = residual.weight(prob(target, i), b);
    }
    return weights;
  }
  int raw_bin(const Law& target, const Law& draft, const Binning& binning, int64_t token) const {
    const double t = prob(target, token), d = prob(draft, token);
    if (t < binning.tail && d < binning.tail) return binning.count;
    return binning.of_ratio(t, d);
  }

  // The law of a draw's priority given its bin, as atoms (value, weight): midpoints of fine cells, staying or moving.
  using Atoms = std::vector<std::pair<double, double>>;
  static Atoms priorities(int bin, const Coupling& coupling) {
    constexpr int kCells = 6000;
    Atoms atoms;
    const double cuts[3] = {coupling.edge[bin + 1], coupling.crossing(bin), coupling.edge[bin]};
    const double width = cuts[2] - cuts[0];
    if (!(width > 0)) return {{cuts[0], 1.0}};  // drawn with probability below 2^-53
    for (int piece = 0; piece < 2; ++piece)
      for (int i = 0; i < kCells && cuts[piece] < cuts[piece + 1]; ++i) {
        const double v = cuts[piece] + (cuts[piece + 1] - cuts[piece]) * (i + 0.5) / kCells;
        const double weight = (cuts[piece + 1] - cuts[piece]) / width / kCells;
        const double w = coupling.partner(v, bin), span = std::fabs(coupling.density(v) - coupling.density(w));
        const double move = span > 0 ? std::min(1.0, std::fabs(coupling.density(v) - coupling.ratio[bin]) / span) : 0;
        atoms.emplace_back(w, weight * move), atoms.emplace_back(v, weight * (1 - move));
      }
    std::sort(atoms.begin(), atoms.end());
    return atoms;
  }
  static std::vector<double> selection_law(const std::vector<int>& bins, const Coupling& coupling) {
    static std::map<std::vector<double>, Atoms> atoms;  // keyed by everything they depend on
    static std::map<std::vector<double>, std::vector<double>> laws;
    std::vector<double> key{static_cast<double>(coupling.k)};
    for (int i = 0; i < coupling.binning.count; ++i)
      if (coupling.draft(i) > 0) key.push_back(i), key.push_back(coupling.edge[i]), key.push_back(coupling.ratio[i]);
    std::vector<double> all = key;
    all.insert(all.end(), bins.begin(), bins.end());
    const auto known = laws.find(all);
    if (known != laws.end()) return known->second;
    std::vector<Atoms> law;
    for (int bin : bins) {
      key.push_back(bin);
      auto found = atoms.find(key);
      if (found == atoms.end()) found = atoms.emplace(key, priorities(bin, coupling)).first;
      law.push_back(found->second);
      key.pop_back();
    }
    std::vector<double> out(bins.size(), 0.0);
    for (size_t i = 0; i < bins.size(); ++i) {
      std::vector<size_t> at(bins.size(), 0);
      std::vector<double> above(bins.size(), 1.0);
      for (const auto& [u, weight] : law[i]) {
        double chance = weight;
        for (size_t other = 0; other < bins.size(); ++other) {
          if (other == i) continue;
          while (at[other] < law[other].size() && law[other][at[other]].first < u) above[other] -= law[other][at[other]++].second;
          double tied = 0;  // atoms of equal value stand for small cells: half of them are above
          for (size_t j = at[other]; j < law[other].size() && law[other][j].first == u; ++j) tied += law[other][j].second;
          chance *= above[other] - 0.5 * tied;
        }
        out[i] += chance;
      }
    }
    return laws[all] = out;
  }
  int64_t decide(const std::vector<double>& weights) {
    if (at_ == branches_.size()) branches_.push_back({weights, 0});
    const Branch& branch = branches_[at_++];
    probability_ *= branch.weights[branch.taken] / total(branch.weights);
    return static_cast<int64_t>(branch.taken);
  }

  const Request& request_;
  const Table &target_, &draft_;
  bool logs_;
  std::vector<Branch> branches_;
  size_t at_ = 0;
  bool started_ = false;
  double probability_ = 1;
  std::vector<double> scratch_, kept_;
};

// In place of the selection by uniforms (schemes/optimal.h).
inline int select(EnumeratingExecutor& ex, const Law& target, const Siblings& live, const Coupling& coupling,
                  int* bin_of_selected) {
  std::vector<int> bins;
  for (int i = 0; i < live.count; ++i) bins.push_back(ex.bin(target, live.draft, coupling, live.token[i]));
  const int selected = ex.select_among(bins, coupling);
  *bin_of_selected = bins[selected];
  return selected;
}

// {(num_accepted, emitted tokens...): probability}. parents empty: a chain. target: one row for the root and each node; draft: one
// row for the root and each node (those with children are read), or empty for one-hot drafts; or, with draft_rows, any rows and,
// for each node, the row that it was drawn from.
template <class Round>
std::map<std::vector<int64_t>, double> enumerate(Round round, const std::vector<int64_t>& tokens,
                                                 const std::vector<int64_t>& parents, const EnumeratingExecutor::Table& target,
                                                 const EnumeratingExecutor::Table& draft, int max_depth, bool uses_draft_law,
                                                 const std::vector<double>& options, const std::vector<int64_t>& draft_rows,
                                                 bool logs = false) {
  Request request;
  request.options = options.data();
  request.nodes = static_cast<int>(tokens.size()), request.max_depth = max_depth;
  request.target_rows = static_cast<int>(target.size()), request.draft_row_count = static_cast<int>(draft.size());
  request.id_limit = static_cast<int64_t>(target.at(0).size());
  request.has_draft = uses_draft_law && !draft.empty();
  request.tokens = Ints{tokens.data(), true};
  if (!draft_rows.empty()) request.draft_rows = Ints{draft_rows.data(), true};
  std::vector<uint8_t> live(tokens.size() + 1);
  if (!parents.empty()) request.parents = Ints{parents.data(), true}, request.live = live.data();

  std::map<std::vector<int64_t>, double> outcomes;
  EnumeratingExecutor ex(request, target, draft, logs);
  while (ex.next()) {
    std::vector<int64_t> emitted(max_depth + 1, -1);
    std::vector<int32_t> nodes(max_depth, -1);
    int32_t count = 0;
    round(request, ex, Output{emitted.data(), nodes.data(), &count});
    if (ex.probability() == 0) continue;
    std::vector<int64_t> key{count};
    for (int64_t token : emitted)
      if (token >= 0) key.push_back(token);
    outcomes[key] += ex.probability();
  }
  return outcomes;
}

}  // namespace SPS_NAMESPACE
