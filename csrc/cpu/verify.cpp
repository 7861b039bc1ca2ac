// The op verify on the CPU: runs the scheme's round for each request.
#include "device.h"

#include "../verify_op.h"

namespace SPS_NAMESPACE {
namespace {

using Round = void (*)(const Request&, CpuExecutor&, const Output&);
constexpr Round kRounds[] = {
#define SPS_ROUND(name, ...) verify_##name<CpuExecutor>,
    SPS_SCHEMES(SPS_ROUND)
#undef SPS_ROUND
};

// Log-probabilities of the emitted tokens, under the target's law or the raw one.
void fill_logprobs(const Request& request, const CpuExecutor& ex, const Sampling& sampling, const Output& out, float* value) {
  int node = -1;
  for (int depth = 0; depth <= request.max_depth && out.tokens.data[depth] >= 0; ++depth) {
    const Law law = ex.runner.law(ex.target_rows, request.target_row(node), sampling, true);
    const int64_t token = out.tokens.data[depth];
    value[depth] = static_cast<float>(law.only >= 0 ? (law.only == token ? 0 : -kInfinity)
                                                    : law.log_prob(ex.target_rows.passes->value(law.row, token)));
    if (depth < request.max_depth && out.nodes.data[depth] >= 0) node = out.nodes.data[depth];
  }
}

void run_round(const VerifyArgs& a, const Tensor&) {
  const int64_t width = a.max_depth + 1;
  std::fill(a.out_tokens, a.out_tokens + a.batch * width, -1);
  std::fill(a.out_nodes, a.out_nodes + a.batch * a.max_depth, -1);
  if (a.logprobs) std::fill(a.out_logprobs, a.out_logprobs + a.batch * width, 0.f);
  std::vector<int64_t> before(a.cu_rows ? a.batch + 1 : 0);  // nodes of the preceding requests
  for (int64_t b = 0; a.cu_rows && b < a.batch; ++b) before[b + 1] = before[b] + a.nodes_of(b);
  std::vector<Sampling> draft_sampling{a.draft_sampling.numbers};
  if (a.draft_sampling.values) draft_sampling.clear();
  for (int64_t i = 0; i < a.draft_sampling.count; ++i) draft_sampling.push_back(a.draft_sampling[i]);

  for_requests(a.batch, a.target.vocab, [&](int64_t first, int64_t last, bool split) {
    const RowRunner runner(split);
    std::vector<uint8_t> live;
    for (int64_t b = first; b < last; ++b) {
      Part part = part_of(a, b, a.cu_rows ? before[b] : 0);
      Request& request = part.request;
      if (request.parents.data) {
        live.resize(request.nodes + 1);
        request.live = live.data();
      }
      const auto kept = [&](const float* values) { return values ? values + part.draft_row : nullptr; };
      const bool shared = a.draft_sampling.values == nullptr;
      CpuExecutor ex{request,
                     runner,
                     part.target,
                     part.draft,
                     a.sampling[b],
                     draft_sampling.data() + (shared ? 0 : part.sampling_first),
                     shared ? 0 : part.sampling_step,
                     kept(a.kept_max),
                     kept(a.kept_logsumexp),
                     kept(a.kept_cutoff)};
      const Output out{a.out_tokens + b * width, a.out_nodes + b * a.max_depth, a.out_count + b};
      kRounds[a.scheme](request, ex, out);
      if (a.logprobs) fill_logprobs(request, ex, a.logprobs == 2 ? Sampling() : ex.sampling, out, a.out_logprobs + b * width);
    }
  });
}

}  // namespace
}  // namespace SPS_NAMESPACE
