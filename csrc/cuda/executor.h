// The conductor's side: orders to the crew, and the CUDA executor of one request (see walk.h), built on them.
//
// All lanes of the conductor, and of the conductors of all blocks of a team, call these functions with the same arguments and get
// the same results.
#pragma once
#include <type_traits>

#include "../walk.h"
#include "crew.h"

namespace SPS_NAMESPACE {

class Conductor {
 public:
  Scratch& s;
  SPS_DEVICE explicit Conductor(Scratch& scratch) : s(scratch) {}

  SPS_DEVICE Law law(const Rows& rows, int64_t row, const Sampling& sampling, bool normalised) const {
    if (!normalised && !sampling.greedy() && !sampling.filters(rows.vocab)) return Law::unread(rows.at(row), rows.vocab, sampling);
    ask(Task::kLaw, rows.dtype, [&](Order& o) { o.rows = rows, o.row = row, o.sampling = sampling, o.normalised = normalised; });
    return *s.law;
  }
  // The winner of a race over a law; its id is -1 if there is none. level: the logit that scores are relative to, if known.
  SPS_DEVICE Best race(const Law& law, int dtype, const Stream& stream, const Skip& skip = Skip(), float level = 0) const {
    if (law.broken) return Best::none();
    if (law.only >= 0) return skip.count ? Best::none() : Best{0, law.only};
    ask(Task::kRace, dtype, [&](Order&) {
      *s.race = Race(law, stream, skip);
      (*s.race).level = level, (*s.race).levelled = level != 0;
    });
    return s.found;
  }
  // The last race again, without these tokens: the row is not read again. same_level: with scores relative to the same logit, which
  // may leave no digits of the clocks to tokens far below it.
  SPS_DEVICE Best race_again(int dtype, const Skip& skip, bool same_level) const {
    ask(Task::kRace, dtype, [&](Order&) { (*s.race).skip = skip, (*s.race).levelled = same_level, (*s.race).bounded = true; });
    return s.found;
  }
  SPS_DEVICE Best next_likeliest(const Law& law, int dtype, float after_z, int64_t after_id) const {
    ask(Task::kLikeliest, dtype, [&](Order& o) { o.law = law, o.after_z = after_z, o.after_id = after_id; });
    return s.found;
  }
  SPS_DEVICE void dismiss() const {
    if (lane_id() == 0) (*s.order).task = Task::kLeave;
    SPS_MEET();
  }

 protected:
  // `fill` writes the order. Results have separate storage: lanes may still be reading them when the next order is written.
  template <class F>
  SPS_DEVICE void ask(Task task, int dtype, const F& fill) const {
    if (lane_id() == 0) {
      Order& order = *s.order;
      order.task = task, order.dtype = dtype;
      fill(order);
    }
    SPS_MEET();
    SPS_MEET();
  }
};

// Doubles of a coupling's memory: two buffers of ratios, at places independent of the coupling's size, and the rest.
constexpr SPS_HD int64_t coupling_memory(int64_t most_bins) { return 2 * most_bins + coupling_scratch(most_bins); }

class CudaExecutor : public Conductor {
 public:
  // `memory`: for couplings of at most `most_bins` bins (coupling_memory); null if the scheme needs none.
  SPS_DEVICE CudaExecutor(Scratch& scratch, double* memory, int most_bins)
      : Conductor(scratch), memory_(memory), most_bins_(most_bins) {}

  // Prefetches the results computed ahead and the logits of drafted tokens all at once: a walk would wait for one after another.
  SPS_DEVICE void prefetch_walk() const {
    const Request& request = *s.request;
    const Inputs& in = *s.inputs;
    for (int node = lane_id(); node < request.nodes; node += 32) {
      if (!request.exists(node)) continue;
      const int above = static_cast<int>(request.parent(node));
      if (request.has_row(above)) prefetch_row(in.target_ahead, in.target, request.target_row(above), request.token(node));
      if (request.has_draft) prefetch_row(in.draft_ahead, in.draft, request.draft_row(node), request.token(node));
    }
    SPS_BARRIER();
  }
  // A law that was computed ahead may have a mass even if not requested.
  SPS_DEVICE Law target(int row, bool normalised) {
    const Inputs& in = *s.inputs;
    row_ = row;
    return in.target_ahead ? in.target_ahead[row].law : law(in.target, row, in.sampling, normalised);
  }
  SPS_DEVICE Law draft(int node) const {
    const Request& request = *s.request;
    if (!request.has_draft) return Law::point(request.token(node));
    const Inputs& in = *s.inputs;
    const int64_t row = request.draft_row(node);
    const Sampling own = draft_sampling(row);
    if (keeps(row, own)) {
      Law law = Law::unread(in.draft.at(row), in.draft.vocab, own);
      law.max = in.kept_max[row];
      law.cutoff = in.kept_cutoff[row] > -FLT_MAX ? in.kept_cutoff[row] : -FLT_MAX;
      law.mass = exp(in.kept_logsumexp[row] - law.max * law.scale);
      return law;
    }
    return in.draft_ahead ? in.draft_ahead[row].law : law(in.draft, row, own, true);
  }
  // Compute for a later launch what it reads from `target_ahead` or `draft_ahead`: a law with its mass, or a law and a race. Skipped
  // where kept statistics suffice.
  SPS_DEVICE void run_ahead(bool of_draft, int64_t row, bool races) const {
    const Inputs& in = *s.inputs;
    const Sampling own = of_draft ? draft_sampling(row) : in.sampling;
    const bool kept = of_draft && keeps(row, own);
    Ahead found{kept ? Law::none() : law(of_draft ? in.draft : in.target, row, own, !races), -1, races ? depth_of(row) : -1};
    if (found.depth >= 0) found.winner = race(found.law, dtype(), stream(kClock, static_cast<int>(found.depth))).id;
    if (lane_id() == 0 && team_rank() == 0) (of_draft ? in.draft_ahead : in.target_ahead)[row] = found;
  }

