// The CUDA kernels under ThreadSanitizer, as a program of its own: a fibre for every CUDA thread, ordered by nothing but the
// kernels' own barriers and warp exchanges. `cuda_races NAME` runs a kernel of bad_kernels.h instead.
#include "cuda_on_cpu.h"
#include "../cuda/row_kernels.h"
#include "../cuda/verify_kernel.h"
#include "bad_kernels.h"

#include <random>

using namespace specsample;

namespace {

constexpr int kNodes = 5, kRows = kNodes + 1, kVocab = 1500, kDepth = 3;

// Teams of `team` blocks, whose crews have `crew` threads.
template <class Args>
void launch(void (*kernel)(Args), int64_t teams, const Args& args, int team, int crew) {
  const dim3 grid(static_cast<unsigned>(teams * team)), block(crew + kConductor);
  cuda_on_cpu::machine.launch(grid, block, [&] { kernel(args); }, team);
}

// `ahead`: all rows' laws, or races, before the round.
int run(int team, int crew, bool ahead, const std::vector<Sampling>& samplings, const std::vector<bool>& trees) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> target(2 * kRows * kVocab), draft(target.size());
  for (size_t i = 0; i < target.size(); ++i) target[i] = normal(generator), draft[i] = target[i] + normal(generator) / 4;
  for (int i = 0; i < 2 * kRows; ++i)  // a token that is mostly emitted, and drafted below: rounds end at every depth
    target[i * kVocab + 7] += i % kRows < 2 ? 15 : 9, draft[i * kVocab + 7] += 9;
  target[7 * kVocab + 3] = HUGE_VALF;
  const auto rows_at = [](const std::vector<float>& x) {
    return Rows{reinterpret_cast<const char*>(x.data()), kVocab, kVocab * 4, kFloat32};
  };
  int emitted = 0;
  for (const Sampling& sampling : samplings) {
    std::vector<int64_t> token(2 * kRows * 4);
    RowArgs r{};
    r.rows = rows_at(draft), r.k = 4, r.sampling = Samplings{sampling, nullptr, 0};
    r.seed = PerRow{1, 1, nullptr}, r.position = PerRow{9, 0, nullptr}, r.token = token.data();
    for (RowOp op : {RowOp::kSample, RowOp::kTopK, RowOp::kTop, RowOp::kDistinct, RowOp::kLists, RowOp::kArrivals, RowOp::kIid}) {
      r.op = op;
      launch(row_kernel, 2 * kRows, r, team, crew);
    }
    std::vector<int64_t> drafts(2 * kNodes), tokens(2 * (kDepth + 1)), parents = {-1, -1, 0, 1, 3};
    for (int i = 0; i < 2 * kNodes; ++i) drafts[i] = i % 3 < 2 ? 7 : token[i % kNodes];
    std::vector<int32_t> count(2), nodes(2 * kDepth);
    std::vector<float> logprobs(tokens.size());
    VerifyArgs a{};
    a.target = rows_at(target), a.draft = rows_at(draft);
    a.target_stride = a.draft_stride = static_cast<int64_t>(kRows) * kVocab * 4;
    a.target_rows = a.draft_rows = kRows, a.nodes = kNodes, a.batch = 2, a.max_depth = kDepth, a.logprobs = 1;
    a.tokens = NodeInts{Ints{drafts.data(), true}, 2 * kNodes, kNodes};
    a.sampling = a.draft_sampling = Samplings{sampling, nullptr, 0};
    a.seed = PerRow{5, 1, nullptr}, a.position = PerRow{9, 0, nullptr};
    a.out_tokens = tokens.data(), a.out_count = count.data(), a.out_nodes = nodes.data(), a.out_logprobs = logprobs.data();
    std::vector<double> memory(2 * coupling_memory(1201));
    a.memory = memory.data(), a.most_bins = 1201;
    std::vector<Ahead> found(4 * kRows);
    for (bool tree : trees) {
      a.options[0] = tree ? 64 : 1200;
      if (tree) a.parents = NodeInts{Ints{parents.data(), true}, kNodes, 0};
#define SPS_RUN(name, uses_draft_law, reads_lists)                   \
  a.has_draft = uses_draft_law, a.by_lists = reads_lists;            \
  a.ahead = ahead && !reads_lists ? found.data() : nullptr;          \
  a.scheme = uses_draft_law ? kLaws : kRaces;                        \
  launch(verify_kernel, !a.ahead ? 0 : uses_draft_law ? 4 * kRows : 2 * kRows, a, team, crew); \
  a.scheme = k_##name;                                               \
  launch(verify_kernel, 2, a, team, crew);                           \
  a.scheme = kLogprobs;                                              \
  launch(verify_kernel, 2 * (kDepth + 1), a, team, crew);            \
  for (int64_t t : tokens) emitted += t >= 0;
      SPS_CUDA_SCHEMES(SPS_RUN)
#undef SPS_RUN
    }
  }
  std::printf("%d tokens\n", emitted);
  return emitted;
}

}  // namespace

int main(int count, char** arguments) {
  cuda_on_cpu::settings.shuffle = 1;
  if (count < 2) {
    const Sampling plain, filtered{0.8, 40, 0.95, 0.001}, greedy{0, 0, 1, 0};
    const bool alone = run(1, 64, false, {plain, filtered, greedy}, {false, true}) > 0;
    return alone && run(2, 32, true, {plain, filtered}, {true}) > 0 ? 0 : 1;
  }
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
    if (!std::strcmp(arguments[1], entry.name)) {
      launch(entry.kernel, 1, BadArgs{in.data(), out.data(), 64}, entry.team, 32);
      return 0;
    }
  return 2;
}
