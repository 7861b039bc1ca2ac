// The CUDA kernels under ThreadSanitizer, as a standalone program: one fibre per CUDA thread, ordered only by the kernels' own
// barriers and warp exchanges.
//
//   races CASE ...   cases by number, 0 to 383: layouts, teams, rows ahead, filters, kept statistics, trees and bins, under every
//                    scheme, and `sample`, `draft` and `row_stats`. `races cases` prints their number
//   races NAME       a kernel of bad_kernels.h
#include "team.h"

#include "../cuda/row_kernels.h"
#include "../cuda/verify_kernel.h"
#include "bad_kernels.h"

#include <random>

using namespace specsample;

namespace {

constexpr int kRequests = 2, kNodes = 5, kRows = kNodes + 1, kVocab = 1500, kDepth = 3, kAllRows = kRequests * kRows;

struct Case {
  bool packed;
  int team;
  bool ahead;
  int filter;  // 0 none, 1 all, 2 greedy
  bool kept, tree, many_bins;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int i = 0; i < 2 * 4 * 2 * 3 * 2 * 2 * 2; ++i) {
    int rest = i;
    const auto next = [&](int values) {
      const int value = rest % values;
      rest /= values;
      return value;
    };
    const bool packed = next(2);
    const int team = 1 << next(4);
    const bool tree = next(2), ahead = next(2);
    const int filter = next(3);
    const bool many_bins = next(2), kept = next(2);
    all.push_back(Case{packed, team, ahead, filter, kept, tree, many_bins});
  }
  return all;
}

// Logits of two requests whose rounds end at every depth: token 7 is mostly emitted, and is drafted below.
struct Logits {
  std::vector<float> target, draft;

  Logits() : target(kAllRows * kVocab), draft(target.size()) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal(0, 2);
    for (size_t i = 0; i < target.size(); ++i) target[i] = normal(generator), draft[i] = target[i] + normal(generator) / 4;
    for (int i = 0; i < kAllRows; ++i) target[i * kVocab + 7] += i % kRows < 2 ? 15 : 9, draft[i * kVocab + 7] += 9;
    target[7 * kVocab + 3] = HUGE_VALF;
  }
  static Rows rows(const std::vector<float>& x) {
    return Rows{reinterpret_cast<const char*>(x.data()), kVocab, kVocab * 4, kFloat32};
  }
};

