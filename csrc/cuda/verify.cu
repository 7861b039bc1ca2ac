// The op verify on CUDA: one launch, preceded by another if there are few rows, and followed by one for log-probabilities.
#if defined(__CUDACC__)  // else csrc/emulator/device.h was included first
#include "device.h"
#endif

#include "verify_kernel.h"
#include "../verify_op.h"

namespace SPS_NAMESPACE {
namespace {

const Kernel<Launch> kVerifyKernel(verify_kernel);

void run_round(const VerifyArgs& args, const Tensor& like) {
  Launch a{args};
  const int32_t device = device_index(like);
  const int64_t doubles = a.most_bins > 0 ? a.batch * coupling_memory(a.most_bins) : 0;
  const Tensor memory = empty(like, {doubles, 2}, ScalarType::Float);
  if (doubles > 0) a.memory = data_of<double>(memory);

  const auto run = [&](int work, int64_t teams, bool early = false) {
    a.work = work;
    kVerifyKernel.launch(a, teams, a.target.vocab, device, early);
  };
  // If all rows occupy at most half of the GPU, process them all ahead, at once: the scheme then never waits for a row.
  // If requests fill the GPU, the scheme reads only the rows that it reaches, and stops early.
  const int64_t rows = a.all_rows(a.target_rows) + (a.has_draft ? a.all_rows(a.draft_rows) : 0);
  const bool few = overrides().ahead < 0 ? 2 * rows <= processors(device) : overrides().ahead == 1;
  const bool ahead = few && rows > 0 && !a.by_lists && a.target.vocab > 0 && (!a.has_draft || a.draft.vocab > 0);
  const int64_t floats = ahead ? rows * static_cast<int64_t>(sizeof(Ahead) / sizeof(float)) : 0;
  const Tensor found = empty(like, {floats}, ScalarType::Float);
  if (ahead) {
    a.ahead = data_of<Ahead>(found);
    run(kSchemes[a.scheme].uses_draft_law ? kLaws : kRaces, rows);
  }
  run(a.scheme, a.batch, ahead);
  if (a.logprobs) run(kLogprobs, a.batch * (a.max_depth + 1));
}

}  // namespace
}  // namespace SPS_NAMESPACE