  SPS_DEVICE double prob(const Law& law, int64_t token) const {
    if (law.only >= 0) return token == law.only;
    if (token >= law.vocab || law.lacks(token)) return 0;
    return law.prob(logit(law.row, dtype(), token));
  }
  SPS_DEVICE bool accept(int node, double numerator, double denominator) const {
    return stream(kAccept, 0, node).uniform(0) * denominator < numerator;
  }
  // The winner on the minimum of several lists' clocks is the best of their winners.
  SPS_DEVICE int64_t clock_race(const Law& law, int depth, const int64_t* lists = nullptr, int count = 0) const {
    const Inputs& in = *s.inputs;
    if (in.target_ahead && count == 0 && law.row == in.target.at(row_) && in.target_ahead[row_].depth == depth)
      return in.target_ahead[row_].winner;
    Best best = Best::none();
    float level = 0;  // the same for all lists: scores relative to different logits cannot be compared
    for (int i = 0; i < (count > 0 ? count : 1); ++i) {
      const Best found = race(law, dtype(), stream(kClock, depth, count > 0 ? lists[i] : 0), Skip(), level);
      const float own = law.broken || law.only >= 0 ? level : s.level;
      if (own != level && i > 0) {  // rerun the earlier lists at this level
        best = Best::none(), i = -1;
      } else {
        best.merge(found);
      }
      level = own;
    }
    return best.id;
  }
  SPS_DEVICE int64_t residual_race(const Law& target, const Law& draft, const Residual& residual) const {
    if (target.only >= 0) return target.only;
    if (target.broken) return -1;
    Skip skip{target.without, target.without_count};
    // If the one-hot draft's token has no weight left, the other tokens' weights are the target's.
    if (draft.only >= 0 && !(residual.weight(prob(target, draft.only), 1) > 0)) skip.one = draft.only;
    ask(Task::kRace, dtype(), [&](Order&) {
      Race& race = *s.race;
      race = Race(target, stream(kResidual, 0, residual.slot), skip);
      if (skip.one >= 0) return;
      race.residual = true, race.draft = draft, race.norms = Norms::of(target, draft);
      race.scale = residual.scale, race.floor = residual.floor;
      race.ratios = ratios_of(residual);
    });
    return s.found.id;
  }
  SPS_DEVICE double residual_mass(const Law& target, const Law& draft, const Residual& residual) const {
    const double scale = residual.scale;
    if (draft.only >= 0) return scale * (1 - prob(target, draft.only));
    if (target.only >= 0) {
      const double rest = scale - prob(draft, target.only);
      return rest > 0 ? rest : 0;
    }
    ask(Task::kMass, dtype(), [&](Order& o) {
      o.law = target, o.draft = draft, o.norms = Norms::of(target, draft), o.scale = scale, o.ratios = ratios_of(residual);
      o.skip = Skip{target.without, target.without_count};
    });
    return s.value;
  }