// Returns the number of tokens emitted.
int run(const Case& c) {
  static const Logits logits;
  const Sampling samplings[] = {Sampling(), Sampling{0.8, 40, 0.95, 0.001}, Sampling{0, 0, 1, 0}};
  const Samplings sampling{samplings[c.filter], nullptr, 0};
  const int crew = c.team == 1 ? 64 : 32;

  std::vector<int64_t> token(kAllRows * 4);
  std::vector<float> max(kAllRows), logsumexp(kAllRows), cutoff(kAllRows);
  RowArgs r{};
  r.rows = Logits::rows(logits.draft), r.k = 4, r.sampling = sampling, r.token = token.data();
  r.max = max.data(), r.logsumexp = logsumexp.data(), r.cutoff = cutoff.data();
  r.seed = PerRow{1, 1, nullptr}, r.position = PerRow{9, 0, nullptr};
  r.op = RowOp::kStats;
  launch(row_kernel, kAllRows, r, c.team, crew);
  const RowOp ops[] = {RowOp::kSample, RowOp::kTopK, RowOp::kTop, RowOp::kDistinct, RowOp::kLists, RowOp::kArrivals, RowOp::kIid};
  for (RowOp op : ops) {
    r.op = op;
    // Row ops depend only on the team and the filter.
    if (op == RowOp::kIid || !(c.packed || c.ahead || c.kept || c.tree || c.many_bins))
      launch(row_kernel, kAllRows, r, c.team, crew);
  }

  std::vector<int64_t> drafts(kRequests * kNodes), tokens(kRequests * (kDepth + 1));
  std::vector<int64_t> parents;
  for (int b = 0; b < kRequests; ++b) parents.insert(parents.end(), {-1, -1, 0, 1, 3});
  for (int i = 0; i < kRequests * kNodes; ++i) drafts[i] = i % 3 < 2 ? 7 : token[i % kNodes];
  const int32_t cu_rows[kRequests + 1] = {0, kRows, kAllRows};
  std::vector<int32_t> count(kRequests), nodes(kRequests * kDepth);
  std::vector<float> logprobs(tokens.size());
  std::vector<double> memory(kRequests * coupling_memory(1201));
  std::vector<Ahead> found(2 * kAllRows);
  Launch a{};
  a.target = Logits::rows(logits.target), a.draft = Logits::rows(logits.draft);
  a.target_stride = a.draft_stride = static_cast<int64_t>(kRows) * kVocab * 4;
  a.cu_rows = c.packed ? cu_rows : nullptr;
  a.target_rows = a.draft_rows = c.packed ? kAllRows : kRows, a.nodes = c.packed ? kRequests * kNodes : kNodes;
  a.batch = kRequests, a.max_depth = kDepth, a.logprobs = 1;
  a.tokens = NodeInts{Ints{drafts.data(), true}, kRequests * kNodes, kNodes};
  if (c.tree) a.parents = NodeInts{Ints{parents.data(), true}, kRequests * kNodes, kNodes};
  a.sampling = a.draft_sampling = sampling;
  if (c.kept) a.kept_max = max.data(), a.kept_logsumexp = logsumexp.data(), a.kept_cutoff = cutoff.data();
  a.seed = PerRow{5, 1, nullptr}, a.position = PerRow{9, 0, nullptr};
  a.out_tokens = tokens.data(), a.out_count = count.data(), a.out_nodes = nodes.data(), a.out_logprobs = logprobs.data();
  a.memory = memory.data(), a.most_bins = 1201, a.options[0] = c.many_bins ? 1200 : 64;

  int emitted = 0;
  const auto verify = [&](int scheme, bool uses_draft_law, bool by_lists, bool by_bins) {
    if (c.many_bins && !by_bins) return;  // the same as with few bins
    if (c.kept && !uses_draft_law) return;
    a.has_draft = uses_draft_law, a.by_lists = by_lists;
    a.ahead = c.ahead && !by_lists ? found.data() : nullptr;
    a.work = uses_draft_law ? kLaws : kRaces;
    if (a.ahead) launch(verify_kernel, uses_draft_law ? 2 * kAllRows : kAllRows, a, c.team, crew);
    a.work = scheme;
    launch(verify_kernel, kRequests, a, c.team, crew);
    a.work = kLogprobs;
    launch(verify_kernel, kRequests * (kDepth + 1), a, c.team, crew);
    for (int64_t t : tokens) emitted += t >= 0;
  };
#define SPS_RUN(name, ...) verify(k_##name, __VA_ARGS__);
  SPS_CUDA_SCHEMES(SPS_RUN)
#undef SPS_RUN
  return emitted;
}

int run_bad(const char* name) {
  std::vector<float> in(64, 1.f), out(64);
  const struct {
    const char* name;
    void (*kernel)(BadArgs);
    int team = 1;
  } kernels[] = {{"good", reverse_kernel<true>},
                 {"good twice", reverse_twice_kernel<true>},
                 {"good order", order_kernel<true>},
                 {"good team", team_kernel<Team::kGood>, 4},
                 {"missing barrier", reverse_kernel<false>},
                 {"missing meeting", order_kernel<false>},
                 {"missing team barrier", team_kernel<Team::kNoBarrier>, 4},
                 {"missing barrier before reuse", reverse_twice_kernel<false>}};
  for (const auto& entry : kernels)
    if (!std::strcmp(name, entry.name)) {
      launch(entry.kernel, 1, BadArgs{in.data(), out.data(), 64}, entry.team, 32);
      return 0;
    }
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  cuda_on_cpu::settings.shuffle = 1;
  const std::vector<Case> all = cases();
  if (count == 2 && !std::strcmp(arguments[1], "cases")) return std::printf("%zu\n", all.size()), 0;
  if (count == 2 && !std::isdigit(arguments[1][0])) return run_bad(arguments[1]);
  int emitted = 0;
  for (int i = 1; i < count; ++i) {
    const Case& c = all.at(std::atoi(arguments[i]));
    std::fprintf(stderr, "case %s: %s, team %d, %s, filter %d%s%s%s\n", arguments[i], c.packed ? "packed" : "dense", c.team,
                 c.ahead ? "ahead" : "as it comes", c.filter, c.kept ? ", kept" : "", c.tree ? ", tree" : "",
                 c.many_bins ? ", many bins" : "");
    cuda_on_cpu::settings.shuffle = static_cast<uint32_t>(i);
    emitted += run(c);
  }
  std::printf("%d cases, %d tokens\n", count - 1, emitted);
  return emitted > 0 ? 0 : 1;
}
