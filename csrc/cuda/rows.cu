// The ops sample, draft and row_stats on CUDA: one launch.
#if defined(__CUDACC__)  // else csrc/emulator/device.h was included first
#include "device.h"
#endif

#include "row_kernels.h"
#include "../row_ops.h"

namespace SPS_NAMESPACE {
namespace {

const Kernel<RowArgs> kRowKernel(row_kernel);

void run_rows(const RowArgs& a, int64_t count, const Tensor& like) {
  kRowKernel.launch(a, count, a.rows.vocab, device_index(like));
}

}  // namespace
}  // namespace SPS_NAMESPACE
