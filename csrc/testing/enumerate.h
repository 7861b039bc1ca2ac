// An executor that enumerates: it runs a scheme's template once for every combination of its random decisions, over laws given
// as plain probabilities, and adds up the exact probability of each outcome. No random numbers, no tolerance but rounding.
#pragma once
#include <algorithm>
#include <map>
#include <vector>

#include "../walk.h"

namespace specsample {

class EnumeratingExecutor {
 public:
  using Table = std::vector<std::vector<double>>;
  EnumeratingExecutor(const Request& request, const Table& target, const Table& draft)
      : request_(request), target_(target), draft_(draft) {}

  // Start the next combination of decisions; false when all have been run.
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
    return token < law.vocab ? static_cast<const double*>(law.row)[token] : 0;
  }
  bool accept(int, double numerator, double denominator) {
    const double a = numerator >= denominator && numerator > 0 ? 1 : denominator > 0 ? numerator / denominator : 0;
    return decide({1 - a, a}) == 1;
  }
  int64_t clock_race(const Law& law, int) {
    std::vector<double> weights(law.vocab);
    for (int64_t i = 0; i < law.vocab; ++i) weights[i] = prob(law, i);
    return decide(weights);
  }
  int64_t residual_race(const Law& target, const Law& draft, double scale) {
    std::vector<double> weights = residual(target, draft, scale);
    if (total(weights) <= 0) return clock_race(target, 0);
    return decide(weights);
  }
  double residual_mass(const Law& target, const Law& draft, double scale) const {
    return total(residual(target, draft, scale));
  }

 private:
  struct Branch {
    std::vector<double> weights;
    size_t taken;
  };
  static Law law(const std::vector<double>& row) {
    Law law;
    law.row = row.data(), law.vocab = static_cast<int64_t>(row.size()), law.mass = 1;
    return law;
  }
  static double total(const std::vector<double>& weights) {
    double sum = 0;
    for (double w : weights) sum += w;
    return sum;
  }
  std::vector<double> residual(const Law& target, const Law& draft, double scale) const {
    std::vector<double> weights(target.vocab);
    for (int64_t i = 0; i < target.vocab; ++i) weights[i] = std::max(0.0, scale * prob(target, i) - prob(draft, i));
    return weights;
  }
  int64_t decide(const std::vector<double>& weights) {
    if (at_ == branches_.size()) branches_.push_back({weights, 0});
    const Branch& branch = branches_[at_++];
    probability_ *= branch.weights[branch.taken] / total(branch.weights);
    return static_cast<int64_t>(branch.taken);
  }

  const Request& request_;
  const Table &target_, &draft_;
  std::vector<Branch> branches_;
  size_t at_ = 0;
  bool started_ = false;
  double probability_ = 1;
};

// {(num_accepted, emitted tokens...): probability}. parents empty: a chain. target: a row for the root and each node; draft: a
// row for the root and each node (those with children are read), or empty for one-hot drafts.
template <class Round>
std::map<std::vector<int64_t>, double> enumerate(Round round, const std::vector<int64_t>& tokens,
                                                 const std::vector<int64_t>& parents,
                                                 const EnumeratingExecutor::Table& target,
                                                 const EnumeratingExecutor::Table& draft, int max_depth, bool uses_draft_law) {
  Request request;
  request.nodes = static_cast<int>(tokens.size()), request.max_depth = max_depth;
  request.target_rows = static_cast<int>(target.size()), request.draft_row_count = static_cast<int>(draft.size());
  request.id_limit = static_cast<int64_t>(target.at(0).size());
  request.has_draft = uses_draft_law && !draft.empty();
  request.tokens = Ints{tokens.data(), true};
  std::vector<uint8_t> live(tokens.size() + 1);
  if (!parents.empty()) request.parents = Ints{parents.data(), true}, request.live = live.data();

  std::map<std::vector<int64_t>, double> outcomes;
  EnumeratingExecutor ex(request, target, draft);
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

}  // namespace specsample