  SPS_DEVICE Law law_without(const Law& law, const int64_t* tokens, int count) const {
    Law rest = law.off(tokens, count);
    if (law.only >= 0) {
      rest.broken = rest.lacks(law.only);
      return rest;
    }
    return law_without(rest, Skip{tokens, count});
  }
  SPS_DEVICE Coupling histogram(const Law& target, const Law& draft, int k) const {
    const Binning binning = Binning::of(static_cast<int>((*s.request).options[0]), k, target.vocab);
    Coupling coupling(binning, k, memory_ + 2 * most_bins_);
    coupling.ratio = memory_ + (others_ ? most_bins_ : 0);
    const bool point = draft.only >= 0;
    const double share = point ? prob(target, draft.only) : 0;
    const bool wider = !point && draft.vocab > target.vocab;
    const double beyond = wider ? law_without(draft, Skip{nullptr, 0, -1, target.vocab}).share_of(draft) : 0;
    ask(Task::kHistogram, dtype(), [&](Order& o) {
      o.law = target, o.draft = draft, o.norms = Norms::of(target, draft);
      o.coupling = coupling, o.point = share, o.beyond = beyond;
    });
    coupling.binning.tail_bin = static_cast<int>(s.value);
    return coupling;
  }
  SPS_DEVICE void solve(const Coupling& coupling) const {
    ask(Task::kSolve, dtype(), [&](Order& o) { o.coupling = coupling; });
  }
  SPS_DEVICE double kseq_threshold(const Coupling& coupling) const {
    ask(Task::kThreshold, dtype(), [&](Order& o) { o.coupling = coupling; });
    return s.value;
  }
  SPS_DEVICE int bin(const Law& target, const Law& draft, const Coupling& coupling, int64_t token) const {
    if (draft.only >= 0) return coupling.binning.of_ratio(prob(target, token), 1);
    if (token >= target.vocab) return 0;
    const Pair pair = Pair::of(target, draft, Norms::of(target, draft));
    const float zd = token < draft.vocab ? logit(draft.row, dtype(), token) : -HUGE_VALF;
    return bin_of(pair.target(logit(target.row, dtype(), token)), pair.draft(zd), coupling.binning);
  }
  SPS_DEVICE double place(int node) const { return stream(kSelect, 0, node).uniform(0); }
  SPS_DEVICE double move(int node) const { return stream(kSelect, 0, node).uniform(1); }
  // Ratios are double-buffered: these stay in place, and the next ones go to the other buffer.
  SPS_DEVICE double* keep_ratios(const Coupling& coupling) {
    others_ = !others_;
    return coupling.ratio;
  }

  template <class T>
  SPS_DEVICE T& room() const {
    if constexpr (std::is_same<T, SiblingList>::value) {
      return *s.siblings;
    } else {
      static_assert(sizeof(T) <= kRoom && alignof(T) <= 8, "raise kRoom in protocol.h");
      return *reinterpret_cast<T*>(s.room);
    }
  }

 private:
  SPS_DEVICE static void prefetch_row(const Ahead* ahead, const Rows& rows, int64_t row, int64_t token) {
    prefetch(ahead + row), prefetch(reinterpret_cast<const char*>(ahead + row + 1) - 1);
    if (token < rows.vocab) prefetch(static_cast<const char*>(rows.at(row)) + token * (rows.dtype == kFloat32 ? 4 : 2));
  }
  SPS_DEVICE Sampling draft_sampling(int64_t row) const {
    const Inputs& in = *s.inputs;
    if (!in.draft_sampling) return in.draft_numbers;
    const double* p = in.draft_sampling + in.draft_first + row * in.draft_step;
    return Sampling{p[0], p[in.draft_columns], p[2 * in.draft_columns], p[3 * in.draft_columns]};
  }
  // Kept statistics are used if float32 determines the law to 1e-6; other rows are read again.
  SPS_DEVICE bool keeps(int64_t row, const Sampling& own) const {
    const Inputs& in = *s.inputs;
    return in.kept_max && !own.greedy() && fabsf(in.kept_logsumexp[row]) <= kMaxLogsumexp;
  }
  // The depth of the first node that has this target row (the root's is 0); -1 if there is none.
  SPS_DEVICE int depth_of(int64_t row) const {
    const Request& request = *s.request;
    for (int node = -1; node < request.nodes; ++node) {
      if (request.target_row(node) != row) continue;
      int depth = 0;
      for (int64_t at = node; at >= 0; ++depth) {
        const int64_t above = request.parent(static_cast<int>(at));
        if (above < -1 || above >= at) return -1;
        at = above;
      }
      return depth;
    }
    return -1;
  }
  SPS_DEVICE int dtype() const { return (*s.inputs).target.dtype; }
  SPS_DEVICE Stream stream(Purpose purpose, int depth = 0, int64_t slot = 0) const {
    return Stream((*s.request).seed, (*s.request).position + depth, purpose, slot);
  }
  SPS_DEVICE Law law_without(const Law& law, const Skip& skip) const {
    ask(Task::kRest, dtype(), [&](Order& o) { o.law = law, o.skip = skip; });
    return *s.law;
  }
  SPS_DEVICE static BinRatios ratios_of(const Residual& residual) {
    if (!residual.selected) return BinRatios();
    return BinRatios{residual.selected->ratio, residual.selected->binning};
  }

  double* memory_;
  int most_bins_;
  bool others_ = false;
  int row_ = 0;  // the target row requested last
};

}  // namespace SPS_NAMESPACE
